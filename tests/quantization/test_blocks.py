"""Replays in parts against replays of the whole model, of every architecture."""

from dataclasses import replace
from math import inf

import pytest
import torch
from support import originals, tiny, tiny_unet
from support.originals import ORIGINALS
from support.references import exchange_width
from support.unet_files import KINDS

from hswq_hub.calibration.calibrate import calibrate
from hswq_hub.quantization.blocks import BlockReplays, blocks_of
from hswq_hub.quantization.compensate import passes_of_rounding, replay_memory, write_compensated
from hswq_hub.quantization.moments import layers_of, modules_of, second_moments
from hswq_hub.quantization.plan import plan_naive
from hswq_hub.settings import CalibrationSettings, RoundingSettings
from hswq_hub.sources.find import resolve
from hswq_runtime import Checkpoint, Format
from hswq_runtime.architectures import ARCHITECTURES
from hswq_runtime.errors import DeviceError
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
        # A norm takes away what some layers add: their derivatives are zero but for rounding.
        nothing = 1e-9 * max(here.max().item() for moments in whole.values() for here in moments.outputs)
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
                    atol = max(1e-5 * there.abs().max().item(), nothing)
                    assert torch.allclose(here, there, rtol=1e-3, atol=atol), key
    assert not list(folder.glob("blocks-*"))
    assert all("forward" not in vars(block) for block in blocks_of(model).values())


def test_weights_that_come_and_go_change_nothing(tmp_path):
    """On a CPU a copy stands for what is on the device; the room is that of the largest block."""
    checkpoint = Checkpoint(tiny.checkpoint(tmp_path))
    calls = tiny.calibration(checkpoint).calls
    found = []
    for room in (None, largest_block(checkpoint)):
        model = load_model(checkpoint, torch.float32)
        before = {name: value.data_ptr() for name, value in model.state_dict().items()}
        layers = layers_of(checkpoint, model, [k for k in checkpoint.layers if not checkpoint.why_never_quantized(k)])
        sizes = {key: layer.moment_bytes(True) for key, layer in layers.items()}
        with BlockReplays.open(model, calls, "cpu", tmp_path, room) as replays:
            parts = replays.parts(modules_of(layers), sizes, 1e9)
            assert (len(parts) == 1) is (room is None)
            moments = {}
            for part in parts:
                of_part = {key: layers[key] for key in part.layers}
                moments |= second_moments(replays, of_part, computed=part.computed, outputs=True)
            here = {name for name, block in blocks_of(model).items() if is_elsewhere(block, before)}
            assert room is None or 0 < len(here) < len(blocks_of(model))
        assert {name: value.data_ptr() for name, value in model.state_dict().items()} == before
        found.append(moments)
    for key, moments in found[0].items():
        assert torch.allclose(moments.inputs, found[1][key].inputs, rtol=1e-3, atol=1e-6 * moments.inputs.max().item())


def largest_block(checkpoint) -> int:
    blocks = blocks_of(load_model(checkpoint, torch.float32)).values()
    return max(sum(p.nbytes for p in block.parameters()) for block in blocks)


def is_elsewhere(block, before) -> bool:
    return not {p.data_ptr() for p in block.parameters()} <= set(before.values())


def test_without_room_for_a_block_it_says_what_to_do(tmp_path):
    checkpoint = Checkpoint(tiny.checkpoint(tmp_path))
    model, calls = load_model(checkpoint, torch.float32), tiny.calibration(checkpoint).calls
    few = BlockReplays.open(model, calls, "cpu", tmp_path, largest_block(checkpoint) - 1)
    with pytest.raises(DeviceError, match=r"t_embedder takes 1\.4 MB .* lower --calibration-memory"), few:
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_unet_too(kind, tmp_path):
    path, base = tiny_unet.full(kind, tmp_path)
    compare(resolve(str(path), str(base)), tmp_path)


@pytest.mark.parametrize("workspace", [None, 0.0, 1e7, inf])
def test_what_is_rounded_together_changes_nothing(workspace, tmp_path):
    """With no workspace layers are rounded alone and on the CPU, which is the device here."""
    checkpoint = Checkpoint(tiny.checkpoint(tmp_path))
    calibration = tiny.calibration(checkpoint)
    plans = {Format.V1: compensating(plan_naive(checkpoint))}
    paths = [{Format.V1: tmp_path / name} for name in ("one.safetensors", "two.safetensors")]
    for target, given in zip(paths, (None, workspace), strict=True):
        write_compensated(
            checkpoint, calibration, plans, target, "kfac", RoundingSettings(), source_sha256="0" * 64, workspace=given
        )
    assert paths[0][Format.V1].read_bytes() == paths[1][Format.V1].read_bytes()


def compensating(plan):
    return replace(plan, decisions=tuple(replace(d, rounding="kfac") if d.quantized else d for d in plan.decisions))


def test_memory_is_shared_by_what_there_is(tmp_path):
    checkpoint = Checkpoint(tiny.checkpoint(tmp_path))
    shares = {usable: replay_memory(checkpoint, "kfac", 8.0, usable, word=2, call=1000) for usable in (inf, 1e9, 1.5e7)}
    assert (shares[inf].room, shares[inf].workspace, shares[inf].moments) == (None, None, 8.0)
    assert shares[1e9].room is None and shares[1e9].workspace > 9e8 and shares[1e9].needed == shares[inf].needed
    tight = shares[1.5e7]
    assert tight.room is not None and tight.moments * 1e9 < 1e7 and tight.needed <= 1.5e7
    assert passes_of_rounding(checkpoint, "kfac", tight.moments, tight.weights(2)) not in (1, 4), "in parts"


def test_one_part_that_is_not_the_whole_model_is_prepared(tmp_path):
    """All layers that are asked for are in one block, and there is room for no more than that."""
    checkpoint = Checkpoint(tiny.checkpoint(tmp_path))
    keys = [key for key in checkpoint.layers if ".layers.0.feed_forward" in key]
    found = []
    for room in (None, largest_block(checkpoint)):
        model = load_model(checkpoint, torch.float32)
        layers = layers_of(checkpoint, model, keys)
        sizes = {key: layer.moment_bytes(True) for key, layer in layers.items()}
        with BlockReplays.open(model, tiny.calibration(checkpoint).calls, "cpu", tmp_path, room) as replays:
            (part,) = replays.parts(modules_of(layers), sizes, 1e9)
            assert (part.computed is None) is (room is None)
            found.append(second_moments(replays, layers, computed=part.computed, outputs=True))
    for key in keys:
        assert torch.allclose(found[0][key].outputs[0], found[1][key].outputs[0], rtol=1e-3)
