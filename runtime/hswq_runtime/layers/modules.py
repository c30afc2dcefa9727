"""Linear and Conv2d layers that hold their weight in FP8 or INT8 and compute in a wider dtype.

The weight is expanded for one call, one layer at a time, and again in the backward pass. So a model never holds a
second copy of its weights, not even while a LoRA is trained on it. The layers are subclasses of `nn.Linear` and
`nn.Conv2d`, because offloading, PEFT and group hooks look for those.
"""

from collections.abc import Callable
from typing import Any, Literal, Self, TypedDict

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import HSWQError
from ..formats import INPUT_SCALE, SCALE, Number, Product, Reader
from . import products
from .numbers import NUMBERS, dequantize, quantize

SCALE_BUFFER = SCALE.removeprefix(".")
INPUT_SCALE_BUFFER = INPUT_SCALE.removeprefix(".")
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
_UNMARKED = Product()


class HSWQLayer(nn.Module):
    """The common part of both layers: a quantized weight with its scale, and the dtype to compute in.

    Attributes:
        weight: codes, FP8 or INT8, frozen, of the plain layer's shape.
        scale: None, or a float32 buffer [1] or [N], one value for each row (index of the weight's first dimension).
        compute_dtype: dtype of the expanded weight and of the bias; PEFT gives adapters on the layer this dtype.
        number: the number format of the weight.
        group: so many neighbouring inputs are rotated together in the weight; None: none are.
    """

    weight: torch.Tensor
    scale: torch.Tensor | None
    compute_dtype: torch.dtype
    number = Number.FP8
    group: int | None = None

    def reset_parameters(self) -> None:
        """Does nothing: weights come from a file, and drawing random ones takes longer than reading it."""

    def _hold_codes(self, scales: int, compute_dtype: torch.dtype, device: torch.device | str | None) -> None:
        self.compute_dtype = compute_dtype
        codes = torch.empty(self.weight.shape, dtype=NUMBERS[self.number].dtype, device=device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        scale = torch.empty(scales, dtype=torch.float32, device=device) if scales else None
        self.register_buffer(SCALE_BUFFER, scale)

    def dequantized_weight(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight in `dtype` (None: `compute_dtype`), a new tensor of the plain layer's shape."""
        return self.expanded(self.weight, self.scale, dtype or self.compute_dtype)

    def expanded(
        self, codes: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype, *, transient: bool = False
    ) -> torch.Tensor:
        """What other codes of this layer and their scale stand for, see :func:`.numbers.dequantize`."""
        return dequantize(codes, scale, dtype, self.group, transient=transient)

    @torch.no_grad()
    def requantize(self, values: torch.Tensor) -> None:
        """Replace the weight by `values`, of its shape: rounded to nearest, with as many fresh scales as before."""
        # In place, because offloading keeps references to the tensors, perhaps on two devices.
        if self.scale is None:
            self.weight.data.copy_(NUMBERS[self.number].cast(values.float()))
            return
        codes, scale = quantize(values, self.number, self.scale.numel(), self.group)
        self.weight.data.copy_(codes)
        self.scale.copy_(scale)

    def plain(self) -> nn.Module:
        """The nn.Linear or nn.Conv2d that computes the same with the expanded weight."""
        layer = self._plain_shell()
        layer.weight = nn.Parameter(self.dequantized_weight(), requires_grad=False)
        return layer.train(self.training)

    def _plain_shell(self) -> nn.Linear | nn.Conv2d:
        """A plain layer of the same geometry, with this layer's bias; its weight is on the meta device."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # `.to(dtype)`, `.half()` and the like change `compute_dtype`, never the stored codes or the scales.
        stored = [self.weight, *(buffer for buffer in self._buffers.values() if buffer is not None)]

        def keep_stored(tensor: torch.Tensor) -> torch.Tensor:
            applied = fn(tensor)
            if any(tensor is one for one in stored) and applied.dtype != tensor.dtype:
                return tensor.to(applied.device)
            return applied

        super()._apply(keep_stored, recurse)  # type: ignore[no-untyped-call]  # torch has no types here
        # `fn` is opaque: an empty tensor shows the dtype that it casts to.
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype, device=stored[0].device)).dtype
        return self

    def __getstate__(self) -> dict[str, Any]:
        # pickle cannot store float8 tensors (torch 2.13), so bytes are stored.
        state = self.__dict__.copy()
        state["_parameters"] = {**self._parameters, "weight": self.weight.data.view(torch.uint8)}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        codes = state["_parameters"]["weight"].view(NUMBERS[state.get("number", self.number)].dtype)
        state["_parameters"]["weight"] = nn.Parameter(codes, requires_grad=False)
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch has no types here

    def extra_repr(self) -> str:
        scale = "none" if self.scale is None else list(self.scale.shape)
        weight = str(NUMBERS[self.number].dtype).removeprefix("torch.")
        rotated = "" if self.group is None else f", group={self.group}"
        return f"{super().extra_repr()}, weight={weight}{rotated}, scale={scale}, compute_dtype={self.compute_dtype}"


class HSWQLinear(HSWQLayer, nn.Linear):
    """`nn.Linear` with a quantized weight [out_features, in_features]; the bias is in `compute_dtype`.

    Attributes:
        exact: whether the file wants it multiplied in full precision, see :class:`hswq_runtime.formats.Product`.
        input_scale: None, or a float32 buffer [1]: FP8 values of the input times this are the input.
        quantized_matmul: round the input to the weight's number format as well, and multiply on the tensor cores.
        reader: whose arithmetic that is, see :func:`hswq_runtime.layers.matmul.set_quantized_matmul`.
    """

    exact: bool
    input_scale: torch.Tensor | None
    quantized_matmul = False
    reader = Reader.HSWQ

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        scales: int,
        compute_dtype: torch.dtype,
        product: Product = _UNMARKED,
        device: torch.device | str | None = None,
    ):
        super().__init__(in_features, out_features, bias=bias, device="meta", dtype=compute_dtype)
        self.number, self.group = product.number, product.group
        self._hold_codes(scales, compute_dtype, device)
        self.register_buffer(INPUT_SCALE_BUFFER, None)
        self.set_product(product, device)

    @classmethod
    def like(
        cls, layer: nn.Linear, *, scales: int, compute_dtype: torch.dtype, product: Product = _UNMARKED
    ) -> "HSWQLinear":
        """An empty layer on the meta device, of `layer`'s shape."""
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        return cls(*sizes, scales=scales, compute_dtype=compute_dtype, product=product, device="meta")

    def set_product(self, product: Product, device: torch.device | str | None = None) -> None:
        """Take over what a file says of this layer's product; `device`: where its input scale is to be."""
        self.exact, scale = product.exact, product.input_scale
        self.input_scale = None if scale is None else torch.tensor([scale], dtype=torch.float32, device=device)

    def extra_repr(self) -> str:
        """Arguments and state, for `print(model)`."""
        exact, scale = ", exact" if self.exact else "", "" if self.input_scale is None else ", input_scale=[1]"
        matmul = f", quantized_matmul={self.reader.value}" if self.quantized_matmul else ""
        return f"{super().extra_repr()}{exact}{scale}{matmul}"

    def _plain_shell(self) -> nn.Linear:
        shell = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        shell.bias = self.bias
        return shell

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        multiply = products.LINEAR[self.number, self.reader, self.quantized_matmul]
        operands = products.Operands(
            self.weight, self.scale, self.bias, self.compute_dtype, self.input_scale, self.group
        )
        if products.needs_gradient(input, self.bias):
            return products.with_gradient(multiply, input, operands)
        return multiply(input, operands)


class HSWQConv2d(HSWQLayer, nn.Conv2d):
    """`nn.Conv2d` with an FP8 weight [out, in / groups, kH, kW]; the bias is in `compute_dtype`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        scales: int,
        compute_dtype: torch.dtype,
        device: torch.device | str | None = None,
    ):
        geometry = in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        super().__init__(*geometry, device="meta", dtype=compute_dtype)
        self._hold_codes(scales, compute_dtype, device)

    @classmethod
    def like(cls, layer: nn.Conv2d, *, scales: int, compute_dtype: torch.dtype) -> "HSWQConv2d":
        """An empty layer on the meta device, of `layer`'s shape."""
        return cls(**_geometry(layer), scales=scales, compute_dtype=compute_dtype, device="meta")

    def _plain_shell(self) -> nn.Conv2d:
        shell = nn.Conv2d(**_geometry(self), device="meta")
        shell.bias = self.bias
        return shell

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not products.needs_gradient(input, self.bias):
            expanded = self.expanded(self.weight, self.scale, self.compute_dtype, transient=True)
            convolved: torch.Tensor = self._conv_forward(input, expanded, self.bias)
            return convolved
        padding = self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=mode), (0, 0)
        geometry = self.stride, padding, self.dilation, self.groups
        operands = products.Operands(self.weight, self.scale, self.bias, self.compute_dtype, geometry=geometry)
        return products.with_gradient(products.convolved, input, operands)


class _Geometry(TypedDict):
    """Arguments of `nn.Conv2d` that fix its shapes."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    bias: bool
    padding_mode: PaddingMode


def _geometry(conv: nn.Conv2d) -> _Geometry:
    return {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": _pair(conv.kernel_size),
        "stride": _pair(conv.stride),
        "padding": conv.padding if isinstance(conv.padding, str) else _pair(conv.padding),
        "dilation": _pair(conv.dilation),
        "groups": conv.groups,
        "bias": conv.bias is not None,
        "padding_mode": conv.padding_mode,
    }


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    height, width = sizes
    return height, width


def quantized_twin(
    layer: nn.Module, *, scales: int, compute_dtype: torch.dtype, product: Product = _UNMARKED
) -> HSWQLayer:
    """The empty quantized layer, on the meta device, that replaces `layer` (nn.Linear or nn.Conv2d).

    Args:
        scales: number of its scales: 0, 1, or the number of rows of its weight.
        product: how to multiply by it; a convolution is always FP8 and computed in full precision.

    Raises:
        TypeError: any other class of layer.
    """
    if isinstance(layer, nn.Linear):
        return HSWQLinear.like(layer, scales=scales, compute_dtype=compute_dtype, product=product)
    if isinstance(layer, nn.Conv2d):
        return HSWQConv2d.like(layer, scales=scales, compute_dtype=compute_dtype)
    raise TypeError(f"{type(layer).__name__} has no quantized twin; only nn.Linear and nn.Conv2d have")


def dequantize_(model: nn.Module) -> nn.Module:
    """Replace every quantized layer of `model`, in place, by the plain layer with `weight · scale`; returns `model`.

    The plain weights are in the `compute_dtype` of the layers that they replace.

    Raises:
        HSWQError: a LoRA is on the layers, or their weights are offloaded; the model is unchanged.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, HSWQLayer)}
    if any(name.endswith("base_layer") for name in layers):
        raise HSWQError("a LoRA is on the model: call unload_lora_weights() (what was fused stays) before dequantizing")
    if any(layer.weight.is_meta for layer in layers.values()):
        raise HSWQError("the weights are offloaded: remove the offloading hooks before dequantizing")
    for name, layer in layers.items():
        model.set_submodule(name, layer.plain())
    return model


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers of `model`, each tensor counted once."""
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return sum(t.nbytes for t in tensors.values())
