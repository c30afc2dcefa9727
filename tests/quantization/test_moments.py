"""Recorded calls, and the second moments that come of replaying them, against sums done in float64."""

import json
from pathlib import Path

import pytest
import torch
from support import tiny
from torch import nn

from hswq_hub.calibration.calibrate import Calibration
from hswq_hub.generation.recording import RecordedCall, record_calls, spread
from hswq_hub.quantization.blocks import BlockReplays
from hswq_hub.quantization.moments import Layer, Rows, second_moments
from hswq_hub.settings import RoundingSettings
from hswq_runtime.errors import HSWQError


class Only(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def moments_of(layer: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    model = Only(layer)
    calls = [RecordedCall((x,), {}) for x in inputs]
    with BlockReplays.open(model, calls, "cpu", Path()) as replays:
        return second_moments(replays, {"layer": whole(layer)})["layer"].inputs


def whole(module: nn.Module) -> Layer:
    return Layer((Rows(module, 0, 0, len(module.weight)),))


def test_linear():
    x, y = torch.randn(2, 5, 4), torch.randn(1, 3, 4)
    rows = torch.cat([x.reshape(-1, 4), y.reshape(-1, 4)]).double()
    found = moments_of(nn.Linear(4, 7), x, y)
    assert torch.allclose(found[0].double(), rows.T @ rows / 13, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "padding": (2, 1)},
        {"groups": 2, "padding": 1},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_convolution(settings):
    """d H dᵀ summed over the rows of d has to be the mean square of what d does to the outputs."""
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, bias=False, **settings)
    x = torch.randn(2, 4, 9, 8)
    moment = moments_of(layer, x).double()
    d = layer.weight.detach().double().reshape(moment.shape[0], -1, moment.shape[-1])
    outputs = layer(x).double()
    expected = outputs.square().sum() / (outputs.numel() / 6)
    assert ((d @ moment) * d).sum().item() == pytest.approx(expected.item(), rel=1e-4)


def test_tokens_beyond_the_bound_are_thinned_evenly():
    count = 3 * RoundingSettings().tokens
    x = torch.arange(count).float().reshape(1, count, 1)
    assert moments_of(nn.Linear(1, 1), x).item() == pytest.approx(
        (torch.arange(0, count, 3).double() ** 2).mean().item()
    )


def test_calls_that_are_not_finite_are_left_out():
    x = torch.ones(1, 2)
    assert moments_of(nn.Linear(2, 1), x, x * float("nan")).tolist() == [[[1, 1], [1, 1]]]
    with pytest.raises(HSWQError, match="nothing finite was seen of layer"):
        moments_of(nn.Linear(2, 1), x * float("inf"))


def test_a_calibration_without_calls_says_so():
    with pytest.raises(HSWQError, match="calibrate"):
        moments_of(nn.Linear(2, 1))


def test_what_the_moments_take():
    assert whole(nn.Linear(10, 3)).moment_bytes(True) == 4 * (100 + 9 + 10 * RoundingSettings().tokens)


def test_replay_gives_what_the_call_gave():
    model = tiny.model().float()
    with record_calls(model, {0}) as calls:
        expected = tiny.run(model)
        tiny.run(model)
    assert len(calls) == 1
    assert torch.equal(calls[0].replay(model)[0], expected)


def test_of_a_step_with_two_calls_one_is_recorded_now_the_first_and_now_the_last():
    layer, numbers = torch.nn.Linear(1, 1), iter([0, 0, 1, 1, 2, 2])
    with record_calls(layer, {0, 1}, numbers.__next__) as calls:
        for guided in (0.0, 1.0) * 3:
            layer(torch.tensor([guided]))
    assert [call.args[0].item() for call in calls] == [0.0, 1.0]


def test_calls_survive_being_saved(tmp_path):
    call = RecordedCall(
        ([torch.ones(2), torch.zeros(1)], 3), {"t": torch.arange(2), "more": {"a": None, "b": (True, "x")}}
    )
    Calibration({}, {}, [call]).save(tmp_path / "c.safetensors")
    (found,) = Calibration.load(tmp_path / "c.safetensors").calls
    assert json.dumps(found.flatten()[0]) == json.dumps(call.flatten()[0])
    assert all(torch.equal(a, b) for a, b in zip(found.flatten()[1], call.flatten()[1], strict=True))


def test_a_call_with_something_else_is_refused():
    with pytest.raises(HSWQError, match="called with a object"):
        RecordedCall((object(),), {}).flatten()


@pytest.mark.parametrize(("wanted", "samples", "steps"), [(8, 32, 25), (32, 32, 25), (128, 32, 25), (16, 2, 9)])
def test_recorded_calls_see_all_pictures_and_all_times(wanted, samples, steps):
    numbers = spread(wanted, samples, steps)
    assert 0.8 * wanted < len(numbers) <= wanted and max(numbers) < samples * steps
    assert len({n // steps for n in numbers}) == min(wanted, samples)
    seen = sorted({n % steps for n in numbers})
    gaps = [b - a for a, b in zip([-1, *seen], [*seen, steps], strict=True)]
    assert max(gaps) <= max(2, 3 * steps / wanted)


def test_all_calls_are_recorded_when_there_are_few():
    assert spread(128, 2, 3) == set(range(6))
