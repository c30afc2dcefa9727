"""The amax search against slow and plain ways to do the same."""

import numpy as np
import pytest
import torch

from hswq_hub.quantization.search import (
    Histogram,
    largest,
    search_amax,
    search_error,
    weighted_histogram,
    weighted_values,
)
from hswq_hub.settings import SearchSettings
from hswq_runtime.layers.fp8 import FP8_MAX, grid

SETTINGS = SearchSettings(bins=512, candidates=40, refinements=2)


def weight(seed=0, shape=(64, 32)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 0.02, torch.rand(shape[1], generator=generator)


def slow_error(histogram, delta: float, scaled: bool) -> float:
    """The formula, one candidate and one bin at a time, on the grid values."""
    values, scale, total = grid().double().numpy(), delta / FP8_MAX if scaled else 1.0, 0.0
    for x, mass in zip(histogram.values.tolist(), histogram.mass.tolist(), strict=True):
        total += mass * (values[np.abs(values - min(x, delta) / scale).argmin()] * scale - x) ** 2
    return total


@pytest.mark.parametrize("scaled", [False, True], ids=["v1", "v2"])
def test_errors_of_all_candidates_at_once_are_those_of_the_formula(scaled):
    histogram = weighted_histogram(*weight(), bins=256)
    candidates = torch.linspace(0.5, 1.0, 7, dtype=torch.float64) * histogram.maximum
    found = search_error(histogram, candidates, scaled)
    expected = [slow_error(histogram, delta, scaled) for delta in candidates.tolist()]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_histogram_is_numpys():
    values, importance = weight()
    histogram = weighted_histogram(values, importance, bins=64)
    mass, edges = np.histogram(
        values.abs().numpy(), bins=64, range=(0, values.abs().max().item()), weights=importance.expand(64, -1).numpy()
    )
    assert histogram.mass.tolist() == pytest.approx((mass / mass.sum()).tolist(), abs=1e-3)
    assert histogram.values.tolist() == pytest.approx(((edges[1:] + edges[:-1]) / 2).tolist())
    assert histogram.mass.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("scaled", [False, True], ids=["v1", "v2"])
def test_the_exact_error_is_the_sum_over_all_weights(dtype, scaled):
    values, importance = weight()
    values = values.to(dtype)
    magnitude, mass = values.double().abs().numpy(), (importance.double() / importance.double().sum() / 64).numpy()
    levels = grid().double().numpy()
    for share in (0.5, 0.83, 1.0):
        delta = share * magnitude.max()
        scale = float(np.float32(delta / FP8_MAX)) if scaled else 1.0
        clipped = np.minimum(magnitude, delta) / scale
        rounded = levels[np.abs(levels - clipped[..., None]).argmin(-1)] * scale
        expected = ((rounded - magnitude) ** 2 * mass).sum()
        found = search_error(weighted_values(values, importance), torch.tensor([delta]), scaled)
        assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_counting_in_another_order_gives_the_same_bits(dtype):
    """As it happens on a GPU. There are more weights than are counted at once."""
    values, importance = weight(shape=(9000, 32))
    values, importance, order = values.to(dtype), importance.double().sqrt(), torch.randperm(len(values))
    mass = weighted_histogram(values, importance, 4096).mass
    assert torch.equal(weighted_histogram(values[order], importance, 4096).mass, mass)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_maximum_counts_though_its_channel_carries_nothing(dtype):
    values, importance = torch.tensor([[0.5, 1.0]], dtype=dtype), torch.tensor([1.0, 0.0])
    assert weighted_values(values, importance).maximum == weighted_histogram(values, importance, 8).maximum == 1


def test_the_largest_of_all_and_whether_all_are_finite():
    assert [largest(torch.tensor(values)) for values in ([-3.0, 2.0], [1.0, 2.0], [-1.0, -2.0], [0.0])] == [3, 2, 2, 0]
    assert largest(torch.tensor([1.0, float("-inf")])) == float("inf")
    assert np.isnan(largest(torch.tensor([float("nan"), 1.0]).bfloat16()))


def test_values_of_too_many_float32_weights_are_a_histogram():
    values, importance = weight()
    few, many = weighted_values(values, importance), weighted_values(values, importance, sort_up_to=100)
    assert few.width is None and many.width is not None
    exact, binned = (search_error(h, torch.tensor([0.05]), True).item() for h in (few, many))
    assert binned == pytest.approx(exact, rel=0.01)


def test_exact_search_in_v1_ends_at_the_maximum_itself():
    for seed in range(5):
        exact = weighted_values(*weight(seed))
        assert search_amax(exact, False, SearchSettings()) == exact.maximum


def test_prefix_sums_survive_weights_of_very_different_size():
    values = torch.tensor([1e-6, 3e-3, 0.5, 300.0], dtype=torch.float64)
    histogram = Histogram(values, torch.full((4,), 0.25, dtype=torch.float64), 300.0)
    levels = grid().double()
    expected = sum((levels[(levels - v).abs().argmin()] - v) ** 2 / 4 for v in values)
    assert search_error(histogram, torch.tensor([300.0]), False).item() == pytest.approx(expected.item(), rel=1e-9)


def test_importance_of_a_convolution_goes_by_input_channel():
    values = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1).expand(3, 2, 2, 2)
    mass = weighted_histogram(values, torch.tensor([3.0, 1.0]), bins=2).mass
    assert mass.tolist() == [0, 1], "both values fall into the upper half, [1, 2]"
    mass = weighted_histogram(values, torch.tensor([3.0, 1.0]), bins=4).mass
    assert mass.tolist() == [0, 0, 0.75, 0.25]


