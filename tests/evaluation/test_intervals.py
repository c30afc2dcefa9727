"""Intervals cover what is known, use that values are paired, and are the same in every run."""

import subprocess
import sys

import numpy as np
import pytest

from hswq_hub.evaluation.intervals import CONFIDENCE, LEAST_PAIRS, Interval, of_mean, of_ratio

PAIRS, EXPERIMENTS = 16, 60


def covered(intervals: list[Interval], truth: float) -> float:
    return sum(interval.holds(truth) for interval in intervals) / len(intervals)


def test_they_cover_a_known_difference_as_often_as_they_say():
    """Errors of pictures are skewed, so both files' are log-normal here, the second a fifth larger in each pair."""
    rng = np.random.default_rng(7)
    hard = rng.lognormal(0, 0.5, (EXPERIMENTS, PAIRS))
    one, other = hard * rng.lognormal(0, 0.1, hard.shape), 1.2 * hard * rng.lognormal(0, 0.1, hard.shape)
    truth = 0.2 * np.exp(0.5**2 / 2) * np.exp(0.1**2 / 2)
    differences = [of_mean(list(b - a)) for a, b in zip(one, other, strict=True)]
    assert CONFIDENCE - 0.1 < covered(differences, truth) <= 1
    assert covered(differences, 0.0) < 0.2, "and a difference that is there is seen"
    ratios = [of_ratio(list(b), list(a)) for a, b in zip(one, other, strict=True)]
    assert CONFIDENCE - 0.1 < covered(ratios, 1.2) <= 1 and covered(ratios, 1.0) < 0.05


def test_no_difference_is_seldom_taken_for_one():
    rng = np.random.default_rng(3)
    found = [of_mean(list(values)) for values in rng.normal(0, 1, (EXPERIMENTS, PAIRS))]
    assert covered(found, 0.0) > CONFIDENCE - 0.1


def test_pairs_stay_together():
    """Pictures differ a hundred times as much as the files do; without pairing nothing could be told."""
    rng = np.random.default_rng(1)
    hard = rng.uniform(1, 100, PAIRS)
    one, other = list(hard), list(1.01 * hard + rng.normal(0, 0.01, PAIRS))
    paired = of_ratio(other, one)
    assert paired.low > 1 and paired.high - paired.low < 0.01
    apart = of_ratio(list(rng.permutation(other)), one)
    assert apart.low < 1 < apart.high and apart.high - apart.low > 0.2


def test_it_is_the_same_in_every_process_and_in_any_order_of_calls():
    values = [0.1, 0.4, 0.2, 0.25, 0.9, 0.3, 0.35, 0.21]
    here = of_mean(values)
    script = (
        "from hswq_hub.evaluation.intervals import of_mean, of_ratio\n"
        f"of_ratio({values}, {values[::-1]})\nprint(repr(of_mean({values})))"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == repr(here)
    assert here.low < np.mean(values) < here.high


def test_what_has_no_spread_has_no_width():
    assert of_mean([0.5] * PAIRS) == Interval(0.5, 0.5)
    twice = of_ratio([2.0, 4.0, 6.0, 8.0, 10.0, 14.0], [1.0, 2.0, 3.0, 4.0, 5.0, 7.0])
    assert (twice.low, twice.high) == (2, 2)


def test_what_cannot_be_said_is_not():
    few = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert len(few) < LEAST_PAIRS and of_mean(few) is None and of_mean([*few, 0.6]) is not None
    assert of_ratio(few, few) is None
    assert of_ratio([1.0] * PAIRS, [0.0] * (PAIRS - 1) + [1.0]) is None, "a third of all resamples divide by nothing"
    with pytest.raises(ValueError):
        of_ratio([1.0] * 7, [1.0] * 8)
