"""Linear and Conv2d layers that hold their weight in FP8 and compute in a wider dtype.

The weight is expanded for one call, one layer at a time, and again in the backward pass. So a model never holds a
second copy of its weights, not even while a LoRA is trained on it. The layers are subclasses of `nn.Linear` and
`nn.Conv2d`, because offloading, PEFT and group hooks look for those.
"""

from collections.abc import Callable
from typing import Any, Literal, Self, TypedDict

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.grad import conv2d_input

from ..errors import DeviceError, HSWQError
from ..formats import INPUT_SCALE, SCALE, UNSAID, Product, Reader
from . import fp8

SCALE_BUFFER = SCALE.removeprefix(".")
INPUT_SCALE_BUFFER = INPUT_SCALE.removeprefix(".")
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class HSWQLayer(nn.Module):
    """The common part of both layers: an FP8 weight with its scale, and the dtype to compute in.

    Attributes:
        weight: FP8, frozen, of the plain layer's shape.
        scale: None, or a float32 buffer [1] or [N], one value for each row (index of the weight's first dimension).
        compute_dtype: dtype of the expanded weight and of the bias; PEFT gives adapters on the layer this dtype.
        exact: the file wants no product in FP8.
        input_scale: None, or a float32 buffer [1], the scale at which the input is rounded for a product in FP8.
        fp8_matmul: multiply in FP8.
        reader: whose arithmetic it is, to the bit.
    """

    weight: torch.Tensor
    scale: torch.Tensor | None
    input_scale: torch.Tensor | None
    compute_dtype: torch.dtype
    exact = False
    fp8_matmul = False
    reader = Reader.HSWQ

    def reset_parameters(self) -> None:
        """Does nothing: weights come from a file, and drawing random ones takes longer than reading it."""

    def _hold_fp8(
        self, scales: int, compute_dtype: torch.dtype, device: torch.device | str | None, product: Product = UNSAID
    ) -> None:
        self.compute_dtype, self.exact = compute_dtype, product.exact
        self.weight = nn.Parameter(torch.empty(self.weight.shape, dtype=fp8.FP8, device=device), requires_grad=False)
        scale = torch.empty(scales, dtype=torch.float32, device=device) if scales else None
        self.register_buffer(SCALE_BUFFER, scale)
        inputs = None if product.input_scale is None else torch.full((1,), product.input_scale, device=device)
        self.register_buffer(INPUT_SCALE_BUFFER, inputs)

    def dequantized_weight(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight in `dtype` (None: `compute_dtype`), a new tensor of the plain layer's shape."""
        return fp8.dequantize(self.weight, self.scale, dtype or self.compute_dtype)

    @torch.no_grad()
    def requantize(self, values: torch.Tensor) -> None:
        """Replace the weight by `values`, of its shape: rounded to nearest, with as many fresh scales as before."""
        # In place, because offloading keeps references to the tensors, perhaps on two devices.
        if self.scale is None:
            self.weight.data.copy_(fp8.quantize(values))
            return
        scale = fp8.fresh_scale(values, self.scale.numel())
        self.weight.data.copy_(fp8.quantize(values, scale))
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
        # `.to(dtype)`, `.half()` and the like change `compute_dtype`, never the stored FP8 bytes or their scale.
        stored = [tensor for tensor in (self.weight, self.scale, self.input_scale) if tensor is not None]

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
        # pickle cannot store float8 tensors (torch 2.13), so their bytes are stored.
        state = self.__dict__.copy()
        state["_parameters"] = {**self._parameters, "weight": self.weight.data.view(torch.uint8)}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        codes = state["_parameters"]["weight"].view(fp8.FP8)
        state["_parameters"]["weight"] = nn.Parameter(codes, requires_grad=False)
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch has no types here

    def extra_repr(self) -> str:
        scale = "none" if self.scale is None else list(self.scale.shape)
        matmul = ", fp8_matmul" if self.fp8_matmul else ", exact" if self.exact else ""
        return (
            f"{super().extra_repr()}, weight=float8_e4m3fn, scale={scale}, compute_dtype={self.compute_dtype}{matmul}"
        )


class HSWQLinear(HSWQLayer, nn.Linear):
    """`nn.Linear` with an FP8 weight [out_features, in_features]; the bias is in `compute_dtype`.

    With `fp8_matmul` the input is rounded to FP8 as well, at `input_scale` or else with one scale a row, and multiplied
    on the tensor cores.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        scales: int,
        compute_dtype: torch.dtype,
        product: Product = UNSAID,
        device: torch.device | str | None = None,
    ):
        super().__init__(in_features, out_features, bias=bias, device="meta", dtype=compute_dtype)
        self._hold_fp8(scales, compute_dtype, device, product)

    @classmethod
    def like(
        cls, layer: nn.Linear, *, scales: int, compute_dtype: torch.dtype, product: Product = UNSAID
    ) -> "HSWQLinear":
        """An empty layer on the meta device, of `layer`'s shape."""
        return cls(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            scales=scales,
            compute_dtype=compute_dtype,
            product=product,
            device="meta",
        )

    def _plain_shell(self) -> nn.Linear:
        shell = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        shell.bias = self.bias
        return shell

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        multiply: Callable[..., torch.Tensor] = _expand_and_multiply
        options: tuple[Any, ...] = ()
        if self.reader is Reader.COMFYUI:
            multiply, options = _multiply_as_comfyui, (self.input_scale, self.fp8_matmul)
        elif self.fp8_matmul:
            multiply, options = _multiply, (self.input_scale,)
        if torch.is_grad_enabled() and (input.requires_grad or _is_trained(self.bias)):
            return _with_gradient(multiply, options, (), input, self)
        return multiply(input, self.weight, self.scale, self.bias, self.compute_dtype, *options)


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
        self._hold_fp8(scales, compute_dtype, device)

    @classmethod
    def like(cls, layer: nn.Conv2d, *, scales: int, compute_dtype: torch.dtype) -> "HSWQConv2d":
        """An empty layer on the meta device, of `layer`'s shape."""
        return cls(**_geometry(layer), scales=scales, compute_dtype=compute_dtype, device="meta")

    def _plain_shell(self) -> nn.Conv2d:
        shell = nn.Conv2d(**_geometry(self), device="meta")
        shell.bias = self.bias
        return shell

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not (torch.is_grad_enabled() and (input.requires_grad or _is_trained(self.bias))):
            expanded = fp8.dequantize(self.weight, self.scale, self.compute_dtype, transient=True)
            convolved: torch.Tensor = self._conv_forward(input, expanded, self.bias)
            return convolved
        padding = self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=mode), (0, 0)
        return _with_gradient(_expand_and_multiply, (), (self.stride, padding, self.dilation, self.groups), input, self)


