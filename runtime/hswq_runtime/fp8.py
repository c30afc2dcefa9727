"""FP8 as `torch.float8_e4m3fn`: its grid, the cast to it and the way back.

E4M3FN has 256 codes: 4 exponent bits, 3 mantissa bits, no infinities, two NaN. Largest value 448, smallest
normal 2**-6, subnormal step 2**-9 (Micikevicius et al., "FP8 formats for deep learning", 2022). All limits
here are read from torch, none is typed in. `torch` saturates nothing: 449 would become NaN, hence
:func:`saturating_cast`.
"""

import torch

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max


def grid() -> torch.Tensor:
    """All finite FP8 values in ascending order, float32, shape [253] (the two zeros are one entry).

    Taken from the 256 byte values themselves, so it is the grid that the hardware has.
    """
    values = torch.arange(256, dtype=torch.uint8).view(FP8).to(torch.float32)
    return torch.unique(values[values.isfinite()])


def saturating_cast(values: torch.Tensor) -> torch.Tensor:
    """Round to the nearest FP8 value, ties to even; beyond ±448 to ±448. Any shape; NaN stays NaN."""
    return values.clamp(-FP8_MAX, FP8_MAX).to(FP8)


def quantize(weight: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """FP8 codes `q` such that `q · scale ≈ weight`.

    `weight`: any shape and float dtype. `scale`: None (1), or float32 that broadcasts against `weight`.
    The division is made in float32, whatever the dtype of `weight`.
    """
    values = weight.to(torch.float32)
    return saturating_cast(values if scale is None else values / scale)


def dequantize(weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """`weight · scale` in `dtype`.

    `weight`: FP8, any shape. `scale`: None, or float32 that broadcasts against it. The product is rounded
    once: it is made in float32 and then cast, since a scale in bfloat16 would be off by up to 0.4 %.
    Without a scale the cast is exact in every wider float dtype.
    """
    if scale is None:
        return weight.to(dtype)
    return (weight.to(torch.float32) * scale).to(dtype)
