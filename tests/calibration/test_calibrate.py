"""The dual monitor against cases computed by hand."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from support import tiny_unet
from torch import nn

import hswq_hub
from hswq_hub.calibration.calibrate import Calibration, LayerStatistics, calibrate, monitor, steps_made
from hswq_hub.generation.recording import RecordedCall
from hswq_hub.settings import CalibrationSettings
from hswq_hub.sources.find import resolve
from hswq_hub.sources.prompts.prompts import Prompts
from hswq_runtime.errors import FormatError, HSWQError


def watch(module: nn.Module, *inputs: torch.Tensor) -> LayerStatistics:
    model = nn.ModuleDict({"layer": module})
    with monitor(model) as layers, torch.no_grad():
        for value in inputs:
            model["layer"](value)
    return layers["layer"]


def doubling() -> nn.Linear:
    """y = (2·x0, 2·x1): small enough to follow by hand."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = 2 * torch.eye(2)
    return layer


def test_sensitivity_and_importance_over_two_calls():
    # Call 1: outputs 2, -4, 6, 8: mean 3, mean square 30. Call 2: outputs 0, 2: mean 1, mean square 2.
    found = watch(doubling(), torch.tensor([[[1.0, -2.0], [3.0, 4.0]]]), torch.tensor([[[0.0, 1.0]]]))
    assert found.calls == 2
    assert found.output_variance == pytest.approx((30 + 2) / 2 - ((3 + 1) / 2) ** 2)
    # Channel 0: mean of |1|, |3| is 2, then 0. Channel 1: mean of |-2|, |4| is 3, then 1.
    assert found.importance.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("shape", [(2,), (1, 2), (1, 1, 2), (1, 1, 1, 2)], ids=lambda s: f"{len(s)}-D")
def test_linear_channels_are_the_last_dimension_whatever_the_others(shape):
    assert watch(doubling(), torch.tensor([3.0, -5.0]).reshape(shape)).importance.tolist() == [3.0, 5.0]


def test_convolution_channels_are_the_second_dimension():
    convolution = nn.Conv2d(2, 1, 1, bias=False)
    pictures = torch.stack([torch.full((2, 2), -3.0), torch.tensor([[1.0, 2.0], [3.0, 6.0]])]).unsqueeze(0)
    assert watch(convolution, pictures).importance.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_calls_are_left_out_and_counted(bad):
    found = watch(doubling(), torch.tensor([[1.0, 1.0]]), torch.tensor([[bad, 1.0]]))
    assert (found.calls, found.skipped) == (1, 1)
    assert found.importance.tolist() == [1.0, 1.0]


def test_half_precision_values_are_summed_without_overflow():
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float16)
    layer.weight.data.fill_(1)
    found = watch(layer, torch.full((4096, 1), 300.0, dtype=torch.float16))
    assert found.output_variance == 0
    assert found.output_square == 90_000, "beyond float16, whose largest value is 65504"


def test_hooks_are_gone_afterwards():
    layer = doubling()
    found = watch(layer, torch.ones(1, 2))
    layer(torch.ones(1, 2))
    assert found.calls == 1


def test_save_and_load_keep_every_bit(tmp_path):
    layers = {"a.b": watch(doubling(), torch.randn(4, 2)), "c": watch(doubling(), torch.randn(4, 2))}
    path = tmp_path / "calibration.safetensors"
    Calibration(layers, {"settings": {"samples": 2}}).save(path)
    loaded = Calibration.load(path)
    assert loaded.made_by == {"settings": {"samples": 2}}
    for name, statistics in layers.items():
        assert torch.equal(loaded.layers[name].importance, statistics.importance)
        assert loaded.layers[name].output_variance == statistics.output_variance
    assert '"samples": 2' in path.with_suffix(".json").read_text()


def test_other_files_are_no_calibration(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(FormatError, match="not a calibration file"):
        Calibration.load(path)


PROMPTS = Path(hswq_hub.__file__).parent / "data"


@pytest.mark.parametrize("folder", ["prompts/general", "demo_model/prompts"])
def test_what_calibrates_is_not_what_measures(folder):
    prompts = Prompts.read(PROMPTS / folder)
    assert [len({*prompts.calibration}), len({*prompts.evaluation})] == [128, 16]
    assert not {*prompts.calibration} & {*prompts.evaluation}


def test_no_general_prompt_resembles_one_that_measures():
    """Captions of the demo model resemble each other, as the pictures do that they describe."""
    prompts = Prompts.read(PROMPTS / "prompts/general")
    for one, other in product(prompts.calibration, prompts.evaluation):
        mine, theirs = ({*re.findall(r"\w{4,}", prompt.lower())} for prompt in (one, other))
        assert len(mine & theirs) <= len(theirs) / 2, f"{one!r} is close to {other!r}"


def test_recorded_calls_are_those_that_were_chosen_whatever_the_scheduler_adds(tmp_path):
    """PNDM makes one call more than there are steps: the second picture's calls are numbered from its own first."""
    path, base = tiny_unet.full("sd-1.5", tmp_path)
    calls = calibrate(resolve(str(path), str(base)), CalibrationSettings(samples=2, steps=2)).calls
    times = [int(call.args[1]) for call in calls]
    assert len(times) == 4 and times[:2] == times[2:]


def test_pictures_that_end_early_record_the_same_calls():
    """All that compensated rounding uses is there at half of the steps; statistics of all steps are not."""
    whole = CalibrationSettings(samples=6, steps=4, calls=5, size=32)
    short = replace(whole, whole=False)
    made = steps_made(short, 9)
    assert steps_made(whole, 9) == [4] * 6 and sum(made) < 20 and 0 in made, "of one picture nothing is recorded"
    found = [calibrate(resolve("demo"), settings) for settings in (whole, short)]
    assert [len(one.calls) for one in found] == [5, 5]
    for ours, theirs in zip(found[0].calls, found[1].calls, strict=True):
        pairs = zip(ours.flatten()[1], theirs.flatten()[1], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    calls = [next(iter(one.layers.values())).calls for one in found]
    assert calls == [24, sum(made)]


def test_a_picture_that_ends_early_and_is_nothing_is_said(monkeypatch):
    monkeypatch.setattr(RecordedCall, "is_finite", False)
    with pytest.raises(HSWQError, match="came out as NaN or infinity; try --dtype float32"):
        calibrate(resolve("demo"), CalibrationSettings(samples=1, steps=4, calls=1, size=32, whole=False))
