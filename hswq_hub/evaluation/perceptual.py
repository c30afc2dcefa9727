"""How far apart people would see two pictures, by metrics of other packages, each where its package is installed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hswq_runtime.errors import HSWQError

from ..settings import PERCEPTUAL

Picture = NDArray[np.uint8]


class MetricError(HSWQError):
    """A metric was asked for that cannot be measured here."""


@dataclass(frozen=True)
class Metric:
    """A metric: what a card calls it, and the package that computes it.

    measure: (reference, picture), both uint8 [H, W, 3] -> a figure. best: of equal pictures. meaning: in a phrase.
    digits: after the point. least_side: pixels a side of the smallest picture that it is made for.
    shares_cores: it computes on one core and lets other threads run; otherwise it takes all of them by itself.
    """

    title: str
    package: str
    measure: Callable[[Picture, Picture], float]
    best: float
    meaning: str
    digits: int
    least_side: int = 1
    shares_cores: bool = True

    @property
    def version(self) -> str | None:
        """Of its package; None: that is not installed."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


def _flip(reference: Picture, picture: Picture) -> float:
    import flip_evaluator

    one, other = (np.ascontiguousarray(found, dtype=np.float32) / 255 for found in (reference, picture))
    return float(flip_evaluator.evaluate(one, other, "LDR", applyMagma=False)[1])


def _ssimulacra2(reference: Picture, picture: Picture) -> float:
    from ssimulacra2 import compute_ssimulacra2

    return float(compute_ssimulacra2(_as_file(reference), _as_file(picture)))


def _as_file(picture: Picture) -> BytesIO:
    """Without loss, and without time spent on making it small."""
    file = BytesIO()
    Image.fromarray(picture).save(file, "BMP")
    file.seek(0)
    return file


METRICS = {
    "flip": Metric(
        "FLIP",
        "flip-evaluator",
        _flip,
        0.0,
        "mean LDR-FLIP error at 67 pixels a degree, 0 for equal pictures, 1 at most (Andersson et al., 2020)",
        digits=4,
        shares_cores=False,
    ),
    "ssimulacra2": Metric(
        "SSIMULACRA 2",
        "ssimulacra2",
        _ssimulacra2,
        100.0,
        "a Python port of libjxl's metric, 100 for equal pictures, from 90 on visually lossless",
        digits=2,
        least_side=256,  # six scales down to eight pixels: with fewer its weights stand at the wrong scales
    ),
}
"""By the names that settings and metrics.json have, in the order of a card's columns."""
assert tuple(METRICS) == PERCEPTUAL


def chosen(asked: Sequence[str] | None, size: int) -> tuple[str, ...]:
    """The metrics to measure pictures of `size` pixels a side with: those that are `asked` for, or if that is None all
    that are installed and made for such pictures.

    Raises:
        MetricError: one that is asked for is not installed, or not made for such small pictures.
        ValueError: it is none of `settings.PERCEPTUAL`.
    """
    if asked is None:
        return tuple(name for name, metric in METRICS.items() if metric.version and metric.least_side <= size)
    for name in asked:
        if name not in METRICS:
            raise ValueError(f"{name!r} is not one of {PERCEPTUAL}")
        metric = METRICS[name]
        if metric.version is None:
            raise MetricError(f"{metric.title} is not installed here: pip install 'hswq-hub[metrics]'")
        if metric.least_side > size:
            raise MetricError(
                f"{metric.title} is made for pictures of {metric.least_side} pixels a side and more, not of {size}; "
                "make larger ones (--size), or leave it out"
            )
    return tuple(name for name in METRICS if name in asked)


def described(names: Sequence[str]) -> dict[str, str]:
    """What each of them is, with the version of its package, for a protocol."""
    return {name: f"{METRICS[name].meaning}; {METRICS[name].package} {METRICS[name].version}" for name in names}


def measure(names: Sequence[str], reference: Picture, picture: Picture) -> dict[str, float]:
    """The figures of these metrics for two pictures of one shape, uint8 [H, W, 3]."""
    return {name: METRICS[name].measure(reference, picture) for name in names}
