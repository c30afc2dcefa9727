"""What is kept and why, on plans made by hand; and the errors that decide it, against a slow way to measure them."""

import json
from dataclasses import replace

import pytest
import torch
from support import tiny

from hswq_hub.calibration.calibrate import Calibration
from hswq_hub.generation.generate import GenerationSettings, final_latents, generate, open_pipeline
from hswq_hub.quantization.choices.keep import check_budget, keep, settled, size_range
from hswq_hub.quantization.compensate import write_compensated
from hswq_hub.quantization.plan import input_scales, plan_everything
from hswq_hub.quantization.samples.inputs import InputRounding
from hswq_hub.quantization.writer import planned_bytes, write_quantized
from hswq_hub.settings import ALL_FORMATS, RoundingSettings, recipe
from hswq_hub.sources.find import resolve
from hswq_runtime import Checkpoint, Format, load_model
from hswq_runtime.errors import HSWQError
from hswq_runtime.formats import Number
from hswq_runtime.layers.fp8 import quantize


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Checkpoint:
    return Checkpoint(tiny.checkpoint(tmp_path_factory.mktemp("source")))


@pytest.fixture(scope="module")
def calibration(source) -> Calibration:
    return tiny.calibration(source)


@pytest.fixture(scope="module")
def plan(source, calibration):
    return plan_everything(source, calibration, [Format.V1], recipe())[Format.V1]


def errors_of(plan, large: dict[str, float]) -> dict[str, float]:
    return {d.key: large.get(d.layer, 1e-9) for d in plan.quantized}


def kept(plan) -> set[str]:
    return {d.layer for d in plan.kept if not d.never}


def test_the_error_counts_per_byte(source, plan):
    """x_embedder has 96·16 values and w1 256·96: a tenth of the error on a sixteenth of the bytes is worth more."""
    errors = errors_of(plan, {"layers.0.feed_forward.w1": 1e-3, "x_embedder": 1e-4})
    first = keep(plan, source, recipe(keep_ratio=1 / len(plan.quantized)), errors)
    assert kept(first) == {"x_embedder"}
    (decision,) = (d for d in first.decisions if d.layer == "x_embedder")
    assert decision.reason.startswith("error per byte rank 1 of 21, within the keep ratio")
    assert decision.error == 1e-4 and decision.scale is None


@pytest.mark.parametrize("limit", [{"budget": 0.8}, {"budget": 3.0}, {"keep_ratio": 0.25}, {"keep_ratio": 1.0}])
@pytest.mark.parametrize("cheapest_first", [True, False])
def test_the_size_that_is_foretold_bounds_every_file(source, plan, limit, cheapest_first):
    """Whatever is ranked first; and where all may be kept, the bound is that file."""
    wanted = recipe(rounding="nearest", **limit)
    size = {d.key: source.tensors[d.key].values for d in plan.quantized}
    errors = {key: 1 / n**2 if cheapest_first else float(n**2) for key, n in size.items()}
    chosen = keep(plan, source, wanted, errors)
    least, most = size_range(source, Format.V1, wanted)
    marks = 450 * len(source.layers)  # what a quantized layer has beside its weight, and a kept one has not
    assert least - marks <= planned_bytes(source, chosen) <= most
    if limit in ({"budget": 3.0}, {"keep_ratio": 1.0}):
        assert not chosen.quantized and most - planned_bytes(source, chosen) < marks


def test_a_budget_that_cannot_be_met_has_no_sizes(source):
    with pytest.raises(HSWQError, match="budget 0\\.1 cannot be met"):
        size_range(source, Format.V1, recipe(budget=0.1))


