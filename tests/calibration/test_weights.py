"""A source with NaN or infinity in it is refused before it is calibrated; zeros are named."""

import pytest
import torch
from click.testing import CliRunner
from support import tiny

from hswq_hub.calibration.weights import empty_weights
from hswq_hub.cli.main import main
from hswq_hub.settings import CalibrationSettings, EvaluationSettings, PublishSettings
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.publish import PublishPlan
from hswq_runtime import Checkpoint
from hswq_runtime.errors import FormatError

WEIGHT = f"{tiny.PREFIX}layers.0.feed_forward.w1.weight"
NORM = f"{tiny.PREFIX}layers.0.attention.q_norm.weight"
QUICK = PublishSettings(
    calibration=CalibrationSettings(samples=1, steps=1, device="cpu"), evaluation=EvaluationSettings(pairs=1, steps=1)
)


def spoilt(folder, key, value, everywhere=False):
    def change(tensors):
        tensors[key] = torch.full_like(tensors[key], value) if everywhere else tensors[key].clone()
        tensors[key].view(-1)[-1] = value

    return tiny.checkpoint(folder, change=change)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", [WEIGHT, NORM])
def test_what_is_not_finite_is_named_before_anything_is_made(tmp_path, monkeypatch, key, value):
    monkeypatch.chdir(tmp_path)
    plan = PublishPlan.of(resolve(str(spoilt(tmp_path, key, value)), resolve("demo").base), QUICK)
    lines = []
    with pytest.raises(FormatError, match=f"NaN or infinity in {key};"):
        plan.run(lines.append)
    assert not [line for line in lines if "begun" in line] and not plan.folder.exists()


def test_a_command_says_it_as_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = spoilt(tmp_path, WEIGHT, float("nan"))
    words = ["--base", resolve("demo").base, "--samples", "1", "--steps", "1"]
    result = CliRunner().invoke(main, ["calibrate", str(path), *words, "-o", "statistics.safetensors"])
    assert result.exit_code == 2 and f"NaN or infinity in {WEIGHT}" in result.stderr
    assert not (tmp_path / "statistics.safetensors").exists()


def test_zeros_are_allowed_and_named(tmp_path):
    assert empty_weights(Checkpoint(spoilt(tmp_path, WEIGHT, 0.0, everywhere=True))) == [WEIGHT]
    assert empty_weights(Checkpoint(spoilt(tmp_path, NORM, 0.0, everywhere=True))) == [], "no layer"


def test_weights_are_read_once_for_each_file(tmp_path, monkeypatch):
    from hswq_hub.workflow import preflight

    monkeypatch.chdir(tmp_path)
    source = resolve(str(spoilt(tmp_path, WEIGHT, 0.0, everywhere=True)), resolve("demo").base)
    plan, lines = PublishPlan.of(source, QUICK), []
    monkeypatch.setattr("hswq_hub.workflow.publish.make", lambda *_: lines.append("made"))
    for _ in range(2):
        with pytest.raises(FormatError):  # nothing is made
            plan.run(lines.append)
        monkeypatch.setattr(preflight, "empty_weights", lambda _: pytest.fail("read again"))
    warning = f"warning: nothing but zeros in {WEIGHT}"
    assert lines == [warning, "made", warning, "made"]
