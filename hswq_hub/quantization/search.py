"""The amax search: how far to let a weight's range reach before it is clipped.

For a weight w whose input channel c has importance I_c, H is the distribution of |w| with the weight I_c, and

    Δ* = argmin_Δ  Σ_x H(x) · (q(x, Δ) − x)²

where q clips at Δ and rounds to the FP8 grid (V1), or scales by 448/Δ, rounds and scales back (V2). As published, H
is a histogram and x the middles of its bins; :func:`weighted_values` takes the values themselves. The search goes
from coarse to fine over [lowest, 1] · max|w|.

All candidates of a round are evaluated at once. q is constant between the midpoints m_j of the grid, and steps there
from r_j to r_{j+1}, so with M(m) = Σ_{x ≥ m} H(x) and F(m) = Σ_{x ≥ m} H(x)·x the error is

    Σ_x H(x)·x²  +  Σ_j (r_{j+1}² − r_j²) · M(m_j)  −  2 · (r_{j+1} − r_j) · F(m_j)

and a candidate costs one look-up for each grid value, however many x there are.

What comes out: in V1 the grid does not move with Δ, so clipping can only add error and Δ* = max|w| (with a
histogram, up to the width of a bin). The search is kept because it is the published method; reports say what it found.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from sys import float_info

import torch

from hswq_runtime.layers.fp8 import FP8_MAX, grid, saturating_cast
from hswq_runtime.scales import LEAST_SCALE

from ..settings import SearchSettings

_SORTED = 1 << 24
"""A float32 weight of up to so many values is sorted; a larger one becomes a histogram with a bin for each bfloat16."""
_16_BIT = (torch.bfloat16, torch.float16)
_CODES_16_BIT = 1 << 15
_CLIPPED = 25
"""Candidates for the scale of a row, down to half of what maps its largest weight to the largest code."""
_IN_CACHE, _ON_GPU = 1 << 18, 1 << 24
"""Values counted at once, on the CPU and on a GPU."""


@dataclass(frozen=True)
class Histogram:
    """`values`: |w|, ascending, at the middle of each bin. `mass`: H, its sum is 1. Both float64. `maximum`: max|w|.
    `width`: of the bins, if they have the same and begin at 0."""

    values: torch.Tensor
    mass: torch.Tensor
    maximum: float
    width: float | None = None

    @cached_property
    def above(self) -> torch.Tensor:
        """[3, n + 1]: sums of H, H·x and H·x² over all values but the first 0…n."""
        powers = torch.stack([self.mass, self.mass * self.values, self.mass * self.values**2])
        return torch.nn.functional.pad(powers.flip(1).cumsum(dim=1).flip(1), (0, 1))

    def count_below(self, limits: torch.Tensor) -> torch.Tensor:
        """How many values are less than each limit; of a limit that is in the middle of a bin, that bin may count."""
        if self.width is None:
            return torch.searchsorted(self.values, limits)
        return (limits / self.width - 0.5).ceil_().clamp_(0, len(self.values)).long()


def largest(weight: torch.Tensor) -> float:
    """max|w|, in one pass and without a copy; NaN or infinity if one of the weights is."""
    low, high = torch.stack(weight.aminmax()).tolist()
    return float(max(high, -low))


def weighted_histogram(weight: torch.Tensor, importance: torch.Tensor, bins: int) -> Histogram:
    """H of one weight over `bins` that divide 0…max|w| evenly, on the weight's device.

    `weight`: [out, in] or [out, in / groups, kH, kW]. `importance`: I_c, [in].
    An importance that is zero everywhere counts every weight alike.
    All weights have to be finite.
    """
    counted = _count_16_bit(weight, importance) if weight.dtype in _16_BIT else None
    maximum = largest(weight) if counted is None else counted[0][-1].item()
    width = max(maximum / bins, LEAST_SCALE) if maximum > 0 else 1.0

    def bin_of(values: torch.Tensor) -> torch.Tensor:
        return (values.float().abs() / width).int().clamp_(max=bins - 1)

    if counted is None:
        mass = _count(weight, importance, bin_of, bins)
    else:
        mass = torch.bincount(bin_of(counted[0]), counted[1], minlength=bins)
    values = (torch.arange(bins, dtype=torch.float64, device=weight.device) + 0.5) * width
    return Histogram(values, mass / mass.sum(), maximum, width)


def weighted_values(weight: torch.Tensor, importance: torch.Tensor, *, sort_up_to: int = _SORTED) -> Histogram:
    """H of one weight over its values themselves; arguments as of :func:`weighted_histogram`.

    A 16-bit weight has at most 32768 different magnitudes, which are counted. A float32 weight of up to `sort_up_to`
    values is sorted; a larger one becomes a histogram.
    """
    if weight.dtype in _16_BIT:
        values, mass = _count_16_bit(weight, importance)
    elif weight.numel() <= sort_up_to:
        values, order = weight.abs().flatten().sort()
        rows = _by_row(weight, importance)
        mass = rows.repeat_interleave(len(weight) // len(rows), dim=0).flatten()[order]
    else:
        return weighted_histogram(weight, importance, _CODES_16_BIT)
    return Histogram(values.double(), mass / mass.sum(), values[-1].item())


def _count_16_bit(weight: torch.Tensor, importance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The magnitudes that occur, ascending, in the weight's dtype; the sum of I_c over the weights of each."""
    mass = _count(weight, importance, lambda values: values.view(torch.int16) & (_CODES_16_BIT - 1), _CODES_16_BIT)
    codes = mass.nonzero().flatten()
    return codes.to(torch.int16).view(weight.dtype), mass[codes]