def test_the_default_budget_is_never_refused(source, plan):
    """With nothing kept the tiny model takes 0.7 of its size in 16 bits: there is room for 1.5 % of the rest anyway."""
    check_budget(source, Format.V2, recipe())
    chosen = keep(plan, source, recipe(), errors_of(plan, {"x_embedder": 1.0}))
    possible = sum(source.tensors[d.key].values for d in plan.quantized)
    taken = sum(source.tensors[d.key].values for d in chosen.kept if not d.never)
    assert "x_embedder" in kept(chosen) and taken <= 0.015 * possible
    least, most = size_range(source, Format.V1, recipe())
    assert most - least == int(0.015 * possible)
    stated = settled(recipe(), source, Format)
    assert 0.7 < stated.budget < 0.8 and stated.label.startswith("measured (budget 0.7")
    check_budget(source, Format.V1, recipe(budget=stated.budget))
    with pytest.raises(HSWQError, match=r"budget 0\.56 cannot be met"):
        check_budget(source, Format.V1, recipe(budget=0.56))


def test_a_budget_that_leaves_room_stays_as_it_is():
    assert settled(recipe(), resolve("demo").checkpoint, Format) == recipe()
    assert settled(recipe("hswq"), resolve("demo").checkpoint, Format).keep_ratio == 0.1


@pytest.mark.parametrize("budget", [0.75, 0.8, 0.9, 1.1])
def test_the_file_is_within_the_budget_and_uses_it(source, plan, budget, tmp_path):
    errors = errors_of(plan, {"x_embedder": 1.0})
    chosen = keep(plan, source, recipe(rounding="nearest", budget=budget), errors)
    path = tmp_path / "out.safetensors"
    nearest = keep(plan_nearest(source, plan), source, recipe(rounding="nearest", budget=budget), errors)
    write_quantized(source, nearest, path, source_sha256="0" * 64)
    whole = 2 * sum(info.values for info in source.denoiser_tensors.values())
    marks = 450 * (1 + len(source.layers))  # header, scales and what ComfyUI asks for do not count
    assert kept(chosen) == kept(nearest) and "x_embedder" in kept(chosen)
    assert path.stat().st_size <= budget * whole + marks
    left = [source.tensors[d.key].values for d in chosen.quantized]
    assert not left or path.stat().st_size + min(left) > budget * whole - marks


def plan_nearest(source, plan):
    return replace(plan, decisions=tuple(replace(d, rounding="nearest") if d.quantized else d for d in plan.decisions))


def test_an_impossible_budget_says_what_is_possible(source, plan):
    with pytest.raises(HSWQError, match=r"budget 0\.4 cannot be met: .* take 0\.7\d+; raise --budget"):
        keep(plan, source, recipe(budget=0.4), errors_of(plan, {}))
    with pytest.raises(HSWQError, match="budget 0\\.4 cannot be met"):
        check_budget(source, Format.V1, recipe(budget=0.4))
    check_budget(source, Format.V2, recipe(budget=0.75))


def test_a_keep_ratio_and_a_budget_exclude_each_other():
    with pytest.raises(ValueError, match="cannot both be kept"):
        recipe(keep_ratio=0.1, budget=0.6)
    assert recipe(keep_ratio=0.1).budget is None and recipe("hswq", budget=0.6).keep_ratio is None


def test_the_header_says_what_differs_from_the_recipe():
    assert recipe().label == "measured"
    assert recipe("hswq", rounding="gptq", keep_ratio=0.2).label == "hswq (rounding gptq, keep_ratio 0.2)"
    assert recipe("hswq", search="exact").label == "hswq (search changed)"
    assert recipe(search="none").label == "measured"


def test_pictures_of_a_batch_are_those_made_alone():
    source = resolve("demo")
    checkpoint = source.checkpoint
    model = load_model(checkpoint, torch.float32)
    pipeline = open_pipeline(checkpoint, model, source.base, torch.device("cpu"))
    generation = GenerationSettings.of(checkpoint.architecture, pipeline.vae.config, steps=2, size=32)
    prompts = source.prompts.calibration[:2]
    together = final_latents(pipeline, prompts, [5, 6], generation)
    alone = torch.stack([generate(pipeline, p, s, generation).latents for p, s in zip(prompts, [5, 6], strict=True)])
    assert torch.allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize(("rounding", "formats"), [("gptq", ALL_FORMATS), ("kfac", [Format.V1])])