def test_importance_of_a_grouped_convolution_goes_by_its_own_channels():
    values = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1)  # group 0 reads channel 0, group 1 channel 1
    assert weighted_histogram(values, torch.tensor([3.0, 1.0]), bins=4).mass.tolist() == [0, 0, 0.75, 0.25]


def test_search_refines_what_the_coarse_grid_found():
    gains = []
    for seed in range(6):
        histogram = weighted_histogram(*weight(seed), bins=512)
        found = search_error(histogram, torch.tensor([search_amax(histogram, True, SETTINGS)]), True).item()
        coarse = torch.linspace(0.5, 1.0, SETTINGS.candidates, dtype=torch.float64) * histogram.maximum
        gains.append(search_error(histogram, coarse, True).min().item() - found)
        dense = torch.linspace(0.5, 1.0, 5_000, dtype=torch.float64) * histogram.maximum
        assert found <= 1.02 * search_error(histogram, dense, True).min().item()
    assert min(gains) > -1e-12 and max(gains) > 1e-10


@pytest.mark.parametrize("seed", range(5))
def test_without_a_scale_clipping_never_pays(seed):
    """The grid of V1 does not move, so Δ* is max|w| up to the width of a bin."""
    histogram = weighted_histogram(*weight(seed), bins=4096)
    found = search_amax(histogram, False, SearchSettings())
    assert found == pytest.approx(histogram.maximum, rel=1 / 4096)


def test_clipping_pays_for_a_lone_outlier_in_a_channel_that_carries_nothing():
    values, importance = torch.full((8, 2), 0.9), torch.tensor([1.0, 0.0])
    values[0, 1] = 1.0
    histogram = weighted_histogram(values, importance, bins=4096)
    amax = search_amax(histogram, True, SearchSettings())
    assert search_error(histogram, torch.tensor([amax]), True) < 1e-9
    assert search_error(histogram, torch.tensor([1.0]), True) > 1e-5


def test_weight_of_zeros():
    histogram = weighted_histogram(torch.zeros(4, 4), torch.ones(4), bins=16)
    assert search_amax(histogram, True, SETTINGS) == 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_cuda_finds_the_same(dtype):
    values, importance = weight()
    values = values.to(dtype)
    here, there = (weighted_histogram(w, importance, 4096) for w in (values, values.cuda()))
    assert torch.equal(here.mass, there.mass.cpu()) and here.maximum == there.maximum
    for scaled in (False, True):
        assert search_amax(there, scaled, SETTINGS) == pytest.approx(search_amax(here, scaled, SETTINGS), rel=1e-9)
