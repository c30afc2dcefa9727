"""One plan for a publish: what it says, what stops it, and that what it needs is looked up once."""

import json
from dataclasses import replace

import pytest

from hswq_hub import PublishPlan, TargetError, resolve
from hswq_hub.common.layout import CONTENTS, RECORD
from hswq_hub.sources.source import NOT_LISTED
from hswq_hub.workflow.steps import State


def test_a_plan_computes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hswq_hub.workflow.steps.make", lambda *_: pytest.fail("begun"))
    plan = PublishPlan.of(resolve("demo"))
    plan.check()
    assert {step.state for step in plan.steps} == {State.MISSING} and plan.remaining == list(plan.steps)
    assert any(line.startswith("  memory") for line in plan.lines())
    assert plan.status_lines()[-1].startswith("to do: calibrate, search, round")
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_of_another_model_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = resolve("demo")
    folder = PublishPlan.of(source).folder
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps({CONTENTS: [], "source": {"sha256": source.sha256}}))
    PublishPlan.of(source).check()
    other = replace(source, sha256="1" * 64)
    with pytest.raises(TargetError, match="another checkpoint of that name; say where to with --folder"):
        PublishPlan.of(other).check()
    PublishPlan.of(other, folder=folder).check()
    PublishPlan.of(replace(source, sha256=NOT_LISTED)).check()


def test_what_is_left_open_is_settled_once():
    plan = PublishPlan.of(resolve("demo"))
    assert "auto" not in (plan.settings.calibration.device, plan.settings.evaluation.dtype)
    assert PublishPlan.of(resolve("demo"), plan.settings).settings == plan.settings
