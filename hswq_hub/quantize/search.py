"""The amax search: how far to let a weight's range reach before it is clipped.

For a weight w whose input channel c has importance I_c, H is the distribution of |w| with the weight I_c, and

    Δ* = argmin_Δ  Σ_x H(x) · (q(x, Δ) − x)²

where q clips at Δ and rounds to the FP8 grid (V1), or scales by 448/Δ, rounds and scales back (V2). As published, H
is a histogram and x the middles of its bins; :func:`weighted_values` takes the values themselves. The search goes
from coarse to fine over [lowest, 1] · max|w|.

All candidates of a round are evaluated at once: q is constant between the midpoints of the grid, so with prefix sums
of H, H·x and H·x² over ascending x a candidate costs one look-up for each grid value, however many x there are.

What comes out: in V1 the grid does not move with Δ, so clipping can only add error and Δ* = max|w| (with a
histogram, up to the width of a bin). The search is kept because it is the published method; reports say what it found.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from hswq_runtime.fp8 import FP8_MAX, grid, saturating_cast

from ..settings import SearchSettings

_CELLS = 1 << 22
"""Counters at once: channels times bins."""
_SORTED = 1 << 24
"""Float32 weights up to this number are sorted; of larger ones a histogram of as many bins as bfloat16 has values."""
_CODES_16_BIT = 1 << 15


@dataclass(frozen=True)
class Histogram:
    """`values`: |w|, ascending, at the middle of each bin. `mass`: H, its sum is 1. Both float64. `maximum`: max|w|."""

    values: torch.Tensor
    mass: torch.Tensor
    maximum: float

    @cached_property
    def sums(self) -> torch.Tensor:
        """[3, n + 1]: sums of H, H·x and H·x² over the first 0…n values."""
        powers = torch.stack([self.mass, self.mass * self.values, self.mass * self.values**2])
        return torch.nn.functional.pad(powers.cumsum(dim=1), (1, 0))


def weighted_histogram(weight: torch.Tensor, importance: torch.Tensor, bins: int) -> Histogram:
    """H of one weight over `bins` that divide 0…max|w| evenly, on the weight's device.

    `weight`: [out, in] or [out, in / groups, kH, kW]. `importance`: I_c, [in].
    An importance that is zero everywhere counts every weight alike.
    All weights have to be finite.
    """
    maximum = weight.abs().max().float().item()
    width = maximum / bins if maximum > 0 else 1.0
    mass = _count(weight, importance, lambda magnitude: (magnitude.float() / width).long().clamp_(max=bins - 1), bins)
    values = (torch.arange(bins, dtype=torch.float64, device=weight.device) + 0.5) * width
    return Histogram(values, mass / mass.sum(), maximum)


def weighted_values(weight: torch.Tensor, importance: torch.Tensor) -> Histogram:
    """H of one weight over its values themselves; arguments as of :func:`weighted_histogram`.

    A 16-bit weight has at most 32768 different magnitudes, which are counted; others are sorted. Of float32 weights
    too many for that the histogram is given instead.
    """
    maximum = weight.abs().max().float().item()
    if weight.dtype in (torch.bfloat16, torch.float16):
        mass = _count(weight, importance, lambda magnitude: magnitude.view(torch.int16).long(), _CODES_16_BIT)
        codes = mass.nonzero().flatten()
        values, mass = codes.to(torch.int16).view(weight.dtype).double(), mass[codes]
    elif weight.numel() <= _SORTED:
        magnitude = _by_input_channel(weight.abs(), len(importance))
        values, order = magnitude.flatten().sort()
        values = values.double()
        mass = _positive(importance, weight.device).unsqueeze(1).expand_as(magnitude).flatten()[order]
    else:
        return weighted_histogram(weight, importance, _CODES_16_BIT)
    return Histogram(values, mass / mass.sum(), maximum)


def _count(weight: torch.Tensor, importance: torch.Tensor, bin_of, bins: int) -> torch.Tensor:
    """Sum of I_c over the |w| in each bin, float64 [bins].

    The |w| of each channel are counted first and the counts then weighted: sums of integers come out the same in
    whatever order a GPU makes them.
    """
    magnitude = _by_input_channel(weight.abs(), len(importance))
    mass = torch.zeros(bins, dtype=torch.float64, device=weight.device)
    at_once = max(_CELLS // bins, 1)
    importance = _positive(importance, weight.device)
    for rows, weights in zip(magnitude.split(at_once), importance.split(at_once), strict=True):
        cells = bin_of(rows.contiguous())
        cells += torch.arange(len(rows), device=weight.device).unsqueeze(1) * bins
        counts = torch.bincount(cells.flatten(), minlength=len(rows) * bins).view(len(rows), bins)
        mass += weights @ counts.double()
    return mass


def _positive(importance: torch.Tensor, device: torch.device) -> torch.Tensor:
    importance = importance.to(device, torch.float64)
    return importance if importance.any() else torch.ones_like(importance)


def _by_input_channel(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """[out, in / groups, ...] -> [in, everything that reads that channel]."""
    groups = channels // weight.shape[1]
    grouped = weight.reshape(groups, -1, weight.shape[1], *weight.shape[2:])
    return grouped.transpose(1, 2).reshape(channels, -1)


def search_error(histogram: Histogram, candidates: torch.Tensor, scaled: bool) -> torch.Tensor:
    """Σ_x H(x)·(q(x, Δ) − x)² for every Δ of `candidates` [K] at once -> float64 [K]."""
    device = histogram.values.device
    candidates = candidates.to(device, torch.float64).unsqueeze(1)
    levels = grid().double().to(device)
    levels = levels[levels >= 0]
    scale = (candidates / FP8_MAX).float().double() if scaled else torch.ones_like(candidates)
    # Whatever lies beyond Δ becomes what Δ itself becomes.
    top = saturating_cast((candidates / scale).float()).double()
    reached = torch.minimum(levels, top) * scale
    midpoints = (levels[1:] + levels[:-1]) / 2 * scale
    inner = torch.searchsorted(histogram.values, midpoints)
    ends = torch.nn.functional.pad(inner, (1, 0)), torch.nn.functional.pad(inner, (0, 1), value=len(histogram.values))
    mass, first, second = histogram.sums[:, ends[1]] - histogram.sums[:, ends[0]]
    return (reached**2 * mass - 2 * reached * first + second).sum(dim=1)


def search_amax(histogram: Histogram, scaled: bool, settings: SearchSettings) -> float:
    """Δ*. Of several equally good ones the largest, which clips least; 0 for a weight of zeros."""
    if histogram.maximum == 0:
        return 0.0
    floor = settings.lowest * histogram.maximum
    low, high = floor, histogram.maximum
    best, least = histogram.maximum, float("inf")
    for _ in range(settings.refinements + 1):
        candidates = torch.linspace(high, low, settings.candidates, dtype=torch.float64, device=histogram.values.device)
        errors = search_error(histogram, candidates, scaled)
        place = errors.argmin()
        if errors[place] < least:
            best, least = candidates[place].item(), errors[place].item()
        step = (high - low) / (settings.candidates - 1)
        low, high = max(best - step, floor), min(best + step, histogram.maximum)
    return best
