"""A layer whose input has an outlier of 6.6e4, as Z-Image's have: one scale for all leaves nothing of the rest."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny

from hswq_hub.calibration.calibrate import Calibration, monitor
from hswq_hub.generation.recording import record_calls
from hswq_hub.quantization.keep import keep
from hswq_hub.quantization.measure import measure_errors
from hswq_hub.quantization.plan import input_scales, plan_everything
from hswq_hub.quantization.writer import codes_of, write_quantized
from hswq_hub.settings import ErrorSettings, recipe
from hswq_runtime import Checkpoint, Format, load_model, set_fp8_matmul
from hswq_runtime.formats import Reader

OUTLIER = 6.6e4
LAYERS = ("layers.0.feed_forward.w1.weight", "layers.0.feed_forward.w3.weight")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Checkpoint:
    """One channel in front of a feed-forward layer is so large, and its weights so small that nothing else changes."""
    folder = tmp_path_factory.mktemp("outlier")
    tensors = load_file(tiny.checkpoint(folder))
    prefix = next(key for key in tensors if key.endswith(LAYERS[0])).removesuffix(LAYERS[0])
    tensors[f"{prefix}layers.0.ffn_norm1.weight"][0] *= OUTLIER / 4
    for name in LAYERS:
        tensors[prefix + name][:, 0] *= 4 / OUTLIER
    save_file(tensors, folder / "outlier.safetensors")
    return Checkpoint(folder / "outlier.safetensors")


@pytest.fixture(scope="module")
def calibration(source) -> Calibration:
    model = load_model(source, torch.float32)
    with record_calls(model, {0, 1, 2, 3}) as calls, monitor(model) as layers, torch.no_grad():
        for seed in range(4):
            model(**tiny.inputs(seed))
    return Calibration(layers, {"dtype": "float32"}, calls)


def test_it_stays_exact_and_the_file_close(source, calibration, tmp_path):
    how = recipe(rounding="nearest", keep_ratio=0)
    plan = plan_everything(source, calibration, [Format.V2], how)[Format.V2]
    scales = input_scales(source, calibration, plan)
    bad = [d.key for d in plan.quantized if d.key.endswith(LAYERS)]
    assert len(bad) == 2 and all(scales[key] >= OUTLIER / 448 / 4 for key in bad)
    codes = {Format.V2: codes_of(source, Format.V2)}
    errors = measure_errors(
        source, calibration, {Format.V2: plan}, codes, ErrorSettings(), scales=scales, place=tmp_path
    )
    chosen = keep(plan, source, how, errors.weights[Format.V2], errors.inputs)
    fast = {d.key for d in chosen.decisions if d.input_scale is not None}
    assert fast and not fast & {*bad}
    assert min(errors.inputs[key].error for key in bad) > 100 * max(errors.inputs[key].error for key in fast)

    def squared_error(plan) -> float:
        path = tmp_path / "file.safetensors"
        write_quantized(source, plan, path, source_sha256="0" * 64)
        model = load_model(path, torch.float32)
        set_fp8_matmul(model, reader=Reader.COMFYUI)
        return (tiny.run(model) - tiny.run(load_model(source, torch.float32))).square().mean().item()

    exact = squared_error(keep(plan, source, replace(how, speed=0.0), errors.weights[Format.V2], errors.inputs))
    collapsed = replace(
        plan,
        decisions=tuple(replace(d, input_scale=scales[d.key]) if d.key in bad else d for d in plan.decisions),
    )
    assert squared_error(chosen) < 3 * exact
    assert squared_error(collapsed) > 10 * exact, "or the layer would be no danger"
