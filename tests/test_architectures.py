"""Every architecture, from its original layout to a picture: an architecture is one entry of `originals.ORIGINALS`."""

import functools
import types

import accelerate
import diffusers
import originals
import pytest
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from originals import ORIGINALS
from safetensors.torch import load_file

from hswq_hub.calibrate import calibrate
from hswq_hub.generate import final_latents, generate, generation_settings, open_pipeline
from hswq_hub.inspect import inspect
from hswq_hub.quantize import quantize
from hswq_hub.settings import CalibrationSettings, recipe
from hswq_hub.sources import resolve
from hswq_runtime import Checkpoint, HSWQPipeline
from hswq_runtime.architectures import ARCHITECTURES, of_class, recognise
from hswq_runtime.architectures.row import Architecture
from hswq_runtime.formats import Format
from hswq_runtime.mapping import trace

PUBLISHED_WIDTH = 3072
SETTINGS = CalibrationSettings(samples=2, steps=1, calls=2, size=32, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Name -> a folder of tiny components, made once."""
    return functools.cache(lambda name: originals.write_base(tmp_path_factory.mktemp(name), name))


def exchange_width(monkeypatch, model_class: str, width: int):
    """Let diffusers' converter cut a fused tensor for `width` instead of for the published width that it has in it."""
    entry = SINGLE_FILE_LOADABLE_CLASSES[model_class]
    convert = entry["checkpoint_mapping_fn"]
    constants = tuple(width if constant == PUBLISHED_WIDTH else constant for constant in convert.__code__.co_consts)
    assert constants != convert.__code__.co_consts
    narrow = types.FunctionType(convert.__code__.replace(co_consts=constants), convert.__globals__)
    monkeypatch.setitem(entry, "checkpoint_mapping_fn", narrow)


def reference(row: Architecture, config: dict, path, original: originals.Original) -> torch.nn.Module:
    """The model that diffusers itself makes of the file's values, with what is FP8 multiplied by its scale."""
    stored = load_file(path)
    stored = {k.removeprefix(original.prefix): tensor for k, tensor in stored.items() if k not in original.others}
    plain = {}
    for key, tensor in stored.items():
        if tensor.dtype == torch.float8_e4m3fn:
            tensor = tensor.float() * stored.get(key.removesuffix("weight") + "scale", torch.ones(1))
        elif key.removesuffix("scale") + "weight" in stored or key.endswith(("comfy_quant", "weight_scale")):
            continue
        plain[key] = tensor.float()
    converted = SINGLE_FILE_LOADABLE_CLASSES[row.model_class]["checkpoint_mapping_fn"](checkpoint=plain, config=config)
    model = getattr(diffusers, row.model_class)(**config)
    model.load_state_dict(converted, strict=True)
    return model.eval()


@pytest.mark.parametrize("name", ORIGINALS)
def test_from_the_original_layout_to_a_picture(name, tmp_path, monkeypatch, bases):
    row, original = ARCHITECTURES[name], ORIGINALS[name]
    if original.inner_width:
        exchange_width(monkeypatch, row.model_class, original.tiny["w"])
    base, path = bases(original.base), originals.write_tiny(tmp_path, original)

    found = inspect(path)
    assert (found.architecture, found.prefix, found.format) == (row.title, original.prefix, "full precision")

    source = resolve(str(path), base=str(base))
    calibration = calibrate(source, SETTINGS)
    how = recipe("measured", rounding=original.rounding, keep_by="variance", keep_ratio=row.keep_ratio)
    files = quantize(source, calibration, tuple(Format), tmp_path / "out", how, device="cpu")
    for file, plan in files:
        assert plan.quantized and plan.kept
        assert all(torch.equal(load_file(file)[key], load_file(path)[key]) for key in original.others)
        pipeline = HSWQPipeline.from_pretrained(file, base=base, dtype=torch.float32)
        assert type(pipeline).__name__ == row.pipeline_class
        pipeline.set_progress_bar_config(disable=True)
        settings = generation_settings(pipeline, row, steps=1, size=32)
        picture = generate(pipeline, "a red ring", 0, settings)
        config = Checkpoint(file).config
        plain = open_pipeline(source.checkpoint, reference(row, config, file, original), str(base), torch.device("cpu"))
        assert torch.equal(picture.latents, generate(plain, "a red ring", 0, settings).latents)
    assert final_latents(pipeline, ["one", "two rings"], [0, 1], settings).shape[0] == 2


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_published_model_is_known_from_its_keys_and_shapes(name):
    row, original = ARCHITECTURES[name], ORIGINALS[name]
    shapes = original.shapes(original.published)
    family, prefix = recognise([original.prefix + key for key in shapes])
    config = family.config(shapes)
    assert prefix == original.prefix
    assert of_class(family.model_class, config) is row
    assert {name: config[name] for name in original.config} == original.config
    with accelerate.init_empty_weights():
        model = getattr(diffusers, row.model_class)(**config)
    traced = trace(shapes, row.model_class, config)
    rows = {name: sum(piece.stop - piece.start for piece in pieces) for name, pieces in traced.items()}
    assert rows == {name: tensor.shape[0] for name, tensor in model.state_dict().items()}
    assert {piece.key for pieces in traced.values() for piece in pieces} == shapes.keys()


def test_every_row_has_its_files():
    transformers = {name for name, row in ARCHITECTURES.items() if row.component == "transformer"}
    assert transformers == ORIGINALS.keys()
