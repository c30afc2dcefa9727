"""What is foretold counts everything that is done, and what was taken corrects it."""

from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hswq_hub.common.speed import trial
from hswq_hub.common.speed.gpus import GPUS
from hswq_hub.generation.cost import vae_flops
from hswq_hub.settings import CalibrationSettings, PublishSettings
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.forecast import Forecast
from hswq_hub.workflow.publish import PublishPlan
from hswq_hub.workflow.steps import Step, Work
from hswq_runtime.architectures import ARCHITECTURES

PASSES = {"z-image": 1, "flux-1-dev": 1, "flux-1-schnell": 1, "flux-2-klein-4b": 1, "flux-2-klein-9b": 1}
"""By default every other architecture is called with and without the prompt."""


@pytest.fixture(scope="module")
def source():
    return resolve("demo")


@pytest.fixture
def rates(monkeypatch):
    """A machine that does everything at known rates."""
    monkeypatch.setattr(trial, "block_rate", lambda *_: 1e9)
    monkeypatch.setattr(trial, "launch_seconds", lambda _: 0.0)
    monkeypatch.setattr(trial, "value_seconds", lambda _: 1e-6)
    monkeypatch.setattr(trial, "double_rate", lambda _: 1e8)
    monkeypatch.setattr(trial, "disk_rate", lambda _: 1e6)
    monkeypatch.setattr(trial, "host_rate", lambda _: 1e7)


def step(name: str, work: Work) -> Step:
    return Step(name, "quantize", Path("nowhere"), name, lambda *_: None, work=lambda: work)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_guidance_doubles_the_work_where_the_pipeline_calls_twice(name):
    row = ARCHITECTURES[name]
    assert row.passes() == PASSES.get(name, 2)
    assert row.passes(0.0) == 1


def test_variants_are_guided_by_their_own_scale():
    assert [model.passes() for model in ARCHITECTURES["z-image"].models] == [1, 2]
    assert [model.passes() for model in ARCHITECTURES["flux-2-klein-4b"].models] == [1, 2]


def test_all_that_is_done_counts(source, rates, tmp_path):
    forecast = Forecast(source, PublishPlan.of(source).settings, tmp_path)
    call = forecast._foretold(Work(calls=1))
    assert call > 0 and forecast._foretold(Work(calls=6)) == pytest.approx(6 * call)
    assert forecast._foretold(Work(calls=2, batch=3)) == pytest.approx(6 * call)
    assert forecast._foretold(Work(calls=1, size=256)) > 1.2 * call
    assert forecast._foretold(Work(flops=3e9)) == pytest.approx(3.0)
    assert forecast._foretold(Work(double_flops=3e8)) == pytest.approx(3.0)
    assert forecast._foretold(Work(values=3e6)) == pytest.approx(3.0)
    assert forecast._foretold(Work(moved=int(5e6))) == pytest.approx(5.0)
    assert forecast._foretold(Work(streamed=int(5e7))) == pytest.approx(5.0)
    decoded = forecast._foretold(Work(calls=1, pictures=1)) - call
    vae = diffusers.AutoencoderKL.from_pretrained(source.base, subfolder="vae").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.decode(torch.zeros(1, vae.config.latent_channels, 8, 8))
    assert 0.4 < decoded * 1e9 / counter.get_total_flops() < 2.5


def test_the_default_vae_is_the_usual_one():
    with torch.device("meta"):
        vae = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        )  # fmt: skip
        with FlopCounterMode(display=False) as counter:
            vae.decode(torch.zeros(1, 4, 64, 64))
    config = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
    assert 0.5 < vae_flops(config, 512) / counter.get_total_flops() < 1.5


def test_what_steps_took_in_this_run_corrects_what_is_left(source, rates, tmp_path):
    forecast = Forecast(source, PublishPlan.of(source).settings, tmp_path)
    one, two, three = (step(name, Work(flops=n * 1e9)) for n, name in ((10, "a"), (20, "b"), (30, "c")))
    assert forecast.left([one, two, three], {}) == pytest.approx(60.0)
    assert forecast.left([one, two, three], {one: 15.0}) == pytest.approx(75.0)
    assert forecast.left([one, two, three], {one: 15.0, two: 60.0}) == pytest.approx(75.0)
    assert forecast.left([one, two, three], {one: 0.1}) == pytest.approx(50.0), "too short to tell anything"
    assert forecast.basis == "a short trial"


def test_a_step_with_more_pictures_or_calls_is_more_work(source):
    few = CalibrationSettings(samples=4, calls=4)
    plan, small = PublishPlan.of(source), PublishPlan.of(source, PublishSettings(calibration=few))
    works = [{s.name: s.work() for s in one.steps} for one in (plan, small)]
    assert works[0]["calibrate"].calls == pytest.approx(32 * works[1]["calibrate"].calls, rel=0.2)
    assert works[0]["round"].flops == 32 * works[1]["round"].flops
    assert works[0]["round"].double_flops == works[1]["round"].double_flops
    assert replace(works[0]["evaluate"], calls=0) == replace(works[1]["evaluate"], calls=0)


def test_trials_are_positive_and_finite(tmp_path):
    assert 0 < trial.launch_seconds("cpu") < 1e-3
    assert trial.block_rate(192, 64, "cpu", torch.float32) > 1e6
    assert 0 < trial.value_seconds("cpu") < 1e-5
    assert trial.double_rate("cpu") > 1e6 and trial.disk_rate(tmp_path) > 0
    assert trial.host_rate("cpu") > 1e6


def test_a_gpu_of_the_table_is_as_fast_as_its_maker_says(source, tmp_path):
    """Twice the tensor cores, half the time of a call; and what steps took here says nothing of it."""
    settings = PublishSettings()
    slow, fast = (PublishPlan.of(source, settings, gpu=GPUS[name]) for name in ("RTX 3060 12GB", "H100 SXM"))
    for plan in (slow, fast):
        assert plan.remaining == [*plan.steps] and plan.settings.calibration.dtype == "bfloat16"
        assert "published peaks" in plan.forecast.basis
    flops = Work(flops=1e15)
    ratio = slow.forecast._foretold(flops) / fast.forecast._foretold(flops)
    assert ratio == pytest.approx(989.4 / 25.5)
    assert slow.seconds > fast.seconds
    (memory,) = slow.memories
    assert (memory.device, memory.free, memory.total) == ("RTX 3060 12GB", 12 * 10**9, 12 * 10**9)
