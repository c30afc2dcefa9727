"""SDXL and SD 1.5, end to end on small UNets in the original layout, with everything around them in the same file."""

import json
import shutil
from dataclasses import replace
from functools import cache

import accelerate
import diffusers
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub.utils import filter_repo_objects
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import tiny_unet
from torch._dynamo.testing import CompileCounter

from hswq_hub.calibration.calibrate import calibrate
from hswq_hub.cards.card import write_card
from hswq_hub.cli.main import main
from hswq_hub.settings import (
    CalibrationSettings,
    ErrorSettings,
    EvaluationSettings,
    PublishSettings,
    RoundingSettings,
    recipe,
)
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.publish import publish
from hswq_hub.workflow.quantize import quantize
from hswq_runtime import Checkpoint, Format, HSWQConfig, HSWQConv2d, HSWQLinear, HSWQPipeline, load_model
from hswq_runtime.architectures import ARCHITECTURES, architecture_of, recognise
from hswq_runtime.checkpoints.mapping import trace
from hswq_runtime.errors import ComponentError, FormatError, HSWQError, UnknownArchitectureError
from hswq_runtime.formats import Reader
from hswq_runtime.layers.fp8 import FP8
from hswq_runtime.pipeline import fetch_base

KINDS = ["sdxl", "sd-1.5"]
PREFIX = tiny_unet.PREFIX
SMALL = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "np"}
QUICK = RoundingSettings(sweeps=0, tokens=64)
CALIBRATION = CalibrationSettings(samples=1, steps=2)
CONVOLUTION = f"{PREFIX}input_blocks.1.0.in_layers.2.weight"
LINEAR = f"{PREFIX}time_embed.0.weight"


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """kind -> a full checkpoint, and its base without weights."""
    return cache(lambda kind: tiny_unet.full(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="module")
def quantized(full, tmp_path_factory):
    """(kind, version, reader) -> a quantized file; SDXL's V2 with compensated rounding."""

    @cache
    def calibrated(kind):
        path, base = full(kind)
        source = resolve(str(path), str(base))
        return source, calibrate(source, CALIBRATION)

    @cache
    def made(kind, version, reader=Reader.HSWQ):
        rounding = "gptq" if kind == "sdxl" and version is Format.V2 else "nearest"
        how = replace(recipe("hswq", rounding=rounding, keep_ratio=0.1, reader=reader), compensation=QUICK)
        ((path, _),) = quantize(*calibrated(kind), [version], tmp_path_factory.mktemp("quantized"), how)
        return path

    return made


def plain_values(path) -> dict[str, torch.Tensor]:
    """What the UNet's tensors in a file of ours stand for, worked out here."""
    stored = load_file(path)
    return {
        key: tensor.float() * stored.get(key.removesuffix("weight") + "scale", torch.ones(1))
        for key, tensor in stored.items()
        if key.startswith(PREFIX) and tensor.is_floating_point() and not key.endswith((".scale", ".weight_scale"))
    }


def reference(kind, path) -> diffusers.UNet2DConditionModel:
    """The plain model with those values, put together without diffusers' converter."""
    values, model = plain_values(path), tiny_unet.unet(kind).float()
    names = tiny_unet.original_unet({name: name for name in model.state_dict()})
    assert values.keys() == names.keys()
    model.load_state_dict({names[key]: value for key, value in values.items()})
    return model


# --- What it is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_configuration_of_the_real_model_follows_from_its_shapes(kind):
    with accelerate.init_empty_weights():
        model = diffusers.UNet2DConditionModel(**tiny_unet.FULL_SIZE[kind])
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = tiny_unet.original_unet(wanted)
    row, prefix = recognise([*stored, "first_stage_model.decoder.conv_in.weight"])
    assert (row.name, prefix) == (kind, PREFIX)
    shapes = {key.removeprefix(prefix): shape for key, shape in stored.items()}
    config = row.config(shapes)
    with accelerate.init_empty_weights():
        rebuilt = diffusers.UNet2DConditionModel(**config)
    assert {name: tuple(tensor.shape) for name, tensor in rebuilt.state_dict().items()} == wanted
    assert sum(parameter.numel() for parameter in rebuilt.parameters()) == tiny_unet.PARAMETERS[kind]
    heads = [[getattr(module, "heads", None) for module in m.modules()] for m in (model, rebuilt)]
    assert heads[0] == heads[1], "the number of heads is in no shape"
    assert architecture_of(rebuilt) is row
    found = trace(shapes, row.model_class, config, row.converter_prefix)
    assert {name: pieces[0].key for name, pieces in found.items()} == {
        name: key.removeprefix(PREFIX) for key, name in tiny_unet.original_unet({n: n for n in wanted}).items()
    }


def shapes_of(kind, change=lambda config: None):
    """Keys and shapes of a tiny UNet whose configuration is altered."""
    config = dict(tiny_unet.CONFIGS[kind])
    change(config)
    with accelerate.init_empty_weights():
        model = diffusers.UNet2DConditionModel(**config)
    return tiny_unet.original_unet({name: tuple(t.shape) for name, t in model.state_dict().items()}, prefix="")


def as_refiner(config):
    config |= {
        "block_out_channels": (32,) * 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": 1,
        "attention_head_dim": 1,
    }


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        ("sdxl", as_refiner, "refiner"),
        ("sdxl", lambda config: config.update(in_channels=9), "9 channels and gives 4.*inpainting"),
        ("sd-1.5", lambda config: config.update(in_channels=8), "8 channels and gives 4.*editing"),
        ("sd-1.5", lambda config: config.update(use_linear_projection=True), "Stable Diffusion 2"),
        (
            "sdxl",
            lambda config: config.update(
                transformer_layers_per_block=(1, 2), reverse_transformer_layers_per_block=((2, 1, 1), 1)
            ),
            "SSD-1B",
        ),
    ],
    ids=["refiner", "inpainting", "editing", "sd-2", "distilled"],
)
def test_relatives_that_cannot_be_quantized_are_refused_by_name(kind, change, sentence):
    shapes = shapes_of(kind, change)
    row, prefix = recognise(shapes)
    assert (row.name, prefix) == (kind, "")
    with pytest.raises(UnknownArchitectureError, match=sentence):
        row.config(shapes)


