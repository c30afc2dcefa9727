"""Errors of single weights from derivatives, against what the model gives with those weights."""

from dataclasses import astuple, replace
from types import SimpleNamespace

import pytest
import torch
from support import tiny

from hswq_hub.calibration.calibrate import Calibration
from hswq_hub.generation.recording import RecordedCall, record_calls
from hswq_hub.quantization import measure
from hswq_hub.quantization.measure import measure_errors, passes_of_measuring
from hswq_hub.quantization.plan import Plan, plan_naive
from hswq_hub.quantization.samples import inputs
from hswq_hub.quantization.writer import codes_of
from hswq_hub.settings import ErrorSettings
from hswq_runtime import Checkpoint, Format
from hswq_runtime.architectures import ARCHITECTURES
from hswq_runtime.errors import HSWQError
from hswq_runtime.formats import Number, layer_of
from hswq_runtime.layers.fp8 import dequantize, quantize
from hswq_runtime.loading import load_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint(tiny.checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def calibration(checkpoint):
    """Of three calls."""
    denoiser = load_model(checkpoint, torch.float32)
    with record_calls(denoiser, {0, 1, 2}) as calls, torch.no_grad():
        for seed in (1, 2, 3):
            denoiser(**tiny.inputs(seed))
    return Calibration({}, {"dtype": "float32"}, calls)


@pytest.fixture(scope="module")
def plans(checkpoint) -> dict[Format, Plan]:
    plan = plan_naive(checkpoint)
    halved = tuple(replace(d, scale=0.5) if d.quantized else d for d in plan.decisions)
    return {Format.V1: plan, Format.V2: replace(plan, format=Format.V2, decisions=halved)}


def measured(checkpoint, calibration, plans, place, *, calls=32, memory=8.0, scales=None):
    codes = {format: codes_of(checkpoint, format) for format in plans}
    return measure_errors(
        checkpoint, calibration, plans, codes, ErrorSettings(calls), scales=scales or {}, place=place, memory=memory
    )


def test_errors_are_those_of_the_outputs(checkpoint, calibration, plans, tmp_path):
    """For one call and the same v, (v · change)² has to be what the derivative says, and both formats their own."""
    call = calibration.calls[0]
    errors = measured(checkpoint, replace(calibration, calls=[call]), plans, tmp_path).weights
    assert [list(found) for found in errors.values()] == [[d.key for d in plan.quantized] for plan in plans.values()]
    model = load_model(checkpoint, torch.float32)
    before = call.replay(model)
    probe = [torch.randn(end.shape, generator=torch.Generator().manual_seed(0)) for end in before]
    values = sum(end.numel() for end in before)
    for format, plan in plans.items():
        largest = max(errors[format].values())
        for decision in plan.quantized:
            weight, scale = codes_of(checkpoint, format)(decision)
            changed = dequantize(weight, scale if format.scaled else None, torch.float32)
            change = outputs_with(checkpoint, call, decision.key, changed)
            expected = sum((v * (b - a)).sum().item() for v, a, b in zip(probe, before, change, strict=True))
            assert errors[format][decision.key] == pytest.approx(expected**2 / values, rel=0.1, abs=1e-3 * largest), (
                decision.key
            )


def outputs_with(checkpoint: Checkpoint, call: RecordedCall, key: str, weight: torch.Tensor) -> list[torch.Tensor]:
    """A hundredth of the way from the original to `weight`, and what comes of it a hundred times as large: what is not
    linear stays out of it."""
    model = load_model(checkpoint, torch.float32)
    before = call.replay(model)
    middle = checkpoint.tensor(key).float().lerp(weight, 0.01)
    rows = iter(middle.split([len(model.get_parameter(name)) for name in checkpoint.modules[key]]))
    for name in checkpoint.modules[key]:
        model.get_parameter(name).data.copy_(next(rows))
    return [a + 100 * (b - a) for a, b in zip(before, call.replay(model), strict=True)]


def test_parts_change_nothing_and_are_counted(checkpoint, calibration, plans, tmp_path):
    scales = {d.key: 0.125 for d in plans[Format.V1].quantized}
    whole = measured(checkpoint, calibration, plans, tmp_path, scales=scales)
    parts = measured(checkpoint, calibration, plans, tmp_path, memory=2e-3, scales=scales)
    for format, errors in whole.weights.items():
        assert parts.weights[format] == pytest.approx(errors, rel=1e-3)
    fp8, of_parts = whole.inputs[Number.FP8], parts.inputs[Number.FP8]
    assert list(fp8) == list(of_parts) == list(scales)
    for key, found in fp8.items():
        assert astuple(of_parts[key]) == pytest.approx(astuple(found), rel=1e-3), key
    assert passes_of_measuring(checkpoint, 2, 8.0, 4) == 4
    assert 5 < passes_of_measuring(checkpoint, 2, 2e-3, 4) < 13, "of two blocks that do not fit each is replayed twice"


def test_rounded_inputs_are_what_they_do_to_the_outputs(checkpoint, calibration, plans, tmp_path):
    """A hundredth of what rounding loses is added to the input of one layer, for one call and the same v."""
    call, scale = calibration.calls[0], 0.125
    scales = {d.key: scale for d in plans[Format.V1].quantized}
    found = measured(checkpoint, replace(calibration, calls=[call]), plans, tmp_path, scales=scales).inputs[Number.FP8]
    model = load_model(checkpoint, torch.float32)
    before = call.replay(model)
    probe = [torch.randn(end.shape, generator=torch.Generator().manual_seed(0)) for end in before]
    values = sum(end.numel() for end in before)
    largest = max(one.error for one in found.values())
    for key, one in found.items():
        rows = []

        def rounded(_module, inputs, rows=rows):
            x = inputs[0]
            rows.append(x.numel() // x.shape[-1])
            return x + 0.01 * (quantize(x / scale).float() * scale - x), *inputs[1:]

        modules = [model.get_submodule(layer_of(name)) for name in checkpoint.modules[key]]
        handles = [module.register_forward_pre_hook(rounded) for module in modules]
        changed = call.replay(model)
        for handle in handles:
            handle.remove()
        expected = sum((v * 100 * (b - a)).sum().item() for v, a, b in zip(probe, before, changed, strict=True))
        assert one.error == pytest.approx(expected**2 / values, rel=0.1, abs=1e-3 * largest), key
        assert one.scale == scale and one.rows == rows[0]
        assert one.work == rows[0] * checkpoint.tensors[key].values


@pytest.mark.parametrize(
    ("name", "guidance", "factor"),
    [("z-image", 0.0, 1.0), ("z-image", 2.0, 13.0), ("sdxl", 3.0, 13.0), ("sdxl", 1.0, 1.0), ("flux-1-dev", 3.5, 1.0)],
)
def test_guidance_amplifies_what_is_independent_in_two_calls(name, guidance, factor):
    """Its variance is that of g · a − (g − 1) · b with two independent a and b."""
    architecture = ARCHITECTURES[name]
    made = Calibration({}, {"generation": {"guidance": guidance}}, [])
    assert measure.amplification(SimpleNamespace(architecture=architecture), made) == factor
    assert measure.amplification(SimpleNamespace(architecture=architecture), Calibration({}, {}, [])) == 1


def test_only_some_rows_of_a_call_count(checkpoint, calibration, plans, tmp_path, monkeypatch):
    """Half of the rows, whose losses do not depend on each other, say about as much as all of them."""
    scales = {d.key: 0.125 for d in plans[Format.V1].quantized}
    whole = measured(checkpoint, calibration, plans, tmp_path, scales=scales).inputs[Number.FP8]
    rows = int(max(one.rows for one in whole.values()))
    monkeypatch.setattr(inputs, "INPUT_ROWS", rows // 2)
    half = measured(checkpoint, calibration, plans, tmp_path, scales=scales).inputs[Number.FP8]
    assert {key: one.work for key, one in half.items()} == {key: one.work for key, one in whole.items()}
    assert half != whole
    ratio = sum(one.error for one in half.values()) / sum(one.error for one in whole.values())
    assert 1 / 3 < ratio < 3


def test_as_many_calls_as_wanted_are_used_evenly_spread(checkpoint, calibration, plans, tmp_path):
    one, other, *_ = calibration.calls
    several = replace(calibration, calls=[one, other, one, other])
    half = measured(checkpoint, several, plans, tmp_path, calls=2)
    assert half == measured(checkpoint, replace(calibration, calls=[one, one]), plans, tmp_path)
    assert half != measured(checkpoint, several, plans, tmp_path)


def test_without_calls_it_says_what_to_run(checkpoint, calibration, plans, tmp_path):
    with pytest.raises(HSWQError, match="hswq-hub calibrate"):
        measured(checkpoint, replace(calibration, calls=[]), plans, tmp_path)