def test_compensated_files_are_the_same_whatever_the_memory(source, calibration, tmp_path, rounding, formats):
    plans, written = plan_everything(source, calibration, formats, recipe(rounding=rounding)), []
    for memory in (1.0, 0.0015):
        paths = {format: tmp_path / f"{format}-{memory}.safetensors" for format in formats}
        arguments = source, calibration, plans, paths, rounding, RoundingSettings(sweeps=1)
        write_compensated(*arguments, source_sha256="0" * 64, memory=memory)
        written.append({format: path.read_bytes() for format, path in paths.items()})
    assert written[0] == written[1]
    exact, nearest = tiny.run(load_model(source, torch.float32)), tmp_path / "nearest.safetensors"
    for format, path in paths.items():
        error = (tiny.run(load_model(path, torch.float32)) - exact).square().mean()
        write_quantized(source, plan_nearest(source, plans[format]), nearest, source_sha256="0" * 64)
        assert error < 0.5 * (tiny.run(load_model(nearest, torch.float32)) - exact).square().mean()


def test_row_scales_are_stored_a_row(source, calibration, tmp_path):
    plans = plan_everything(source, calibration, [Format.V2], recipe(row_scales=True, rounding="nearest"))
    path = tmp_path / "rows.safetensors"
    write_quantized(source, plans[Format.V2], path, source_sha256="0" * 64)
    stored = Checkpoint(path)
    for decision in plans[Format.V2].quantized:
        layer = decision.key.removesuffix(".weight")
        weight, scale = source.tensor(decision.key).float(), stored.tensor(f"{layer}.scale")
        assert scale.shape == (len(weight), 1)
        assert torch.equal(scale, weight.abs().amax(dim=1, keepdim=True) / 448)
        assert torch.equal(stored.tensor(decision.key).float(), quantize(weight, scale).float())
    assert json.dumps(plans[Format.V2].as_rows())


def roundings(plan, source, errors: dict[str, float]) -> dict[str, InputRounding]:
    """Of every linear layer, each with 32 rows; `errors` by layer."""
    linear = [d for d in plan.quantized if d.kind == "Linear"]
    return {
        d.key: InputRounding(0.5, errors.get(d.layer, 1e-6), 32.0 * source.tensors[d.key].values, 32.0) for d in linear
    }


def fast(plan) -> set[str]:
    return {d.layer for d in plan.decisions if d.input_scale is not None}


def share(plan) -> float:
    return sum(d.work for d in plan.decisions if d.input_scale is not None)


@pytest.mark.parametrize("speed", [0.0, 0.3, 0.6, 1.0])
def test_a_speed_is_a_share_of_the_work_of_layers_that_lose_least(source, plan, speed):
    errors = {"layers.0.feed_forward.w1": 1.0, "layers.0.attention.qkv": 1e-9}
    wanted, inputs = recipe(speed=speed, keep_ratio=0), roundings(plan, source, errors)
    chosen = keep(plan, source, wanted, errors_of(plan, {}), {Number.FP8: inputs})
    assert sum(d.work for d in chosen.decisions if d.work) == pytest.approx(1)
    possible = {
        d.layer
        for d in keep(
            plan, source, recipe(speed=1.0, keep_ratio=0), errors_of(plan, {}), {Number.FP8: inputs}
        ).decisions
        if d.input_scale
    }
    assert share(chosen) >= speed or fast(chosen) == possible
    if speed == 0:
        assert not fast(chosen)
    elif speed < 1:
        assert "layers.0.attention.qkv" in fast(chosen) and "layers.0.feed_forward.w1" not in fast(chosen)
    for decision in chosen.quantized:
        assert decision.exact == (decision.kind == "Linear" and decision.input_scale is None), decision.layer