def test_hostile_block_numbers_cost_nothing(tmp_path):
    stored = tiny_unet.original_unet(tiny_unet.unet("sdxl").state_dict())
    stored[f"{PREFIX}input_blocks.999999999.0.op.weight"] = torch.zeros(1)
    save_file(stored, tmp_path / "hostile.safetensors")
    with pytest.raises(FormatError, match="input blocks are missing"):
        load_model(tmp_path / "hostile.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_one_class_is_two_architectures_by_its_configuration(kind, tmp_path):
    config = dict(tiny_unet.unet(kind).config)
    assert [row.name for row in ARCHITECTURES.values() if row.model_class == "UNet2DConditionModel"] == KINDS
    assert [row.name for row in ARCHITECTURES.values() if row.component == "unet" and row.fits(config)] == [kind]
    described = json.dumps({"_class_name": "UNet2DConditionModel", **config})
    save_file(tiny_unet.unet(kind).state_dict(), tmp_path / "unet.safetensors", metadata={"hswq_config": described})
    checkpoint = Checkpoint(tmp_path / "unet.safetensors")
    assert checkpoint.architecture.name == kind and not checkpoint.bundled
    model = load_model(checkpoint, torch.float32)
    assert torch.equal(tiny_unet.run(model, kind), tiny_unet.run(tiny_unet.unet(kind).float(), kind))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_file_with_nothing_but_the_unet(tmp_path, prefix):
    stored = tiny_unet.original_unet(tiny_unet.unet("sdxl").state_dict(), prefix)
    save_file(stored | {"v_pred": torch.zeros(0)}, tmp_path / "unet.safetensors")
    checkpoint = Checkpoint(tmp_path / "unet.safetensors")
    assert (checkpoint.prefix, checkpoint.bundled) == (prefix, set())
    assert checkpoint.scheduler == {"prediction_type": "v_prediction"}
    model = load_model(checkpoint, torch.float32)
    assert torch.equal(tiny_unet.run(model, "sdxl"), tiny_unet.run(tiny_unet.unet("sdxl").float(), "sdxl"))
    save_file(stored | {f"{prefix}nobody.weight": torch.zeros(2)}, tmp_path / "more.safetensors")
    with pytest.raises(FormatError, match=r"unexpected .*nobody\.weight"):
        load_model(tmp_path / "more.safetensors")


# --- What it predicts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "metadata", "expected"),
    [
        ([], {}, {}),
        ([], {"modelspec.prediction_type": "epsilon"}, {"prediction_type": "epsilon"}),
        ([], {"modelspec.prediction_type": "v"}, {"prediction_type": "v_prediction"}),
        ([], {"modelspec.predict_key": "v"}, {"prediction_type": "v_prediction"}),
        (["v_pred"], {}, {"prediction_type": "v_prediction"}),
        (["v_pred", "ztsnr"], {}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
        (["v_pred"], {"modelspec.prediction_type": "epsilon"}, {"prediction_type": "v_prediction"}),
    ],
)
def test_velocity_is_told_from_noise(keys, metadata, expected):
    assert ARCHITECTURES["sdxl"].scheduler(keys, metadata) == expected


def test_another_noise_schedule_is_refused_before_anything_is_made(full, tmp_path):
    path, base = full("sdxl")
    marks = {"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}
    save_file(load_file(path) | marks, tmp_path / "edm.safetensors")
    with pytest.raises(UnknownArchitectureError, match="EDM"):
        resolve(str(tmp_path / "edm.safetensors"), str(base))


def test_a_v_prediction_file_keeps_its_scheduler(tmp_path):
    def mark(tensors):
        tensors |= {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}

    path, base = tiny_unet.full("sdxl", tmp_path, change=mark)
    source = resolve(str(path), str(base))
    how = recipe("hswq", rounding="nearest", keep_ratio=0.0)
    ((quantized, _),) = quantize(source, calibrate(source, CALIBRATION), [Format.V2], tmp_path / "out", how)
    for file in (path, quantized):
        scheduler = HSWQPipeline.from_pretrained(file, base=base, dtype=torch.float32).scheduler
        assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.rescale_betas_zero_snr
        assert "scheduler   prediction_type v_prediction" in CliRunner().invoke(main, ["inspect", str(file)]).output
    given = diffusers.DDIMScheduler()
    pipe = HSWQPipeline.from_pretrained(path, base=base, dtype=torch.float32, scheduler=given)
    assert pipe.scheduler is given


def test_a_scheduler_that_cannot_do_it_is_refused(tmp_path):
    def mark(tensors):
        tensors |= {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}

    path, base = tiny_unet.full("sd-1.5", tmp_path, change=mark)
    with pytest.raises(ComponentError, match=r"rescale_betas_zero_snr.*PNDMScheduler"):
        HSWQPipeline.from_pretrained(path, base=base, dtype=torch.float32)


# --- From the file to the files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", list(Format))
@pytest.mark.parametrize("kind", KINDS)
def test_the_loaded_model_equals_the_dequantized_reference(full, quantized, kind, version):
    path, (_, base) = quantized(kind, version), full(kind)
    pipe = HSWQPipeline.from_pretrained(path, base=base, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    kinds = {type(module) for module in pipe.unet.modules()}
    assert {HSWQLinear, HSWQConv2d} <= kinds
    plain = reference(kind, path)
    assert torch.equal(tiny_unet.run(pipe.unet, kind), tiny_unet.run(plain, kind))
    ours = pipe("a cat", generator=torch.manual_seed(1), **SMALL).images
    pipe.register_modules(unet=plain)
    assert np.array_equal(ours, pipe("a cat", generator=torch.manual_seed(1), **SMALL).images)
    original = tiny_unet.run(tiny_unet.unet(kind).float(), kind)
    assert 0 < (tiny_unet.run(plain, kind) - original).norm() < 0.2 * original.norm()


def test_it_compiles_into_one_graph(quantized):
    torch._dynamo.reset()
    model = load_model(quantized("sd-1.5", Format.V2), torch.float32)
    counter = CompileCounter()
    found = tiny_unet.run(torch.compile(model, fullgraph=True, backend=counter), "sd-1.5")
    assert counter.frame_count == 1
    assert torch.equal(found, tiny_unet.run(model, "sd-1.5"))


@pytest.mark.parametrize("version", list(Format))
@pytest.mark.parametrize("kind", KINDS)
def test_all_but_the_unet_is_copied_to_the_byte(full, quantized, kind, version):
    before, after = raw(full(kind)[0]), raw(quantized(kind, version))
    others = {key for key in before if not key.startswith(PREFIX)}
    assert any(".embedders.0." in key or key.startswith("cond_stage_model.") for key in others)
    assert others == {key for key in after if not key.startswith(PREFIX)}
    assert {key: before[key] for key in others} == {key: after[key] for key in others}


def raw(path) -> dict[str, tuple[str, list[int], bytes]]:
    """Dtype, shape and bytes by key, read without any library."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    body = memoryview(data)[8 + size :]
    return {k: (e["dtype"], e["shape"], bytes(body[slice(*e["data_offsets"])])) for k, e in header.items()}


@pytest.mark.parametrize(
    ("version", "reader", "convolution", "linear"),
    [
        (Format.V1, Reader.HSWQ, [], ["comfy_quant", "weight_scale"]),
        (Format.V2, Reader.HSWQ, ["scale"], ["comfy_quant", "scale", "weight_scale"]),
        (Format.V2, Reader.COMFYUI, [], ["comfy_quant", "scale", "weight_scale"]),
    ],
)
def test_what_goes_beside_a_convolution(quantized, version, reader, convolution, linear):
    stored = load_file(quantized("sdxl", version, reader))
    found = {1: set(), 2: set()}
    for key in [k for k in stored if stored[k].dtype == FP8]:
        layer = key.removesuffix("weight")
        beside = sorted(k.removeprefix(layer) for k in stored if k.startswith(layer) and k not in (key, layer + "bias"))
        found[stored[key].ndim // 2].add(tuple(beside))
    assert found == {2: {tuple(convolution)}, 1: {tuple(linear)}}


def test_stock_comfyui_reads_what_is_written_for_it(full, quantized):
    """It multiplies with `weight_scale`, on linear layers only, and takes every other value as it is."""
    before = load_file(full("sdxl")[0])
    after = load_file(quantized("sdxl", Format.V2, Reader.COMFYUI))
    worst = 0.0
    for key in [k for k in after if after[k].dtype == FP8]:
        value = after[key].float() * after.get(key + "_scale", torch.ones(()))
        worst = max(worst, ((value - before[key].float()).norm() / before[key].float().norm()).item())
    assert worst < 0.2
    with safe_open(quantized("sdxl", Format.V2, Reader.COMFYUI), "pt") as file:
        assert file.metadata()["hswq_for"] == "comfyui"
        assert file.metadata()["hswq_recipe"].count("reader comfyui") == 1


def test_a_file_for_comfyui_equals_its_reference_saved_and_reopened(full, quantized, tmp_path):
    path = quantized("sdxl", Format.V2, Reader.COMFYUI)
    pipe = HSWQPipeline.from_pretrained(path, base=full("sdxl")[1], dtype=torch.float32)
    wanted = tiny_unet.run(reference("sdxl", path), "sdxl")
    assert torch.equal(tiny_unet.run(pipe.unet, "sdxl"), wanted)
    pipe.unet.save_pretrained(tmp_path / "unet")
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet", torch_dtype=torch.float32)
    assert torch.equal(tiny_unet.run(again, "sdxl"), wanted)
    single = diffusers.UNet2DConditionModel.from_single_file(
        str(path), config=str(tmp_path / "unet"), quantization_config=HSWQConfig(), torch_dtype=torch.float32
    )
    assert torch.equal(tiny_unet.run(single, "sdxl"), wanted)


def test_a_lost_scale_is_an_error_unless_the_file_is_for_comfyui(quantized, tmp_path):
    for reader in Reader:
        path = quantized("sdxl", Format.V2, reader)
        stored = load_file(path)
        lost = next(key for key in stored if key.endswith(".scale"))
        del stored[lost]
        with safe_open(path, "pt") as file:
            save_file(stored, tmp_path / "lost.safetensors", metadata=file.metadata())
        with pytest.raises(FormatError, match="has no scale"):
            load_model(tmp_path / "lost.safetensors")


def test_every_command_takes_a_full_file(full, tmp_path):
    kind = "sd-1.5"
    path, base = full(kind)

    def run(*words):
        result = CliRunner().invoke(main, [*map(str, words)])
        assert result.exit_code == 0, result.output
        return result.output

    described = run("inspect", path)
    assert ARCHITECTURES[kind].title in described and "model.diffusion_model." in described
    assert f"{sum(p.numel() for p in tiny_unet.unet(kind).parameters()) / 1e6:.1f} million" in described
    assert "holds too   text_encoder, vae" in described
    statistics, out = tmp_path / "statistics.safetensors", tmp_path / "out"
    run("calibrate", path, "--base", base, "--samples", 1, "--steps", 2, "-o", statistics)
    words = ["--recipe", "hswq", "--format", "v2", "--for", "comfyui"]
    run("quantize", path, "--base", base, "--calibration", statistics, *words, "-o", out)
    file = out / f"{kind}-hswq-v2.safetensors"
    assert "never FP8   input_blocks.0.0" in run("inspect", file)
    table = run("evaluate", path, file, "--base", base, "--pairs", 1, "--steps", 2)
    assert f"{kind}-hswq-v2" in table
    refused = CliRunner().invoke(
        main, ["quantize", str(path), "--calibration", str(statistics), "--row-scales", "--for", "comfyui", "-o", "x"]
    )
    assert refused.exit_code == 2 and "exclude each other" in refused.output


def test_publish_measures_and_says_who_reads_what(full, tmp_path):
    path, base = full("sdxl")
    settings = PublishSettings(
        formats=(Format.V2,),
        recipe=replace(
            recipe(rounding="nearest", reader=Reader.COMFYUI, budget=0.6), measurement=ErrorSettings(samples=1, steps=1)
        ),
        calibration=CALIBRATION,
        evaluation=EvaluationSettings(pairs=1, steps=2),
    )
    folder = publish(resolve(str(path), str(base)), tmp_path / "out", settings, command="hswq-hub publish x").folder
    record = json.loads((folder / "hswq.json").read_text())
    convolutions = [row for row in record["layers"]["v2"] if row["kind"] == "Conv2d" and row["number_format"] != "kept"]
    assert convolutions and all(row["unscaled"] and row["scale"] == 1 for row in convolutions)
    assert all("ComfyUI reads none of a convolution" in row["reason"] for row in convolutions)
    assert all(row["error"] > 0 for row in convolutions)
    card = (folder / "README.md").read_text()
    assert "convolutions are plain FP8" in card and "`models/checkpoints/`" in card
    assert "no scale of a convolution" not in card
    pipe = HSWQPipeline.from_pretrained(folder, dtype=torch.float32)
    assert pipe("a cat", **SMALL).images.std() > 0
    for row in record["layers"]["v2"]:
        row["unscaled"] = False
    record["recipe"]["reader"] = "hswq"
    (folder / "hswq.json").write_text(json.dumps(record))
    lines = write_card(folder).read_text().splitlines()
    assert "none here: it reads no scale of a convolution" in next(line for line in lines if "| ComfyUI |" in line)


def test_recorded_calls_are_those_that_were_chosen_whatever_the_scheduler_adds(full):
    """PNDM makes one call more than there are steps: the second picture's calls are numbered from its own first."""
    path, base = full("sd-1.5")
    calls = calibrate(resolve(str(path), str(base)), replace(CALIBRATION, samples=2)).calls
    times = [int(call.args[1]) for call in calls]
    assert len(times) == 4 and times[:2] == times[2:]


# --- The components in the file ----------------------------------------------------------------------------------


def test_components_come_from_the_file(full):
    path, base = full("sdxl")
    pipe = HSWQPipeline.from_pretrained(path, base=base, dtype=torch.float32)
    stored = load_file(path)
    wanted = {
        "conditioner.embedders.0.transformer.text_model.encoder.layers.1.mlp.fc1.weight": (
            pipe.text_encoder.encoder.layers[1].mlp.fc1.weight
        ),
        "conditioner.embedders.1.model.transformer.resblocks.1.mlp.c_fc.weight": (
            pipe.text_encoder_2.text_model.encoder.layers[1].mlp.fc1.weight
        ),
        "first_stage_model.decoder.conv_in.weight": pipe.vae.decoder.conv_in.weight,
    }
    assert all(torch.equal(stored[key].float(), parameter) for key, parameter in wanted.items())
    fused = stored["conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"].float()
    attention = pipe.text_encoder_2.text_model.encoder.layers[0].self_attn
    assert torch.equal(fused, torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]))
    given = diffusers.AutoencoderKL.from_config(pipe.vae.config)
    assert HSWQPipeline.from_pretrained(path, base=base, dtype=torch.float32, vae=given).vae is given


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", "text_encoder .*lacks final_layer"),
        ("conditioner.embedders.1.model.positional_embedding", "text_encoder"),
        ("first_stage_model.decoder.conv_in.weight", "vae .*lacks some of its tensors"),
    ],
)
def test_a_component_with_a_hole_is_refused(full, tmp_path, lost, sentence):
    path, base = full("sdxl")
    stored = load_file(path)
    del stored[lost]
    save_file(stored, tmp_path / "hole.safetensors")
    with pytest.raises(ComponentError, match=sentence):
        HSWQPipeline.from_pretrained(tmp_path / "hole.safetensors", base=base)


