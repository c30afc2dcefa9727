"""The products of quantized layers: exact or in their number format, in our arithmetic or in ComfyUI's, with a gradient
for their input.

Each takes (input, weight, scale, bias, dtype, ...), as the attributes of :class:`.modules.HSWQLayer`, and returns
`input · weight + bias` in `dtype`. The gradient is that of the exact product whatever was computed. In INT8 both
arithmetics are ComfyUI's.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_input

from ..errors import DeviceError
from ..formats import Number, Reader
from . import fp8, int8
from .numbers import dequantize


def convolved(
    input: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    *geometry: Any,
) -> torch.Tensor:
    """Exact. `geometry`: stride, padding, dilation and groups."""
    return F.conv2d(input, fp8.dequantize(weight, scale, dtype, transient=True), bias, *geometry)


def _expanded(
    input: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    input_scale: torch.Tensor | None,
    group: int | None = None,
) -> torch.Tensor:
    """Exact: the input is not rounded."""
    return F.linear(input, dequantize(weight, scale, dtype, group, transient=True), bias)


def _expanded_as_comfyui(
    input: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    input_scale: torch.Tensor | None,
    group: int | None = None,
) -> torch.Tensor:
    """The input is not rounded; the weight is off by what its scale is in `dtype`."""
    return F.linear(input, fp8.comfyui_weight(weight, scale, dtype), bias)


def _multiplied(
    input: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    input_scale: torch.Tensor | None,
    group: int | None = None,
) -> torch.Tensor:
    """In FP8. `input_scale`: one value; None: one is found for each row of the input."""
    _check_can_matmul(weight.device)
    if input_scale is not None:
        return fp8.matmul(fp8.quantize_input(input, input_scale), weight, scale, input_scale, bias, dtype)
    codes, row_scale = fp8.quantize_rows(input)
    return fp8.matmul(codes, weight, scale, row_scale, bias, dtype)


def _multiplied_as_comfyui(
    input: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    input_scale: torch.Tensor | None,
    group: int | None = None,
) -> torch.Tensor:
    """In FP8. `input_scale`: one value; None: 1. Where its product is refused, or this device has none, both factors
    are expanded instead."""
    input = input.to(dtype)
    codes = fp8.quantize_input(input, input_scale)
    possible = fp8.can_matmul(weight.device) and fp8.fits(weight) and (scale is None or scale.numel() == 1)
    if possible and (bias is None or fp8.adds_bias(weight.device, dtype)):
        return fp8.matmul(codes, weight, scale, input_scale, bias, dtype)
    rounded = fp8.comfyui_weight(codes.reshape(1, -1), input_scale, dtype).reshape(-1, input.shape[-1])
    product = F.linear(rounded, fp8.comfyui_weight(weight, scale, dtype), bias)
    return product.reshape(*input.shape[:-1], len(weight))


def _multiplied_in_int8(
    input: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    input_scale: torch.Tensor | None,
    group: int | None = None,
) -> torch.Tensor:
    """In INT8, with one scale for each row of the input."""
    if not int8.can_multiply(weight.device):
        raise DeviceError(f"{weight.device} has no INT8 matrix product; load the model without quantized_matmul")
    assert scale is not None, "an INT8 weight has a scale"
    return int8.multiply(input.to(dtype), weight, scale, bias, dtype, group)


def _check_can_matmul(device: torch.device) -> None:
    """Check that `device` multiplies in FP8.

    Raises:
        DeviceError: it does not.
    """
    if not fp8.can_matmul(device):
        raise DeviceError(f"{device} has no FP8 matrix product; load the model without quantized_matmul")


Product = Callable[..., torch.Tensor]

LINEAR: dict[tuple[Number, Reader, bool], Product] = {
    (Number.FP8, Reader.HSWQ, False): _expanded,
    (Number.FP8, Reader.HSWQ, True): _multiplied,
    (Number.FP8, Reader.COMFYUI, False): _expanded_as_comfyui,
    (Number.FP8, Reader.COMFYUI, True): _multiplied_as_comfyui,
    **{(Number.INT8, reader, False): _expanded for reader in Reader},
    **{(Number.INT8, reader, True): _multiplied_in_int8 for reader in Reader},
}
"""The product of a linear layer by its `number`, `reader` and `quantized_matmul`; the last arguments are its
`input_scale` and its `group`."""


class _Differentiable(torch.autograd.Function):
    """A product that saves the quantized weight for the backward pass instead of the expanded one.

    `more`: what the product takes after the dtype. `convolves`: whether that is a geometry.
    """

    @staticmethod
    def forward(
        ctx: Any,
        multiply: Product,
        convolves: bool,
        input: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        *more: Any,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.geometry, ctx.input_shape, ctx.inputs = more if convolves else (), input.shape, 7 + len(more)
        ctx.group = None if convolves else more[1]
        return multiply(input, weight, scale, bias, dtype, *more)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        _, _, input_needed, _, _, bias_needed, *_ = ctx.needs_input_grad
        input: torch.Tensor | None = None
        bias: torch.Tensor | None = None
        if input_needed:
            expanded = dequantize(weight, scale, gradient.dtype, ctx.group, transient=not torch.is_grad_enabled())
            if ctx.geometry:
                input = conv2d_input(ctx.input_shape, expanded, gradient, *ctx.geometry)
            else:
                input = gradient @ expanded
        if bias_needed:
            bias = gradient.sum((0, 2, 3)) if ctx.geometry else gradient.reshape(-1, gradient.shape[-1]).sum(0)
        return None, None, input, None, None, bias, *[None] * (ctx.inputs - 6)


def with_gradient(
    multiply: Product,
    input: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    geometry: tuple[Any, ...] = (),
    input_scale: torch.Tensor | None = None,
    group: int | None = None,
) -> torch.Tensor:
    """What `multiply` returns, with gradients for `input` and `bias`.

    Args:
        geometry: stride, padding, dilation and groups of a convolution; () for a linear layer.
        input_scale, group: those of a linear layer.
    """
    product: torch.Tensor = _Differentiable.apply(  # type: ignore[no-untyped-call]  # torch has no types here
        multiply, bool(geometry), input, weight, scale, bias, dtype, *(geometry or (input_scale, group))
    )
    return product


def needs_gradient(input: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether one of the two is being trained."""
    return torch.is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad))
