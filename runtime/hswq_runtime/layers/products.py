"""The products of quantized layers: exact or in their number format, in our arithmetic or in ComfyUI's, with a gradient
for their input.

The gradient is that of the exact product whatever was computed. In INT8 both arithmetics are ComfyUI's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_input

from ..errors import DeviceError
from ..formats import Number, Reader
from . import fp8, int8
from .numbers import NUMBERS, dequantize


class Operands(NamedTuple):
    """What an input is multiplied with: attributes of :class:`.modules.HSWQLayer`, and of a convolution its stride,
    padding, dilation and groups."""

    weight: torch.Tensor
    scale: torch.Tensor | None
    bias: torch.Tensor | None
    dtype: torch.dtype
    input_scale: torch.Tensor | None = None
    group: int | None = None
    geometry: tuple[Any, ...] = ()


Multiply = Callable[[torch.Tensor, Operands], torch.Tensor]
"""Input and operands -> `input · weight + bias`, in the operands' dtype."""


def convolved(input: torch.Tensor, by: Operands) -> torch.Tensor:
    """Exact."""
    return F.conv2d(input, fp8.dequantize(by.weight, by.scale, by.dtype, transient=True), by.bias, *by.geometry)


def _expanded(input: torch.Tensor, by: Operands) -> torch.Tensor:
    """Exact: the input is not rounded."""
    return F.linear(input, dequantize(by.weight, by.scale, by.dtype, by.group, transient=True), by.bias)


def _expanded_as_comfyui(input: torch.Tensor, by: Operands) -> torch.Tensor:
    """The input is not rounded; the weight is off by what its scale is in the dtype."""
    return F.linear(input, fp8.comfyui_weight(by.weight, by.scale, by.dtype), by.bias)


def _multiplied(input: torch.Tensor, by: Operands) -> torch.Tensor:
    """In FP8. The input's scale is one value; None: one is found for each row of the input."""
    _check_can_multiply(Number.FP8, by.weight.device)
    if by.input_scale is not None:
        codes = fp8.quantize_input(input, by.input_scale)
        return fp8.matmul(codes, by.weight, by.scale, by.input_scale, by.bias, by.dtype)
    codes, row_scale = fp8.quantize_rows(input)
    return fp8.matmul(codes, by.weight, by.scale, row_scale, by.bias, by.dtype)


def _multiplied_as_comfyui(input: torch.Tensor, by: Operands) -> torch.Tensor:
    """In FP8. The input's scale is one value; None: 1. Where its product is refused, or this device has none, both
    factors are expanded instead."""
    weight, scale, bias, dtype = by.weight, by.scale, by.bias, by.dtype
    input = input.to(dtype)
    codes = fp8.quantize_input(input, by.input_scale)
    possible = NUMBERS[Number.FP8].can_multiply(weight.device) and fp8.fits(weight)
    if possible and (scale is None or scale.numel() == 1) and (bias is None or fp8.adds_bias(weight.device, dtype)):
        return fp8.matmul(codes, weight, scale, by.input_scale, bias, dtype)
    rounded = fp8.comfyui_weight(codes.reshape(1, -1), by.input_scale, dtype).reshape(-1, input.shape[-1])
    product = F.linear(rounded, fp8.comfyui_weight(weight, scale, dtype), bias)
    return product.reshape(*input.shape[:-1], len(weight))


def _multiplied_in_int8(input: torch.Tensor, by: Operands) -> torch.Tensor:
    """In INT8, with one scale for each row of the input."""
    _check_can_multiply(Number.INT8, by.weight.device)
    assert by.scale is not None, "an INT8 weight has a scale"
    return int8.multiply(input.to(by.dtype), by.weight, by.scale, by.bias, by.dtype, by.group)


def _check_can_multiply(number: Number, device: torch.device) -> None:
    """Check that `device` multiplies in a number format.

    Raises:
        DeviceError: it does not.
    """
    if not NUMBERS[number].can_multiply(device):
        raise DeviceError(f"{device} has no {number.name} matrix product; load the model without quantized_matmul")


LINEAR: dict[tuple[Number, Reader, bool], Multiply] = {
    (Number.FP8, Reader.HSWQ, False): _expanded,
    (Number.FP8, Reader.HSWQ, True): _multiplied,
    (Number.FP8, Reader.COMFYUI, False): _expanded_as_comfyui,
    (Number.FP8, Reader.COMFYUI, True): _multiplied_as_comfyui,
    **{(Number.INT8, reader, False): _expanded for reader in Reader},
    **{(Number.INT8, reader, True): _multiplied_in_int8 for reader in Reader},
}
"""The product of a linear layer by its `number`, `reader` and `quantized_matmul`."""


class _Differentiable(torch.autograd.Function):
    """A product that saves the quantized weight for the backward pass instead of the expanded one. `operands`: those of
    :class:`Operands`, one by one, since autograd looks for tensors among its arguments alone."""

    @staticmethod
    def forward(ctx: Any, multiply: Multiply, input: torch.Tensor, *operands: Any) -> torch.Tensor:
        by = Operands(*operands)
        ctx.save_for_backward(by.weight, by.scale)
        ctx.geometry, ctx.group, ctx.input_shape = by.geometry, by.group, input.shape
        return multiply(input, by)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        _, input_needed, _, _, bias_needed, *others = ctx.needs_input_grad
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
        return None, input, None, None, bias, *[None] * len(others)


def with_gradient(multiply: Multiply, input: torch.Tensor, operands: Operands) -> torch.Tensor:
    """What `multiply` returns, with gradients for `input` and the bias."""
    product: torch.Tensor = _Differentiable.apply(multiply, input, *operands)  # type: ignore[no-untyped-call]
    return product


def needs_gradient(input: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether one of the two is being trained."""
    return torch.is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad))