def _expand_and_multiply(
    input: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    *geometry: Any,
) -> torch.Tensor:
    """`geometry`: as of :class:`_Product`."""
    expanded = fp8.dequantize(weight, scale, dtype, transient=True)
    return F.conv2d(input, expanded, bias, *geometry) if geometry else F.linear(input, expanded, bias)


def _multiply(
    input: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    input_scale: torch.Tensor | None,
) -> torch.Tensor:
    if not fp8.can_matmul(weight.device):
        raise DeviceError(f"{weight.device} has no FP8 matrix product; load the model without fp8_matmul")
    return fp8.matmul(input, weight, scale, bias, dtype, input_scale)


def _multiply_as_comfyui(
    input: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    input_scale: torch.Tensor | None,
    rounds: bool,
) -> torch.Tensor:
    """What ComfyUI computes on a GPU with FP8 arithmetic, on any device. rounds: the input as well; where the hardware
    cannot multiply the two, both are expanded, as the weight alone is otherwise: in `dtype`, also the scale."""
    one = fp8.unit_scale(weight.device)
    at, of_weight = (one if s is None else s for s in (input_scale, scale))
    if rounds and fp8.can_matmul(weight.device) and not any(size % fp8.MULTIPLE for size in weight.shape):
        return fp8.matmul(input, weight, of_weight, bias, dtype, at)
    if rounds:
        input = fp8.quantize_input(input, at).to(dtype) * at.to(dtype)
    return F.linear(input, weight.to(dtype) * of_weight.to(dtype), bias)


class _Product(torch.autograd.Function):
    """A product that saves the FP8 weight for the backward pass instead of the expanded one.

    `options`: of a linear layer's `multiply`. `geometry`: stride, padding, dilation and groups of a convolution; () for
    a linear layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        multiply: Callable[..., torch.Tensor],
        options: tuple[Any, ...],
        geometry: tuple[Any, ...],
        input: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.geometry, ctx.input_shape = geometry, input.shape
        return multiply(input, weight, scale, bias, dtype, *options, *geometry)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        _, _, _, input_needed, _, _, bias_needed, _ = ctx.needs_input_grad
        input: torch.Tensor | None = None
        bias: torch.Tensor | None = None
        if input_needed:
            expanded = fp8.dequantize(weight, scale, gradient.dtype, transient=not torch.is_grad_enabled())
            if ctx.geometry:
                input = conv2d_input(ctx.input_shape, expanded, gradient, *ctx.geometry)
            else:
                input = gradient @ expanded
        if bias_needed:
            bias = gradient.sum((0, 2, 3)) if ctx.geometry else gradient.reshape(-1, gradient.shape[-1]).sum(0)
        return None, None, None, input, None, None, bias, None


def _with_gradient(
    multiply: Callable[..., torch.Tensor],
    options: tuple[Any, ...],
    geometry: tuple[Any, ...],
    input: torch.Tensor,
    layer: HSWQLinear | HSWQConv2d,
) -> torch.Tensor:
    product: torch.Tensor = _Product.apply(  # type: ignore[no-untyped-call]  # torch has no types here
        multiply, options, geometry, input, layer.weight, layer.scale, layer.bias, layer.compute_dtype
    )
    return product


def _is_trained(bias: torch.Tensor | None) -> bool:
    return bias is not None and bias.requires_grad


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
    layer: nn.Module, *, scales: int, compute_dtype: torch.dtype, product: Product = UNSAID
) -> HSWQLayer:
    """The empty FP8 layer, on the meta device, that replaces `layer` (nn.Linear or nn.Conv2d).

    `scales`: number of its scales: 0, 1, or the number of rows of its weight. `product`: of a linear layer.

    Raises:
        TypeError: any other class of layer.
    """
    if isinstance(layer, nn.Linear):
        return HSWQLinear.like(layer, scales=scales, compute_dtype=compute_dtype, product=product)
    if isinstance(layer, nn.Conv2d):
        return HSWQConv2d.like(layer, scales=scales, compute_dtype=compute_dtype)
    raise TypeError(f"{type(layer).__name__} has no FP8 twin; only nn.Linear and nn.Conv2d have")


def dequantize_(model: nn.Module) -> nn.Module:
    """Replace every FP8 layer of `model`, in place, by the plain layer with `weight · scale`; returns `model`.

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
