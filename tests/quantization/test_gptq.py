"""Compensated rounding against small cases worked out by hand and slow ways to do the same."""

import itertools

import pytest
import torch
from support.layers import case, form, scale_of

from hswq_hub.quantization.compensate import Wanted, compensated_layers
from hswq_hub.quantization.gptq import compensated
from hswq_hub.quantization.moments import Moments
from hswq_hub.settings import RoundingSettings
from hswq_runtime.layers.fp8 import dequantize, grid, quantize


def output_error(weight, codes, moment, scale=None):
    """Σ_rows d H dᵀ in float64."""
    difference = dequantize(codes, scale, torch.float32).double() - weight.double()
    return ((difference @ moment.double()) * difference).sum().item()


def test_the_second_column_makes_up_for_the_first():
    """w = (17.4, 17.4), neighbours on the grid are 16, 18 and 20 with ties at 17 and 19, and both inputs are the same:
    only the sum 34.8 counts. To nearest it becomes 18 + 18 = 36. Compensated: 18, then 17.4 − 0.6 = 16.8 -> 16: 34."""
    weight, moment = torch.tensor([[17.4, 17.4]]), torch.ones(2, 2)
    assert quantize(weight).float().tolist() == [[18.0, 18.0]]
    assert compensated(weight, moment, damping=1e-9).float().tolist() == [[18.0, 16.0]]


def test_columns_with_the_larger_second_moment_go_first():
    """The inputs are (3z, z): column 0 goes first, and column 1, which counts less, mends 3 · 0.6 as far as it can."""
    weight, z = torch.tensor([[17.4, 17.4]]), torch.tensor([[3.0], [1.0]])
    assert compensated(weight, z @ z.T, damping=1e-9).float().tolist() == [[18.0, 16.0]]
    swapped = compensated(weight, z.flip(0) @ z.flip(0).T, damping=1e-9)
    assert swapped.float().tolist() == [[16.0, 18.0]]


@pytest.mark.parametrize("kind", ["v1", "v2", "rows"])
@pytest.mark.parametrize("seed", range(3))
def test_outputs_are_much_closer_than_with_rounding_to_nearest(kind, seed):
    weight, moment = case(seed)
    scale = scale_of(weight, kind)
    nearest = output_error(weight, quantize(weight, scale), moment, scale)
    assert output_error(weight, compensated(weight, moment, scale), moment, scale) < 0.6 * nearest


@pytest.mark.parametrize("seed", range(3))
def test_sweeps_only_make_it_better_and_end_where_no_column_can_be_improved(seed):
    weight, moment = case(seed)
    moment += torch.eye(len(moment))
    errors = [output_error(weight, compensated(weight, moment, damping=0, sweeps=n), moment) for n in (0, 1, 100)]
    assert errors[0] > errors[1] >= errors[2]
    settled = compensated(weight, moment, damping=0, sweeps=100)
    values = grid()
    for row, column in itertools.product(range(3), range(0, 40, 7)):
        place = (values == settled[row, column].float()).nonzero().item()
        for neighbour in (place - 1, place + 1):
            changed = settled.float()
            changed[row, column] = values[neighbour]
            assert output_error(weight, quantize(changed), moment) >= errors[2] * (1 - 1e-12)


def test_blocks_change_nothing():
    weight, moment = case(0, n=40)
    whole = compensated(weight, moment, sweeps=2)
    assert torch.equal(compensated(weight, moment, sweeps=2, block=7).float(), whole.float())


def test_it_is_column_by_column_what_the_paper_says():
    """GPTQ with the inverse of what is left of H computed anew at each column, as its derivation has it."""
    weight, moment = case(1, rows=6, n=12)
    h = moment + 0.01 * moment.diagonal().mean() * torch.eye(12)
    w, expected = weight.double().clone(), torch.zeros(6, 12)
    left = h.diagonal().argsort(descending=True).tolist()
    while left:
        inverse = torch.linalg.inv(h[left][:, left])
        j = left[0]
        value = quantize(w[:, j]).double()
        expected[:, j] = value
        w[:, left] -= ((w[:, j] - value) / inverse[0, 0]).unsqueeze(1) * inverse[0]
        left = left[1:]
    assert torch.equal(compensated(weight, moment, damping=0.01).float(), expected)


def test_inputs_that_never_differ_from_zero_leave_rounding_to_nearest():
    weight, _ = case(0)
    found = compensated(weight, torch.zeros(40, 40), sweeps=3)
    assert torch.equal(found.float(), quantize(weight).float())


def test_a_singular_moment_is_damped():
    weight, _ = case(0)
    x = torch.randn(3, 40, dtype=torch.float64)
    moment = x.T @ x
    nearest = output_error(weight, quantize(weight), moment)
    assert output_error(weight, compensated(weight, moment, sweeps=3), moment) < 0.2 * nearest


def test_what_is_beyond_the_grid_saturates():
    found = compensated(torch.tensor([[1e4, -1e4]]), torch.eye(2)).float()
    assert found.tolist() == [[448.0, -448.0]]


@pytest.mark.parametrize("kind", ["v1", "v2", "rows"])
def test_groups_of_a_convolution_are_rounded_by_their_own_inputs(kind):
    weight, moment = case(0, rows=8, n=36)
    convolution = weight.reshape(8, 4, 3, 3)
    other = case(1, n=36)[1]
    scale = scale_of(weight, kind)
    shaped = None if scale is None else scale.reshape(-1, 1, 1, 1)
    moments = Moments(torch.stack([moment, other]), ((0, 4), (1, 4)))
    found = compensated_layers(
        [Wanted([form(convolution, shaped)], moments)], RoundingSettings(damping=0.01, sweeps=1)
    )[0][0]
    assert found.shape == convolution.shape
    for rows, h in ((slice(0, 4), moment), (slice(4, 8), other)):
        part = scale[rows] if kind == "rows" else scale
        expected = compensated(weight[rows], h, part, damping=0.01, sweeps=1)
        assert torch.equal(found.reshape(8, -1)[rows].float(), expected.float())
    error = (dequantize(found, shaped, torch.float32) - convolution).abs().max()
    assert error < weight.abs().max() / 4


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_as_good():
    weight, moment = case(0)
    cpu = output_error(weight, compensated(weight, moment, sweeps=2), moment)
    found = compensated(weight.cuda(), moment.cuda(), sweeps=2)
    assert output_error(weight, found.cpu(), moment) == pytest.approx(cpu, rel=0.05)
