"""Replays in parts against replays of the whole model, of every architecture."""

import pytest
import torch
from support import originals
from support.originals import ORIGINALS
from support.references import exchange_width

from hswq_hub.calibration.calibrate import calibrate
from hswq_hub.quantization.blocks import BlockReplays, blocks_of
from hswq_hub.quantization.moments import layers_of, modules_of, second_moments
from hswq_hub.settings import CalibrationSettings
from hswq_hub.sources.find import resolve
from hswq_runtime.architectures import ARCHITECTURES
from hswq_runtime.loading import load_model

SETTINGS = CalibrationSettings(samples=2, steps=2, calls=2, size=32, device="cpu", dtype="float32")


@pytest.mark.parametrize("name", ORIGINALS)
def test_moments_in_parts_are_those_of_the_whole(name, tmp_path, monkeypatch, bases):
    row, original = ARCHITECTURES[name], ORIGINALS[name]
    if original.inner_width:
        exchange_width(monkeypatch, row.model_class, original.tiny["w"])
    source = resolve(str(originals.write_tiny(tmp_path, original)), base=str(bases(original.base)))
    compare(source, tmp_path)


def compare(source, folder):
    checkpoint, calls = source.checkpoint, calibrate(source, SETTINGS).calls
    model = load_model(checkpoint, torch.float32)
    keys = [key for key in checkpoint.layers if checkpoint.why_never_quantized(key) is None]
    layers = layers_of(checkpoint, model, keys)
    sizes = {key: layer.moment_bytes(True) for key, layer in layers.items()}
    with BlockReplays.open(model, calls, "cpu", folder) as replays:
        whole = second_moments(replays, layers, outputs=True)
        parts = replays.parts(modules_of(layers), sizes, max(sizes.values()))
        assert len(parts) >= len(blocks_of(model))
        assert sorted(key for part in parts for key in part.layers) == sorted(keys)
        for part in parts:
            of_part = {key: layers[key] for key in part.layers}
            found = second_moments(replays, of_part, computed=part.computed, outputs=True)
            for key, moments in found.items():
                wanted = whole[key]
                for here, there in zip(
                    (moments.inputs, *moments.outputs), (wanted.inputs, *wanted.outputs), strict=True
                ):
                    assert torch.allclose(here, there, rtol=1e-3, atol=1e-5 * there.abs().max()), key
    assert not list(folder.glob("blocks-*"))
    assert all("forward" not in vars(block) for block in blocks_of(model).values())
