"""The published amax search: how far to let a weight's range reach before it is clipped.

For a weight w whose input channel c has importance I_c, H(b) is the sum of I_c over the |w| in bin b, normalised,
and

    Δ* = argmin_Δ  Σ_b H(b) · (q(x_b, Δ) − x_b)²

where x_b is the middle of bin b and q clips at Δ and rounds to the FP8 grid (V1), or scales by 448/Δ, rounds and
scales back (V2). The search goes from coarse to fine over [lowest, 1] · max|w|.

What comes out: in V1 the grid does not move with Δ, so clipping can only add error and Δ* = max|w|, up to the
width of a bin. The search is kept because it is the published method; the plan reports the ratio it found.
"""

from dataclasses import dataclass

import torch

from hswq_runtime.fp8 import FP8_MAX, dequantize, quantize

from ..settings import SearchSettings

_CHANNELS_AT_ONCE = 1024


@dataclass(frozen=True)
class Histogram:
    """`middles`: |w| at the middle of each bin. `mass`: H, its sum is 1. Both float64 [bins]. `maximum`: max|w|."""

    middles: torch.Tensor
    mass: torch.Tensor
    maximum: float


def weighted_histogram(weight: torch.Tensor, importance: torch.Tensor, bins: int) -> Histogram:
    """H of one weight, on the weight's device.

    `weight`: [out, in] or [out, in / groups, kH, kW]. `importance`: I_c, [in]. The bins divide 0…max|w| evenly.
    An importance that is zero everywhere counts every weight alike.
    All weights have to be finite.

    The |w| of each channel are counted first and the counts then weighted: sums of integers come out the same in
    whatever order a GPU makes them.
    """
    magnitude = _by_input_channel(weight.to(torch.float32).abs(), groups=len(importance) // weight.shape[1])
    importance = importance.to(weight.device, torch.float64)
    if not importance.any():
        importance = torch.ones_like(importance)
    maximum = magnitude.max().item()
    width = maximum / bins if maximum > 0 else 1.0
    mass = torch.zeros(bins, dtype=torch.float64, device=weight.device)
    for rows, weights in zip(magnitude.split(_CHANNELS_AT_ONCE), importance.split(_CHANNELS_AT_ONCE), strict=True):
        bin_of_each = (rows / width).long().clamp_(max=bins - 1)
        bin_of_each += torch.arange(len(rows), device=weight.device).unsqueeze(1) * bins
        counts = torch.bincount(bin_of_each.flatten(), minlength=len(rows) * bins).view(len(rows), bins)
        mass += weights @ counts.double()
    middles = (torch.arange(bins, dtype=torch.float64, device=weight.device) + 0.5) * width
    return Histogram(middles, mass / mass.sum(), maximum)


def _by_input_channel(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """[out, in / groups, ...] -> [in, everything that reads that channel]."""
    grouped = weight.reshape(groups, -1, weight.shape[1], *weight.shape[2:])
    return grouped.transpose(1, 2).reshape(groups * weight.shape[1], -1)


def search_error(histogram: Histogram, candidates: torch.Tensor, scaled: bool) -> torch.Tensor:
    """Σ_b H(b)·(q(x_b, Δ) − x_b)² for every Δ of `candidates` [K] at once -> float64 [K]."""
    x = histogram.middles.to(torch.float32)
    clipped = torch.minimum(x, candidates.to(torch.float32).unsqueeze(1))
    scale = (candidates / FP8_MAX).to(torch.float32).unsqueeze(1) if scaled else None
    rounded = dequantize(quantize(clipped, scale), scale, torch.float32)
    return ((rounded.double() - histogram.middles).square() * histogram.mass).sum(dim=1)


def search_amax(histogram: Histogram, scaled: bool, settings: SearchSettings) -> float:
    """Δ*. Of several equally good ones the largest, which clips least; 0 for a weight of zeros."""
    if histogram.maximum == 0:
        return 0.0
    floor = settings.lowest * histogram.maximum
    low, high = floor, histogram.maximum
    best, least = histogram.maximum, float("inf")
    for _ in range(settings.refinements + 1):
        candidates = torch.linspace(
            high, low, settings.candidates, dtype=torch.float64, device=histogram.middles.device
        )
        errors = search_error(histogram, candidates, scaled)
        place = errors.argmin()
        if errors[place] < least:
            best, least = candidates[place].item(), errors[place].item()
        step = (high - low) / (settings.candidates - 1)
        low, high = max(best - step, floor), min(best + step, histogram.maximum)
    return best