def test_without_a_speed_the_error_at_most_doubles(source, plan):
    errors, wanted = errors_of(plan, {}), recipe(keep_ratio=0)
    exact = sum(errors.values())
    for each in (exact / 100, exact / 2, 2 * exact):
        inputs = {key: replace(one, error=each) for key, one in roundings(plan, source, {}).items()}
        chosen = keep(plan, source, wanted, errors, {Number.FP8: inputs})
        added = sum(d.input_error for d in chosen.decisions if d.input_scale is not None)
        assert added <= exact
        assert len(fast(chosen)) <= exact / each
        assert bool(fast(chosen)) == (each < exact)


def test_layers_that_gain_nothing_or_must_not_are_exact(source, plan):
    """Those called with one row, of odd sizes, that feed everything else, are kept, or never saw anything."""
    inputs, wanted = roundings(plan, source, {}), recipe(speed=1.0, keep_ratio=0)
    chosen = keep(plan, source, wanted, errors_of(plan, {}), {Number.FP8: inputs})
    sensitive = {d.layer for d in plan.quantized if any(map(source.architecture.is_sensitive, modules(source, d.key)))}
    assert sensitive and not sensitive & fast(chosen)
    one, *others = sorted(fast(chosen))
    (key,) = (d.key for d in plan.decisions if d.layer == one)
    for spoilt in ({**inputs, key: replace(inputs[key], rows=1.0)}, {k: v for k, v in inputs.items() if k != key}):
        assert fast(keep(plan, source, wanted, errors_of(plan, {}), {Number.FP8: spoilt})) == set(others)
    kept_too = keep(plan, source, replace(wanted, keep_ratio=1.0), errors_of(plan, {}), {Number.FP8: inputs})
    assert not fast(kept_too) and not any(d.exact for d in kept_too.decisions)
    rows = replace(plan, format=Format.V2, decisions=tuple(replace(d, row_scales=d.quantized) for d in plan.decisions))
    assert not fast(keep(rows, source, wanted, errors_of(plan, {}), {Number.FP8: inputs}))
    folded = replace(plan, moves={key: ((source.tensors[key].shape[0], 1),)})
    assert not fast(keep(folded, source, wanted, errors_of(plan, {}), {Number.FP8: inputs}))


def modules(source, key: str) -> list[str]:
    return [name.removesuffix(".weight") for name in source.modules[key]]


def test_as_published_products_stay_as_they_were(source, calibration):
    how = recipe("hswq", search="none")
    plan = plan_everything(source, calibration, [Format.V1], how)[Format.V1]
    chosen = keep(plan, source, how)
    assert not any(d.exact or d.input_scale for d in chosen.decisions)
    with pytest.raises(ValueError, match="keep by error"):
        recipe("hswq", speed=0.5)
    with pytest.raises(ValueError, match="or the fold"):
        recipe(speed=0.5, fold=True)


@pytest.mark.parametrize(("largest", "scale"), [(224.0, 1.0), (225.0, 2.0), (1e-6, 2.0**-27), (6.6e4, 512.0)])
def test_an_input_scale_leaves_room_for_twice_what_was_seen(source, calibration, plan, largest, scale):
    layers = {name: replace(s, largest_input=largest) for name, s in calibration.layers.items()}
    found = set(input_scales(source, replace(calibration, layers=layers), plan).values())
    assert found == {scale} and 2 * largest <= 448 * scale < 4 * largest
    nothing = {name: replace(s, largest_input=0.0) for name, s in calibration.layers.items()}
    assert input_scales(source, replace(calibration, layers=nothing), plan) == {}


def test_scales_take_no_layer_from_v2(source, plan):
    """In a model as small as this they weigh as much as some layers do."""
    errors = errors_of(plan, {d.key: 1.0 for d in plan.quantized})
    wanted = recipe(rounding="nearest", budget=0.8)
    v2 = replace(plan, format=Format.V2)
    assert planned_bytes(source, v2) > planned_bytes(source, plan)
    assert kept(keep(v2, source, wanted, errors)) == kept(keep(plan, source, wanted, errors))
