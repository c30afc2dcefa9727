"""Perceptual metrics: as their packages compute them, best for equal pictures, worse with every step of noise."""

import tomllib
from dataclasses import replace
from importlib.metadata import requires
from itertools import pairwise
from pathlib import Path

import flip_evaluator
import numpy as np
import pytest
import ssimulacra2
from packaging.requirements import Requirement
from PIL import Image
from scipy import ndimage

from hswq_hub.evaluation.perceptual import METRICS, MetricError, chosen, described, measure
from hswq_hub.settings import PERCEPTUAL, EvaluationSettings, PublishSettings
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.publish import PublishPlan

SIDE = 256


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random((SIDE, SIDE, 3)), (5, 5, 0))
    return np.uint8(255 * (smooth - smooth.min()) / (smooth.max() - smooth.min()))


def noisy(picture: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, sigma, picture.shape)
    return np.clip(np.round(picture + noise), 0, 255).astype(np.uint8)


def test_each_is_what_its_package_computes(picture, tmp_path):
    files = [tmp_path / "one.png", tmp_path / "other.png"]
    pair = picture, noisy(picture, 6)
    for image, file in zip(pair, files, strict=True):
        Image.fromarray(image).save(file)
    names = [str(file) for file in files]
    found = measure(PERCEPTUAL, *pair)
    assert found["flip"] == pytest.approx(flip_evaluator.evaluate(*names, "LDR")[1], abs=1e-6)
    assert found["ssimulacra2"] == ssimulacra2.compute_ssimulacra2(*names)


@pytest.mark.parametrize("name", PERCEPTUAL)
def test_equal_pictures_have_the_best_figure_and_noise_only_makes_it_worse(picture, name):
    figures = [measure([name], picture, noisy(picture, sigma))[name] for sigma in (0, 2, 4, 8, 16, 32)]
    best, worse = METRICS[name].best, -1 if name == "flip" else 1
    assert figures[0] == best and METRICS[name].digits > 0
    assert all(worse * (one - other) > 0 for one, other in pairwise(figures))


def test_pictures_are_left_as_they_are(picture):
    before = picture.copy()
    measure(PERCEPTUAL, picture, noisy(picture, 3))
    assert np.array_equal(picture, before)


def test_what_is_measured_is_what_is_installed_and_made_for_such_pictures(monkeypatch):
    assert chosen(None, SIDE) == PERCEPTUAL and chosen(None, 64) == ("flip",)
    assert chosen((), SIDE) == () and chosen(["ssimulacra2", "flip"], SIDE) == PERCEPTUAL
    with pytest.raises(MetricError, match="256 pixels a side and more, not of 64"):
        chosen(["ssimulacra2"], 64)
    with pytest.raises(ValueError):
        chosen(["lpips"], SIDE)
    monkeypatch.setitem(METRICS, "ssimulacra2", replace(METRICS["ssimulacra2"], package="not-there"))
    assert chosen(None, SIDE) == ("flip",) and list(described(chosen(None, SIDE))) == ["flip"]
    with pytest.raises(MetricError, match=r"pip install 'hswq-hub\[metrics\]'"):
        chosen(["ssimulacra2"], SIDE)


def test_a_plan_settles_which_ones_and_they_are_in_the_identity(monkeypatch):
    def identity(asked) -> str:
        plan = PublishPlan.of(source, PublishSettings(evaluation=EvaluationSettings(pairs=1, perceptual=asked)))
        assert plan.settings.evaluation.perceptual is not None
        return next(step.identity for step in plan.steps if step.name == "evaluate")

    source = resolve("demo")
    usual = identity(None)
    assert usual == identity(("flip",)) != identity(())
    monkeypatch.setitem(METRICS, "flip", replace(METRICS["flip"], package="numpy"))
    assert identity(None) != usual, "another release may measure otherwise"
    with pytest.raises(MetricError):
        identity(("ssimulacra2",))


def test_the_extra_brings_them_and_nothing_heavy():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extra = {Requirement(line).name for line in project["optional-dependencies"]["metrics"]}
    assert extra == {metric.package for metric in METRICS.values()}
    always = {Requirement(line).name for line in project["dependencies"]}
    assert "flip-evaluator" in always and "ssimulacra2" not in always, "one light one"
    for metric in METRICS.values():
        needed = {Requirement(line).name.lower() for line in requires(metric.package) or ()}
        assert needed <= {"numpy", "pillow", "scipy"}
