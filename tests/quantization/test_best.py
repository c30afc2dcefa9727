"""One file of FP8 and INT8 layers: each has what changes the output less, and readers find it so."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from support import tiny
from support.kitchen import theirs_in

from hswq_hub.cli.main import main
from hswq_hub.quantization.choices.best import candidates, check_best, plan_best
from hswq_hub.quantization.choices.keep import keep
from hswq_hub.quantization.measure import Errors
from hswq_hub.quantization.plan import Plan, plan_everything
from hswq_hub.quantization.samples.inputs import InputRounding
from hswq_hub.settings import CalibrationSettings, recipe
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.quantize import quantize
from hswq_runtime import Checkpoint, Format, HSWQLinear, HSWQPipeline, load_model, set_quantized_matmul
from hswq_runtime.errors import HSWQError
from hswq_runtime.formats import Number, Reader, layer_of

WIDE = ("layers.0.feed_forward.w1.weight", "noise_refiner.0.feed_forward.w2.weight")
"""Layers whose rows have a weight that is so much larger than the others that all of its group, rotated, are large."""


def spiked(tensors):
    for name in WIDE:
        weight = tensors[tiny.PREFIX + name]
        weight[:, 5] = 8.0


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return resolve(str(tiny.checkpoint(tmp_path_factory.mktemp("tiny"), change=spiked)), base=resolve("demo").base)


@pytest.fixture(scope="module")
def calibration(source):
    found = tiny.calibration(source.checkpoint)
    found.made_by.update(
        source_sha256=source.sha256,
        configuration=source.checkpoint.config,
        settings=vars(CalibrationSettings(samples=1, steps=1, device="cpu")),
    )
    return found


@pytest.fixture(scope="module")
def plans(source, calibration) -> dict[Format, Plan]:
    return plan_everything(source.checkpoint, calibration, (Format.V2, Format.INT8), recipe())


@pytest.fixture(scope="module")
def made(source, calibration, tmp_path_factory):
    """Path and plan of each format."""
    folder, formats = tmp_path_factory.mktemp("best"), (Format.V2, Format.INT8, Format.BEST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSWQ_HOME", str(folder / "home"))
        found = quantize(source, calibration, formats, folder, recipe(keep_ratio=0.1, speed=0.3), device="cpu")
    return dict(zip(formats, found, strict=True))


def test_every_layer_has_what_costs_less(made):
    stored = {format: load_file(path) for format, (path, _) in made.items()}
    rows = {format: {d.key: d for d in plan.decisions} for format, (_, plan) in made.items()}
    best = rows[Format.BEST]
    assert {best[tiny.PREFIX + name].number for name in WIDE} == {Number.FP8}
    numbers = [d.number for d in best.values() if d.quantized]
    assert 0 < numbers.count(Number.FP8) < len(numbers) / 2
    for key, decision in best.items():
        if not decision.quantized:
            continue
        other = Format.INT8 if decision.number is Number.INT8 else Format.V2
        totals = {
            f: rows[f][key].error + (rows[f][key].input_error or 0) * decision.rounds_input
            for f in (Format.V2, Format.INT8)
        }
        assert totals[other] == min(totals.values())
        assert decision.error == rows[other][key].error
        assert torch.equal(stored[Format.BEST][key].view(torch.uint8), stored[other][key].view(torch.uint8))
        layer = layer_of(key)
        scale, theirs = (stored[format][f"{layer}.weight_scale"] for format in (Format.BEST, other))
        assert torch.equal(scale, theirs)
        said = json.loads(bytes(stored[Format.BEST][f"{layer}.comfy_quant"].tolist()))
        assert said["format"] == decision.number.value
        assert said.get("full_precision_matrix_mult", False) == decision.exact
        assert f"{layer}.scale" not in stored[Format.BEST], "ComfyUI's own is enough"
        assert (f"{layer}.input_scale" in stored[Format.BEST]) == (decision.number is Number.FP8 and not decision.exact)


def test_it_is_no_larger_and_closer(made, source):
    reference = tiny.run(load_model(source.checkpoint, torch.float32))
    errors = {
        format: (tiny.run(load_model(path, torch.float32)) - reference).square().sum().item()
        for format, (path, _) in made.items()
    }
    sizes = {format: path.stat().st_size for format, (path, _) in made.items()}
    assert errors[Format.BEST] < min(errors[Format.V2], errors[Format.INT8])
    assert sizes[Format.BEST] < 1.02 * sizes[Format.INT8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_both_kinds_are_computed_as_comfyui_does(made, dtype):
    path, _ = made[Format.BEST]
    ours = load_model(path, dtype)
    layers = [layer for layer in ours.modules() if isinstance(layer, HSWQLinear)]
    assert {layer.number for layer in layers} == {*Number}
    set_quantized_matmul(ours, reader=Reader.COMFYUI)
    arguments = tiny.inputs() | {"x": [x.to(dtype) for x in tiny.inputs()["x"]], "t": torch.tensor([0.4], dtype=dtype)}
    arguments["cap_feats"] = [x.to(dtype) for x in arguments["cap_feats"]]
    with torch.no_grad():
        theirs = theirs_in(load_model(path, dtype))(**arguments)[0][0]
        assert torch.equal(ours(**arguments)[0][0], theirs)


def test_it_is_found_saved_and_reopened(made, source, tmp_path):
    path, _ = made[Format.BEST]
    pipe = HSWQPipeline.from_pretrained(path.parent, variant="best", base=source.base, dtype=torch.float32)
    expected = tiny.run(pipe.transformer)
    assert Checkpoint(path).format is Format.BEST
    pipe.transformer.save_pretrained(tmp_path / "saved")
    again = type(pipe.transformer).from_pretrained(tmp_path / "saved", torch_dtype=torch.float32)
    assert torch.equal(tiny.run(again), expected)
    assert {m.number for m in again.modules() if isinstance(m, HSWQLinear)} == {*Number}


def test_rounded_inputs_count_where_readers_round_them(plans, source):
    """Weights lose a little less in FP8, rounded inputs much more: FP8 for exact products, INT8 for all others."""
    keys = [d.key for d in plans[Format.V2].quantized]
    errors = Errors(
        {Format.V2: dict.fromkeys(keys, 0.9), Format.INT8: dict.fromkeys(keys, 1.0)},
        {
            number: {key: InputRounding(None if number is Number.INT8 else 1.0, error, 1e6, 64.0) for key in keys}
            for number, error in ((Number.FP8, 5.0), (Number.INT8, 0.1))
        },
    )
    how = recipe(keep_ratio=0.1)
    for speed, expected in ((0.0, {Number.FP8}), (1.0, {Number.INT8})):
        plan = plan_best(plans, source.checkpoint, replace(how, speed=speed), errors)
        assert {d.number for d in plan.quantized if speed == 0.0 or d.rounds_input} == expected
        assert all(d.exact for d in plan.quantized if d.number is Number.FP8)
        assert all(d.error == (0.9 if d.number is Number.FP8 else 1.0) for d in plan.quantized)


def test_by_default_rounded_inputs_may_not_cost_more_than_weights(plans, source):
    """Of an INT8 file nine tenths of the work are multiplied so, whatever that costs."""
    keys = [d.key for d in plans[Format.V2].quantized]
    inputs = {
        number: {key: InputRounding(None if number is Number.INT8 else 1.0, 5.0, 1e6, 64.0) for key in keys}
        for number in Number
    }
    errors = Errors({Format.V2: dict.fromkeys(keys, 2.0), Format.INT8: dict.fromkeys(keys, 1.0)}, inputs)
    how = recipe(keep_ratio=0.1)
    best = plan_best(plans, source.checkpoint, how, errors)
    rounded = [d for d in best.quantized if d.rounds_input]
    assert 0 < sum(d.input_error for d in rounded) <= sum(d.error for d in best.quantized)
    int8 = keep(plans[Format.INT8], source.checkpoint, how, errors.weights[Format.INT8], inputs)
    assert sum(d.rounds_input for d in int8.quantized) > 2 * len(rounded)


def test_what_is_made_for_it():
    assert candidates([Format.BEST]) == (Format.V2, Format.INT8)
    assert candidates([Format.BEST, Format.V1]) == (Format.V1, Format.V2, Format.INT8)
    assert candidates([Format.INT8]) == (Format.INT8,)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [(recipe("hswq"), "measures no errors.*--format all"), (recipe(row_scales=True), "a scale a row")],
    ids=["hswq", "rows"],
)
def test_a_recipe_that_cannot_choose_is_refused(how, sentence):
    check_best([Format.V2, Format.INT8], how)
    with pytest.raises(HSWQError, match=sentence):
        check_best([Format.BEST], how)


def test_the_command_line_refuses_it_before_any_work(source):
    words = ["publish", str(source.path), "--base", str(source.base), "--format", "best", "--recipe", "hswq"]
    result = CliRunner().invoke(main, [*words, "--dry-run"])
    assert result.exit_code == 2 and "measures no errors" in result.output, result.output