def _count(
    weight: torch.Tensor, importance: torch.Tensor, bin_of: Callable[[torch.Tensor], torch.Tensor], bins: int
) -> torch.Tensor:
    """Sum of I_c over the weights in each bin, in a unit of its own, float64 [bins].

    The unit is a power of two, large enough that sums of whole numbers of it are exact and come out the same in
    whatever order a GPU makes them, and small enough that what is rounded of I_c does not count. None becomes zero, so
    that whatever occurs is counted.
    """
    rows = _by_row(weight, importance)
    exponent = float_info.mant_dig - weight.numel().bit_length() - math.frexp(rows.max().item())[1]
    rows = (rows * 2.0**exponent).round_().clamp_(min=1)
    mass = torch.zeros(bins, dtype=torch.float64, device=weight.device)
    at_once = max((_IN_CACHE if weight.is_cpu else _ON_GPU) // rows.shape[1], 1)
    for group, row in zip(weight.flatten(1).chunk(len(rows)), rows, strict=True):
        each = row.repeat(min(at_once, len(group)))
        for piece in group.split(at_once):
            cells = bin_of(piece.flatten())
            mass += torch.bincount(cells, each[: len(cells)], minlength=bins)
    return mass


def _by_row(weight: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
    """I_c of each value of a row, float64 [groups, values of a row]; the rows of a group are alike."""
    importance = importance.to(weight.device, torch.float64)
    if not importance.any():
        importance = torch.ones_like(importance)
    by_group = importance.reshape(-1, weight.shape[1])
    return by_group.repeat_interleave(weight[0, 0].numel(), dim=1)


def cheapest_scales(weight: torch.Tensor, cost: torch.Tensor, largest: float) -> torch.Tensor:
    """The scale of each row of a weight whose codes are whole numbers: float64 [..., out, 1].

    A scale s costs Σ_j c_j · (s² / 12 + max(|w_j| − largest · s, 0)²): what rounding to steps of s loses in the mean,
    and what clipping does. The cheapest of those that map 1, 0.98, …, 0.5 times the row's largest magnitude to
    `largest`.

    Args:
        weight: float64 [..., out, n].
        cost: c, float64 [n]; of compensated rounding the squared diagonal of the triangular factor.
        largest: code.
    """
    whole = weight.abs().amax(dim=-1, keepdim=True) / largest
    best, least = whole.clone(), torch.full_like(whole, math.inf)
    for step in range(_CLIPPED + 1):
        scale = whole * (1 - step / (2 * _CLIPPED))
        lost = (weight.abs() - largest * scale).clamp_(min=0).square_() @ cost.unsqueeze(1) + scale**2 / 12 * cost.sum()
        better = lost < least
        best, least = torch.where(better, scale, best), torch.where(better, lost, least)
    return torch.where(whole > 0, best.clamp(min=LEAST_SCALE), 1.0)


@cache
def _positive_grid(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The FP8 values from 0 on, and the middles between them, float64."""
    levels = grid().double().to(device)
    levels = levels[levels >= 0]
    return levels, (levels[1:] + levels[:-1]) / 2


def search_error(histogram: Histogram, candidates: torch.Tensor, scaled: bool) -> torch.Tensor:
    """Σ_x H(x)·(q(x, Δ) − x)² for every Δ of `candidates` [K] at once -> float64 [K]."""
    device = histogram.values.device
    candidates = candidates.to(device, torch.float64).unsqueeze(1)
    levels, midpoints = _positive_grid(device)
    # Whatever lies beyond Δ becomes what Δ itself becomes. Either the grid differs from candidate to candidate or where
    # it ends: [K, 1] and [1, 128], or [1] and [K, 128].
    if scaled:
        scale, reached = (candidates / FP8_MAX).float().double(), levels.unsqueeze(0)
    else:
        scale = torch.ones(1, dtype=torch.float64, device=device)
        reached = torch.minimum(levels, saturating_cast(candidates.float()).double())
    below = histogram.count_below(midpoints * scale)
    mass, first = (sums.take(below) for sums in histogram.above[:2])
    squares = (reached.square().diff(dim=1) * mass).sum(dim=1)
    products = (reached.diff(dim=1) * first).sum(dim=1)
    scale = scale.flatten()
    errors: torch.Tensor = histogram.above[2, 0] + scale * (scale * squares - 2 * products)
    return errors


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
