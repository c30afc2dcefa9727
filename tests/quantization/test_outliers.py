"""A layer whose input has an outlier 6.6e4 times as large as the rest: at one scale for all, the rest is lost."""

from dataclasses import replace

import torch
from safetensors.torch import load_file, save_file
from support import tiny

from hswq_hub.calibration.calibrate import Calibration, monitor
from hswq_hub.generation.recording import record_calls
from hswq_hub.quantization.choices.keep import keep
from hswq_hub.quantization.measure import Errors, measure_errors
from hswq_hub.quantization.plan import Plan, input_scales, plan_everything
from hswq_hub.quantization.writer import codes_of, write_quantized
from hswq_hub.settings import ErrorSettings, recipe
from hswq_runtime import Checkpoint, Format, load_model, set_quantized_matmul
from hswq_runtime.formats import Number, Reader
from hswq_runtime.layers.fp8 import quantize_input

OUTLIER = 6.6e4
LAYERS = ("layers.0.feed_forward.w1.weight", "layers.0.feed_forward.w3.weight")
HOW = recipe(rounding="nearest", keep_ratio=0)


def checkpoint(folder, outlier: float) -> Checkpoint:
    """One channel in front of a feed-forward layer is so large, its weights so small that the function is the same."""
    tensors = load_file(tiny.checkpoint(folder))
    prefix = next(key for key in tensors if key.endswith(LAYERS[0])).removesuffix(LAYERS[0])
    for name in LAYERS:
        tensors[prefix + name][:, 0] /= outlier
    norm = tensors[f"{prefix}layers.0.ffn_norm1.weight"]
    norm[0] = norm.abs().max() * outlier
    save_file(tensors, folder / "outlier.safetensors")
    return Checkpoint(folder / "outlier.safetensors")


def measured(source: Checkpoint, place) -> tuple[Plan, Errors]:
    model = load_model(source, torch.float32)
    with record_calls(model, set(range(8))) as calls, monitor(model) as layers, torch.no_grad():
        for seed in range(8):
            model(**tiny.inputs(seed))
    calibration = Calibration(layers, {"dtype": "float32"}, calls)
    plan = plan_everything(source, calibration, [Format.V2], HOW)[Format.V2]
    scales, codes = input_scales(source, calibration, plan), {Format.V2: codes_of(source, Format.V2)}
    return plan, measure_errors(
        source, calibration, {Format.V2: plan}, codes, ErrorSettings(), scales=scales, place=place
    )


def squared_error(source: Checkpoint, plan: Plan, place) -> float:
    write_quantized(source, plan, place / "file.safetensors", source_sha256="0" * 64)
    model = load_model(place / "file.safetensors", torch.float32)
    set_quantized_matmul(model, reader=Reader.COMFYUI)
    return (tiny.run(model) - tiny.run(load_model(source, torch.float32))).square().mean().item()


def test_it_is_known_by_its_error_and_collapses_no_file(tmp_path):
    (tmp_path / "plain").mkdir()
    source = checkpoint(tmp_path, OUTLIER)
    _, usual = measured(checkpoint(tmp_path / "plain", 1.0), tmp_path)
    plan, errors = measured(source, tmp_path)
    bad = [d.key for d in plan.quantized if d.key.endswith(LAYERS)]
    for key in bad:
        assert errors.inputs[Number.FP8][key].scale >= OUTLIER / 8 * usual.inputs[Number.FP8][key].scale
        assert errors.inputs[Number.FP8][key].error > 10 * usual.inputs[Number.FP8][key].error

    def chosen(speed: float | None) -> Plan:
        how = replace(HOW, speed=speed)
        return keep(plan, source, how, errors.weights[Format.V2], errors.inputs)

    assert not {d.key for d in chosen(0.5).decisions if d.input_scale is not None} & {*bad}
    exact = squared_error(source, chosen(0.0), tmp_path)
    assert squared_error(source, chosen(None), tmp_path) < 3 * exact
    seen: list[torch.Tensor] = []
    model = load_model(source, torch.float32)
    layer = model.layers[0].feed_forward.w1
    layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].flatten(0, -2)[:, 1:]))
    tiny.run(model)
    scale = torch.tensor(errors.inputs[Number.FP8][bad[0]].scale)
    lost = quantize_input(seen[0], scale).float() * scale - seen[0]
    assert lost.norm() > 0.1 * seen[0].norm(), "or the layer would be no danger"
