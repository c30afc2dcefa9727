"""SDXL and SD 1.5: what is in a quantized file, and which files are no source."""

import json

import diffusers
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import tiny_unet
from support.unet_files import CALIBRATION, KINDS, PREFIX

from hswq_hub.calibration.calibrate import calibrate
from hswq_hub.cli.main import main
from hswq_hub.settings import (
    ALL_FORMATS,
    recipe,
)
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.quantize import quantize
from hswq_runtime import Format, HSWQPipeline
from hswq_runtime.errors import HSWQError, UnknownArchitectureError
from hswq_runtime.formats import Reader
from hswq_runtime.layers.fp8 import FP8


@pytest.mark.parametrize("version", ALL_FORMATS)
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


def test_another_noise_schedule_is_refused_before_anything_is_made(full, tmp_path):
    path, base = full("sdxl")
    marks = {"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}
    save_file(load_file(path) | marks, tmp_path / "edm.safetensors")
    with pytest.raises(UnknownArchitectureError, match="EDM"):
        resolve(str(tmp_path / "edm.safetensors"), str(base))


def test_scales_a_row_are_not_for_comfyui():
    with pytest.raises(ValueError, match="ComfyUI"):
        recipe(row_scales=True, reader=Reader.COMFYUI)


def test_a_quantized_file_is_no_source(quantized):
    with pytest.raises(HSWQError, match="quantized already"):
        resolve(str(quantized("sd-1.5", Format.V1)))
