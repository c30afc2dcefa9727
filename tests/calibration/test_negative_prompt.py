"""The negative prompt of a model's page: in every guided picture that is made with it, and in what names a product."""

from dataclasses import replace

import pytest
import torch
from support import tiny_unet

from hswq_hub.calibration.calibrate import calibrate
from hswq_hub.evaluation.evaluate import evaluate
from hswq_hub.settings import CalibrationSettings, EvaluationSettings, PublishSettings, recipe
from hswq_hub.sources.find import resolve
from hswq_hub.sources.prompts.prompts import summary
from hswq_hub.workflow.publish import PublishPlan

CALIBRATION = CalibrationSettings(samples=1, steps=1)
NEGATIVE = "ugly, blurry"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path, base = tiny_unet.full("sdxl", tmp_path_factory.mktemp("sdxl"))
    return resolve(str(path), str(base))


def with_negative(source, negative):
    return replace(source, prompts=replace(source.prompts, negative=negative))


def test_it_calibrates_and_is_recorded_with_the_prompts(source):
    plain, changed = calibrate(source, CALIBRATION), calibrate(with_negative(source, NEGATIVE), CALIBRATION)
    assert [found.made_by["generation"]["negative_prompt"] for found in (plain, changed)] == [None, NEGATIVE]
    assert changed.made_by["prompts"] == summary(source.prompts.calibration)
    layers = [name for name in plain.layers if name.endswith("attn2.to_k")]
    assert layers and not any(
        torch.equal(plain.layers[name].importance_sum, changed.layers[name].importance_sum) for name in layers
    )


def test_it_is_measured_with(source):
    settings = EvaluationSettings(pairs=1, steps=1, device="cpu")
    found = [evaluate(with_negative(source, negative), {}, settings) for negative in (None, NEGATIVE)]
    assert [e.protocol["generation"]["negative_prompt"] for e in found] == [None, NEGATIVE]
    assert (found[0].images["original"][0] != found[1].images["original"][0]).any()


def test_pictures_without_guidance_have_none(source):
    settings = replace(CALIBRATION, guidance=1.0)
    assert calibrate(with_negative(source, NEGATIVE), settings).made_by["generation"]["negative_prompt"] is None


@pytest.mark.parametrize(
    ("guidance", "same"),
    [(None, {"search": False, "naive": True}), (1.0, {"calibrate": True, "evaluate": True, "folder": False})],
    ids=["guided", "not guided"],
)
def test_it_names_the_products_that_it_decides(source, guidance, same):
    settings = PublishSettings(
        recipe=recipe("hswq"),
        calibration=replace(CALIBRATION, guidance=guidance),
        evaluation=EvaluationSettings(pairs=1, guidance=guidance),
    )
    one, other = (
        {step.name: step.identity for step in PublishPlan.of(with_negative(source, negative), settings).steps}
        for negative in (None, NEGATIVE)
    )
    guided = guidance is None
    expected = {"calibrate": not guided, "evaluate": not guided} | same
    assert {name: one[name] == other[name] for name in expected} == expected
