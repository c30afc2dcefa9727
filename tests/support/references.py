"""The model that diffusers itself makes of a file in an original layout, without any code of ours."""

import types
from pathlib import Path

import diffusers
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors.torch import load_file

from hswq_runtime.architectures.row import Architecture

from .kitchen import expanded_int8
from .originals import Original

PUBLISHED_WIDTH = 3072


def exchange_width(monkeypatch, model_class: str, width: int):
    """Let diffusers' converter cut a fused tensor for `width` instead of for the published width that it has in it."""
    entry = SINGLE_FILE_LOADABLE_CLASSES[model_class]
    convert = entry["checkpoint_mapping_fn"]
    constants = tuple(width if constant == PUBLISHED_WIDTH else constant for constant in convert.__code__.co_consts)
    assert constants != convert.__code__.co_consts
    narrow = types.FunctionType(convert.__code__.replace(co_consts=constants), convert.__globals__)
    monkeypatch.setitem(entry, "checkpoint_mapping_fn", narrow)


def reference(row: Architecture, config: dict, path: Path, original: Original) -> torch.nn.Module:
    """The model that diffusers itself makes of the file's values, with what is FP8 multiplied by its scale, and what is
    INT8 expanded by ComfyUI's library."""
    stored = load_file(path)
    stored = {k.removeprefix(original.prefix): tensor for k, tensor in stored.items() if k not in original.others}
    plain = {}
    for key, tensor in stored.items():
        if tensor.dtype == torch.float8_e4m3fn:
            tensor = tensor.float() * stored.get(key.removesuffix("weight") + "scale", torch.ones(1))
        elif tensor.dtype == torch.int8:
            tensor = expanded_int8(stored, key)
        elif key.removesuffix("scale") + "weight" in stored or key.endswith(("comfy_quant", "weight_scale")):
            continue
        plain[key] = tensor.float()
    converted = SINGLE_FILE_LOADABLE_CLASSES[row.model_class]["checkpoint_mapping_fn"](checkpoint=plain, config=config)
    model = getattr(diffusers, row.model_class)(**config)
    model.load_state_dict(converted, strict=True)
    # Frozen, as ours is: torch folds the batch of a product into its rows or not by whether the weight is trained.
    return model.eval().requires_grad_(False)
