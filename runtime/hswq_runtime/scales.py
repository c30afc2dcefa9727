"""Scales as files hold them: what they may be, and whether two of them agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .errors import FormatError
from .text import shown

if TYPE_CHECKING:  # command-line help reads this, and must not wait for torch
    import torch


LEAST_SCALE = 2.0**-126
"""The smallest scale that is written: the least normal float32, since quotients below it become 0, and some processors
take all numbers below it for 0. What is smaller than half of it becomes 0."""


def check_scale(key: str, scale: torch.Tensor, rows: int) -> torch.Tensor:
    """`scale` as float32 [1], or as [rows] if it has one value for each row of its weight.

    Raises:
        FormatError: another shape, or values that are not finite and positive.
    """
    if scale.numel() != 1 and (scale.numel() != rows or scale.shape[0] != rows):
        raise FormatError(
            f"{key} has shape {list(scale.shape)}; one scale, or one for each of {rows} rows, is expected"
        )
    values = scale.reshape(-1).float()
    wrong = ~(values.isfinite() & (values > 0))
    if wrong.any():
        raise FormatError(f"{key} is {values[wrong][0].item()}; a scale is finite and positive")
    return values


def agreed(scales: Mapping[str, torch.Tensor]) -> tuple[str, torch.Tensor]:
    """The first key and its scale.

    Raises:
        FormatError: another differs from it.
    """
    (first, scale), *others = scales.items()
    for key, other in others:
        if not (scale == other).all():
            raise FormatError(f"{shown(key)} is {described(other)}, but {shown(first)} is {described(scale)}")
    return first, scale


def described(scale: torch.Tensor) -> str:
    """A scale in a message."""
    return (
        f"{scale.item():g}" if scale.numel() == 1 else f"{scale.numel()} values of {scale.min():g} to {scale.max():g}"
    )
