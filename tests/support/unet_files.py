"""Full checkpoints of tiny UNets and what is quantized of them, each made once for a module of tests."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file

from hswq_hub.calibration.calibrate import calibrate
from hswq_hub.settings import CalibrationSettings, RoundingSettings, recipe
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.quantize import quantize
from hswq_runtime import Format
from hswq_runtime.formats import Reader

from . import tiny_unet
from .kitchen import expanded_int8

KINDS = ["sdxl", "sd-1.5"]
PREFIX = tiny_unet.PREFIX
SMALL = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "np"}
"""A call of a tiny pipeline."""
QUICK = RoundingSettings(sweeps=0, tokens=64)
CALIBRATION = CalibrationSettings(samples=1, steps=2)


def full_files(new_folder: Callable[[str], Path]):
    """kind -> a full checkpoint, and its base without weights."""
    return cache(lambda kind: tiny_unet.full(kind, new_folder(kind)))


def quantized_files(full, new_folder: Callable[[str], Path]):
    """(kind, format, reader) -> a quantized file; SDXL's V2 with compensated rounding."""

    @cache
    def calibrated(kind):
        path, base = full(kind)
        source = resolve(str(path), str(base))
        return source, calibrate(source, CALIBRATION)

    @cache
    def made(kind, format, reader=Reader.HSWQ):
        rounding = "gptq" if kind == "sdxl" and format is Format.V2 else "nearest"
        settings = replace(recipe("hswq", rounding=rounding, keep_ratio=0.1, reader=reader), compensation=QUICK)
        ((path, _),) = quantize(*calibrated(kind), [format], new_folder("quantized"), settings)
        return path

    return made


def plain_values(path) -> dict[str, torch.Tensor]:
    """What the UNet's tensors in a file of ours stand for, worked out here."""
    stored = load_file(path)
    return {
        key: expanded_int8(stored, key)
        if tensor.dtype == torch.int8
        else tensor.float() * stored.get(key.removesuffix("weight") + "scale", torch.ones(1))
        for key, tensor in stored.items()
        if key.startswith(PREFIX) and not key.endswith((".scale", ".weight_scale", ".comfy_quant"))
    }


def reference(kind, path) -> diffusers.UNet2DConditionModel:
    """The plain model with those values, put together without diffusers' converter."""
    values, model = plain_values(path), tiny_unet.unet(kind).float()
    names = tiny_unet.original_unet({name: name for name in model.state_dict()})
    assert values.keys() == names.keys()
    model.load_state_dict({names[key]: value for key, value in values.items()})
    return model
