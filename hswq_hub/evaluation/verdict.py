"""Which file is closer to the original, and whether that is more than chance and more than noise."""

import itertools
from dataclasses import dataclass
from enum import Enum
from statistics import fmean

from .intervals import Interval, of_mean, of_ratio
from .results import ORIGINAL, Evaluation, Measured, VariantResult, latent_mse, ssim


@dataclass(frozen=True)
class Multiplied:
    """What it costs that ComfyUI multiplies a file in FP8 or INT8 where the hardware can.

    arithmetic: which of the two. layers: how many it multiplies so. difference: mean SSIM, so − exact. latent_ratio:
    the latent MSE over that with exact products; None if that is 0.
    """

    label: str
    arithmetic: str
    layers: int
    ssim_mean: float
    difference: float
    latent_ratio: float | None


def multiplied(evaluation: Evaluation) -> list[Multiplied]:
    """Of each file with such layers."""
    return [
        Multiplied(
            exact.label,
            exact.arithmetic,
            exact.rounded_layers,
            rounded.ssim_mean,
            rounded.ssim_mean - exact.ssim_mean,
            rounded.latent_mse_mean / exact.latent_mse_mean if exact.latent_mse_mean else None,
        )
        for exact in evaluation.variants
        if (rounded := exact.multiplied)
    ]


@dataclass(frozen=True)
class Comparison:
    """Whether `better` really is closer to the original than `worse`, pair by pair in one run.

    difference: mean of the SSIM differences, better − worse; interval: of that mean, None for too few pairs. wins:
    pairs in which `better` has the higher SSIM, of `pairs`. latent_ratio: its latent MSE over the other's, None if that
    is 0; latent_interval: of that ratio.
    """

    better: str
    worse: str
    difference: float
    interval: Interval | None
    wins: int
    pairs: int
    latent_ratio: float | None
    latent_interval: Interval | None

    @property
    def holds(self) -> bool:
        return self.difference > 0

    @property
    def decided(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        return self.interval is not None and not self.interval.holds(0)


def comparisons(evaluation: Evaluation) -> list[Comparison]:
    """Each variant against the one before it, from the baseline upwards: V1 over naive, V2 over V1."""
    ranked = [variant for variant in evaluation.variants if variant.label != ORIGINAL]
    return [_compare(better, worse) for worse, better in itertools.pairwise(ranked)]


def _compare(better: VariantResult, worse: VariantResult) -> Comparison:
    differences = [b - w for b, w in zip(better.values(ssim), worse.values(ssim), strict=True)]
    return Comparison(
        better.label,
        worse.label,
        fmean(differences),
        of_mean(differences),
        sum(d > 0 for d in differences),
        len(differences),
        *ratio(better, worse),
    )


def ratio(one: Measured, other: Measured) -> tuple[float | None, Interval | None]:
    """The latent MSE of the one over the other's, and its interval; None if that is 0."""
    if not other.latent_mse_mean:
        return None, None
    return one.latent_mse_mean / other.latent_mse_mean, of_ratio(one.values(latent_mse), other.values(latent_mse))


class Noise(Enum):
    """Where a file's latent error lies, seen from the noise floor."""

    BELOW = "below"
    WITHIN = "within"
    ABOVE = "above"


@dataclass(frozen=True)
class AgainstNoise:
    """A file's latent error against that of computing the original in `dtype`, pair by pair in one run.

    multiplied: "", or the arithmetic in which ComfyUI multiplies the file here. difference: the interval of the mean of
    the differences, file − noise floor. ratio: of the means, None if the floor is 0; ratio_interval: of that.
    """

    file: str
    multiplied: str
    dtype: str
    difference: Interval
    ratio: float | None
    ratio_interval: Interval | None

    @property
    def noise(self) -> Noise:
        """WITHIN exactly if the interval of the paired difference holds 0: then the file cannot be told from computing
        the original in `dtype`. ABOVE or BELOW if all of it lies there."""
        if self.difference.low > 0:
            return Noise.ABOVE
        return Noise.BELOW if self.difference.high < 0 else Noise.WITHIN


def against_noise(evaluation: Evaluation) -> list[AgainstNoise]:
    """Each file, and the same multiplied in FP8 or INT8; none without a noise floor, or with too few pairs for an
    interval."""
    floor = evaluation.noise_floor
    if floor is None:
        return []
    rows = [
        (v, row) for v in evaluation.variants if v.label != ORIGINAL for row in (v, v.multiplied) if row is not None
    ]
    intervals = [of_mean(_differences(row, floor)) for _, row in rows]
    return [
        AgainstNoise(
            variant.label, "" if row is variant else variant.arithmetic, floor.coarser, interval, *ratio(row, floor)
        )
        for (variant, row), interval in zip(rows, intervals, strict=True)
        if interval is not None
    ]


def _differences(row: Measured, floor: Measured) -> list[float]:
    pairs = zip(row.values(latent_mse), floor.values(latent_mse), strict=True)
    return [one - other for one, other in pairs]
