"""The number formats of quantized weights: what each of them has."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..formats import Number
from . import fp8, int8


@dataclass(frozen=True)
class NumberFormat:
    """How the values of a weight are stored.

    Attributes:
        dtype: of the codes.
        largest: magnitude of a code.
        cast: values of any shape and float dtype -> the nearest codes; what is too large becomes the largest.
        since: compute capability of the first NVIDIA GPUs that multiply in it.
    """

    dtype: torch.dtype
    largest: float
    cast: Callable[[torch.Tensor], torch.Tensor]
    since: tuple[int, int]

    def can_multiply(self, device: torch.device) -> bool:
        """Whether `device` multiplies in it: an NVIDIA GPU of that capability, and the CPU."""
        if device.type == "cuda":
            return torch.version.hip is None and torch.cuda.get_device_capability(device) >= self.since
        return device.type == "cpu"


NUMBERS = {
    Number.FP8: NumberFormat(fp8.FP8, fp8.FP8_MAX, fp8.saturating_cast, since=(8, 9)),  # Ada
    Number.INT8: NumberFormat(int8.INT8, int8.INT8_MAX, int8.saturating_cast, since=(7, 5)),  # Turing
}


def is_quantized(dtype: torch.dtype) -> bool:
    """Whether tensors of `dtype` are codes."""
    return any(number.dtype == dtype for number in NUMBERS.values())


def dequantize(
    codes: torch.Tensor,
    scale: torch.Tensor | None,
    dtype: torch.dtype,
    group: int | None = None,
    *,
    transient: bool = False,
) -> torch.Tensor:
    """What `codes` stand for, in `dtype`: a new tensor of their shape.

    Args:
        codes: of any number format; those of full precision are values already.
        scale: None (1), or float32 with one value, or one for each row.
        group: inputs that are rotated together, see :mod:`.int8`.
        transient: the next such call of this thread may overwrite the result.
    """
    if codes.dtype != int8.INT8:
        return fp8.dequantize(codes, scale, dtype, transient=transient)
    one = torch.ones(1, device=codes.device) if scale is None else scale
    return int8.dequantize(codes, one, dtype, group)


def quantize(values: torch.Tensor, number: Number, scales: int, group: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of `values`, rounded to nearest, and their scales: float32 [scales].

    Args:
        values: [N, ...], any float dtype.
        scales: 1 or N.
        group: inputs to rotate together, of INT8.
    """
    if number is Number.FP8:
        scale = fp8.fresh_scale(values, scales)
        return fp8.quantize(values, scale), scale
    rotated = int8.rotate(values.float(), group)
    scale = fp8.fresh_scale(rotated, scales, int8.INT8_MAX)
    return int8.quantize(rotated, scale), scale
