"""Linear and Conv2d layers that hold their weight in FP8 and compute in a wider dtype.

The weight is expanded for the length of one call, one layer at a time, and expanded anew in the backward pass, so a
model never holds a second copy of itself, not even while a LoRA is trained on it. They are subclasses of
`nn.Linear` and `nn.Conv2d`, because offloading, PEFT and group hooks look for those.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import DeviceError, HSWQError
from ..formats import SCALE
from . import fp8

SCALE_BUFFER = SCALE.removeprefix(".")


class HSWQLayer:
    """What both layers share: an FP8 `weight`, a float32 `scale` or none, and a `compute_dtype`.

    `weight`: FP8, frozen, of the shape the plain layer has. `scale`: None, or a float32 buffer [1] or [N], one
    value for each index of the weight's first dimension. `compute_dtype`: the dtype of the expanded weight, of the
    bias, and (PEFT reads this attribute) of adapters put on the layer. `fp8_matmul`: multiply in FP8.
    """

    fp8_matmul = False

    def reset_parameters(self) -> None:
        """Nothing: weights come from a file, and drawing random ones first takes longer than reading it."""

    def _hold_fp8(self, scales: int, compute_dtype: torch.dtype, device) -> None:
        self.compute_dtype = compute_dtype
        self.weight = nn.Parameter(torch.empty(self.weight.shape, dtype=fp8.FP8, device=device), requires_grad=False)
        scale = torch.empty(scales, dtype=torch.float32, device=device) if scales else None
        self.register_buffer(SCALE_BUFFER, scale)

    def dequantized_weight(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight in `dtype` (None: `compute_dtype`), a new tensor of the plain layer's shape."""
        return fp8.dequantize(self.weight, self.scale, dtype or self.compute_dtype)

    @torch.no_grad()
    def requantize(self, values: torch.Tensor) -> None:
        """Hold `values`, of the weight's shape, instead: rounded to nearest, with as many fresh scales as before."""
        scale = None if self.scale is None else fp8.fresh_scale(values, self.scale.numel())
        # In place, because offloading holds on to the tensors; it may keep them on two devices.
        self.weight.data.copy_(fp8.quantize(values, scale))
        if scale is not None:
            self.scale.copy_(scale)

    def plain(self) -> nn.Module:
        """The nn.Linear or nn.Conv2d that computes the same with a plain weight."""
        layer = self._plain_shell()
        layer.weight = nn.Parameter(self.dequantized_weight(), requires_grad=False)
        layer.bias = self.bias
        return layer.train(self.training)

    def _apply(self, fn, recurse=True):
        # `.to(dtype)`, `.half()` and the like change what we compute in, never the stored FP8 bytes or their scale.
        stored = [tensor for tensor in (self.weight, self.scale) if tensor is not None]

        def keep_stored(tensor):
            applied = fn(tensor)
            if any(tensor is one for one in stored) and applied.dtype != tensor.dtype:
                return tensor.to(applied.device)
            return applied

        super()._apply(keep_stored, recurse)
        # `fn` is opaque: an empty tensor tells which dtype it goes to.
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype, device=stored[0].device)).dtype
        return self

    def __getstate__(self) -> dict:
        # pickle cannot take float8 tensors (torch 2.13), but their bytes.
        state = self.__dict__.copy()
        state["_parameters"] = {**self._parameters, "weight": self.weight.data.view(torch.uint8)}
        return state

    def __setstate__(self, state: dict) -> None:
        codes = state["_parameters"]["weight"].view(fp8.FP8)
        state["_parameters"]["weight"] = nn.Parameter(codes, requires_grad=False)
        super().__setstate__(state)

    def extra_repr(self) -> str:
        scale = "none" if self.scale is None else list(self.scale.shape)
        matmul = ", fp8_matmul" if self.fp8_matmul else ""
        return (
            f"{super().extra_repr()}, weight=float8_e4m3fn, scale={scale}, compute_dtype={self.compute_dtype}{matmul}"
        )


class HSWQLinear(HSWQLayer, nn.Linear):
    """`nn.Linear` with an FP8 weight [out_features, in_features]; the bias stays in `compute_dtype`.

    With `fp8_matmul` the input is rounded to FP8 as well (one scale a row) and multiplied on the tensor cores.
    """

    def __init__(self, in_features, out_features, bias=True, *, scales, compute_dtype, device=None):
        super().__init__(in_features, out_features, bias=bias, device="meta", dtype=compute_dtype)
        self._hold_fp8(scales, compute_dtype, device)

    @classmethod
    def like(cls, layer: nn.Linear, *, scales: int, compute_dtype: torch.dtype) -> "HSWQLinear":
        """An empty layer on the meta device, of `layer`'s shape."""
        has_bias = layer.bias is not None
        return cls(
            layer.in_features, layer.out_features, has_bias, scales=scales, compute_dtype=compute_dtype, device="meta"
        )

    def _plain_shell(self) -> nn.Linear:
        return nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        multiply = _multiply if self.fp8_matmul else _expand_and_multiply
        arguments = input, self.weight, self.scale, self.bias, self.compute_dtype
        if torch.is_grad_enabled() and (input.requires_grad or _is_trained(self.bias)):
            return _Product.apply(multiply, (), *arguments)
        return multiply(*arguments)


