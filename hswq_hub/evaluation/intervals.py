"""How sure a figure is: bootstrap confidence intervals over the pairs that it is a mean of."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
LEAST_PAIRS = 6
"""With fewer, nothing can be said with that confidence: were there no difference at all, all five of five pairs would
point in one direction once in sixteen times."""
_RESAMPLES, _SEED = 9999, 0


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def of_mean(values: Sequence[float]) -> Interval | None:
    """The interval of the mean of `values`, one of each pair; None for fewer than `LEAST_PAIRS`.

    Given differences of two files, pair by pair, it is the paired interval of the difference of their means.
    Bias-corrected and accelerated (Efron, "Better bootstrap confidence intervals", 1987), from `_RESAMPLES` resamples
    that are the same for all figures of as many pairs: the bytes of a card depend on nothing but its figures.
    """
    return _interval(tuple(values), None)


def of_ratio(values: Sequence[float], others: Sequence[float]) -> Interval | None:
    """The interval of mean(values) / mean(others), whose pairs are resampled together; None as of :func:`of_mean`, and
    where a resample of `others` is all zeros, so that the ratio has no bound."""
    if len(values) != len(others):
        raise ValueError("values that are paired are as many")
    return _interval(tuple(values), tuple(others))


@cache
def _interval(values: tuple[float, ...], others: tuple[float, ...] | None) -> Interval | None:
    from scipy.stats import DegenerateDataWarning, bootstrap

    if len(values) < LEAST_PAIRS:
        return None
    data = (np.asarray(values),) if others is None else (np.asarray(values), np.asarray(others))
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # what comes of it is None
        # Without one pair, with another: if none changes it, neither does a resample.
        without = {float(_statistic(*[np.delete(d, i) for d in data])) for i in range(len(values))}
        if len(without) == 1:
            (value,) = without
            return Interval(value, value) if isfinite(value) else None
        found = bootstrap(
            data,
            _statistic,
            paired=True,
            vectorized=True,
            confidence_level=CONFIDENCE,
            n_resamples=_RESAMPLES,
            method="BCa",
            rng=np.random.default_rng(_SEED),
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    return Interval(low, high) if isfinite(low) and isfinite(high) else None


def _statistic(
    values: NDArray[np.float64], others: NDArray[np.float64] | None = None, *, axis: int = -1
) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = values.mean(axis=axis)
    return mean if others is None else mean / others.mean(axis=axis)