def test_a_base_cannot_name_a_class_of_its_own(full, tmp_path):
    path, base = full("sd-1.5")
    shutil.copytree(base, tmp_path / "base")
    index = json.loads((base / "model_index.json").read_text())
    (tmp_path / "base/model_index.json").write_text(json.dumps(index | {"vae": ["os", "system"]}))
    with pytest.raises(ComponentError, match="no class of diffusers or transformers"):
        HSWQPipeline.from_pretrained(path, base=tmp_path / "base")


def test_of_what_the_file_holds_only_the_configuration_is_fetched(full, tmp_path, monkeypatch):
    path, base = full("sd-1.5")
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda repo, allow_patterns, **_: asked.extend(allow_patterns) or tmp_path
    )
    fetch_base(Checkpoint(path), "alice/base")
    needed = {str(p.relative_to(base)) for p in base.rglob("*") if p.is_file()}
    others = {"vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "safety_checker/config.json"}
    assert set(filter_repo_objects(needed | others | {"unet/config.json"}, allow_patterns=asked)) == needed


# --- LoRA --------------------------------------------------------------------------------------------------------


def test_a_lora_on_convolutions_and_linear_layers_is_fused_and_taken_out(full, quantized):
    path = quantized("sdxl", Format.V2)
    pipe = HSWQPipeline.from_pretrained(path, base=full("sdxl")[1], dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    lora = {}
    for name, module in pipe.unet.named_modules():
        if not isinstance(module, (HSWQConv2d, HSWQLinear)) or not name.startswith("mid_block."):
            continue
        down, up = (module.in_channels, module.out_channels) if module.weight.ndim == 4 else module.weight.shape[::-1]
        ends = ((1, 1),) if module.weight.ndim == 4 else ((),)
        size = module.kernel_size if module.weight.ndim == 4 else ()
        lora[f"unet.{name}.lora_A.weight"] = torch.randn(2, down, *size, generator=generator) / down
        lora[f"unet.{name}.lora_B.weight"] = torch.randn(up, 2, *ends[0], generator=generator)
    assert {value.ndim for value in lora.values()} == {2, 4}
    before, state = tiny_unet.run(pipe.unet, "sdxl"), {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(lora, adapter_name="style")
    beside = tiny_unet.run(pipe.unet, "sdxl")
    pipe.fuse_lora(adapter_names=["style"])
    fused = tiny_unet.run(pipe.unet, "sdxl")
    change = (beside - before).norm()
    assert change > 0.05 * before.norm() and (fused - beside).norm() < 0.3 * change
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    after = pipe.unet.state_dict()
    assert after.keys() == state.keys()
    same = [
        torch.equal(after[k].contiguous().view(torch.uint8), state[k].contiguous().view(torch.uint8)) for k in state
    ]
    assert all(same) and torch.equal(tiny_unet.run(pipe.unet, "sdxl"), before)


def test_scales_a_row_are_not_for_comfyui():
    with pytest.raises(ValueError, match="ComfyUI"):
        recipe(row_scales=True, reader=Reader.COMFYUI)


def test_a_quantized_file_is_no_source(quantized):
    with pytest.raises(HSWQError, match="quantized already"):
        resolve(str(quantized("sd-1.5", Format.V1)))