class HSWQConv2d(HSWQLayer, nn.Conv2d):
    """`nn.Conv2d` with an FP8 weight [out, in / groups, kH, kW]; the bias stays in `compute_dtype`."""

    def __init__(self, *args, scales, compute_dtype, device=None, **kwargs):
        super().__init__(*args, **kwargs, device="meta", dtype=compute_dtype)
        self._hold_fp8(scales, compute_dtype, device)

    @classmethod
    def like(cls, layer: nn.Conv2d, *, scales: int, compute_dtype: torch.dtype) -> "HSWQConv2d":
        """An empty layer on the meta device, of `layer`'s shape."""
        return cls(**_geometry(layer), scales=scales, compute_dtype=compute_dtype, device="meta")

    def _plain_shell(self) -> nn.Conv2d:
        return nn.Conv2d(**_geometry(self), device="meta")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not (torch.is_grad_enabled() and (input.requires_grad or _is_trained(self.bias))):
            expanded = fp8.dequantize(self.weight, self.scale, self.compute_dtype, transient=True)
            return self._conv_forward(input, expanded, self.bias)
        padding = self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=mode), (0, 0)
        geometry = self.stride, padding, self.dilation, self.groups
        return _Product.apply(
            _expand_and_convolve, geometry, input, self.weight, self.scale, self.bias, self.compute_dtype
        )


def _expand_and_multiply(input, weight, scale, bias, dtype):
    return F.linear(input, fp8.dequantize(weight, scale, dtype, transient=True), bias)


def _expand_and_convolve(input, weight, scale, bias, dtype, *geometry):
    return F.conv2d(input, fp8.dequantize(weight, scale, dtype, transient=True), bias, *geometry)


def _multiply(input, weight, scale, bias, dtype):
    if not fp8.can_matmul(weight.device):
        raise DeviceError(f"{weight.device} has no FP8 matrix product; load the model without fp8_matmul")
    product = fp8.matmul(input, weight, scale).to(dtype)
    return product if bias is None else product + bias


class _Product(torch.autograd.Function):
    """A product that keeps the FP8 weight for the backward pass instead of the expanded one.

    `geometry`: stride, padding, dilation, groups of a convolution; () for a linear layer.
    """

    @staticmethod
    def forward(ctx, multiply, geometry, input, weight, scale, bias, dtype):
        ctx.save_for_backward(weight, scale)
        ctx.geometry, ctx.input_shape = geometry, input.shape
        return multiply(input, weight, scale, bias, dtype, *geometry)

    @staticmethod
    def backward(ctx, gradient):
        weight, scale = ctx.saved_tensors
        _, _, input_needed, _, _, bias_needed, _ = ctx.needs_input_grad
        input = bias = None
        if input_needed:
            expanded = fp8.dequantize(weight, scale, gradient.dtype, transient=not torch.is_grad_enabled())
            if ctx.geometry:
                input = torch.nn.grad.conv2d_input(ctx.input_shape, expanded, gradient, *ctx.geometry)
            else:
                input = gradient @ expanded
        if bias_needed:
            bias = gradient.sum((0, 2, 3)) if ctx.geometry else gradient.reshape(-1, gradient.shape[-1]).sum(0)
        return None, None, input, None, None, bias, None


def _is_trained(bias: torch.Tensor | None) -> bool:
    return bias is not None and bias.requires_grad


def _geometry(conv: nn.Conv2d) -> dict:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(conv, name) for name in names} | {"bias": conv.bias is not None}


def quantized_twin(layer: nn.Module, *, scales: int, compute_dtype: torch.dtype) -> HSWQLayer:
    """The empty FP8 layer that takes the place of `layer` (nn.Linear or nn.Conv2d).

    `scales`: how many it holds: 0, 1, or one for each row of its weight.

    Raises:
        TypeError: for any other kind of layer.
    """
    for plain, quantized in ((nn.Linear, HSWQLinear), (nn.Conv2d, HSWQConv2d)):
        if isinstance(layer, plain):
            return quantized.like(layer, scales=scales, compute_dtype=compute_dtype)
    raise TypeError(f"{type(layer).__name__} has no FP8 twin; only nn.Linear and nn.Conv2d have")


def dequantize_(model: nn.Module) -> nn.Module:
    """Exchange every FP8 layer of `model`, in place, for the plain layer with `weight · scale`; returns it.

    The plain layers hold their weights in the `compute_dtype` of the layers they replace.

    Raises:
        HSWQError: adapters are on the layers, or their weights are elsewhere; the model is as it was.
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
    """Bytes that the parameters and buffers of `model` take, each tensor counted once."""
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return sum(t.nbytes for t in tensors.values())
