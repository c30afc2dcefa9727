"""Folding: the same function with other numbers, and nobody who puts a LoRA on it notices."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import loras, tiny

from hswq_hub.calibration.calibrate import Calibration
from hswq_hub.evaluation.compare import compare
from hswq_hub.quantization.choices.keep import keep
from hswq_hub.quantization.compensate import write_compensated
from hswq_hub.quantization.fold import check_fold, find_moves, moved
from hswq_hub.quantization.plan import plan_everything
from hswq_hub.quantization.writer import write_quantized
from hswq_hub.settings import ALL_FORMATS, RoundingSettings, recipe
from hswq_hub.sources.find import resolve
from hswq_runtime import Checkpoint, Format, HSWQError, load_model
from hswq_runtime.errors import AlreadyQuantizedError, FormatError
from hswq_runtime.fold import fold_of
from hswq_runtime.formats import Metadata

BLOCK = f"{tiny.PREFIX}layers.0."


def small(tensors):
    """Weights of the size that they have in large models."""
    for tensor in tensors.values():
        if tensor.ndim == 2:
            tensor *= 0.1


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Checkpoint:
    return Checkpoint(tiny.checkpoint(tmp_path_factory.mktemp("source"), change=small))


@pytest.fixture(scope="module")
def calibration(source) -> Calibration:
    return tiny.calibration(source)


@pytest.fixture(scope="module")
def folded(source, calibration, tmp_path_factory):
    """Files with everything kept, and with nothing kept: each as it is, and without what its header says of it."""
    folder, how = tmp_path_factory.mktemp("folded"), recipe("hswq", fold=True, search="none")
    plan = plan_everything(source, calibration, [Format.V1], how)[Format.V1]
    files = {}
    for name, share in (("kept", 1), ("fp8", 0)):
        path = folder / f"{name}.safetensors"
        write_quantized(source, keep(plan, source, replace(how, keep_ratio=share)), path, source_sha256="0" * 64)
        silent = folder / f"{name}-silent.safetensors"
        save_file(load_file(path), silent, metadata={"hswq_format": "v1"})
        files[name] = path, silent
    return files


def test_a_folded_file_is_no_source(folded):
    with pytest.raises(AlreadyQuantizedError, match="start from the original"):
        resolve(str(folded["kept"][0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folded_model_is_the_same_function_to_the_bit(source, folded, dtype):
    """Also for loaders that know nothing of it, although most of its numbers are others."""
    _, silent = folded["kept"]
    plain, other = (load_model(path, dtype) for path in (source, silent))
    changed = [name for name, value in plain.state_dict().items() if not torch.equal(value, other.state_dict()[name])]
    assert len(changed) == 3 * 9 + 2, "in each block qkv, out, w1, w2, w3 and two norms; the caption's norm and layer"
    inputs = {key: value.to(dtype) if key == "t" else value for key, value in tiny.inputs().items()}
    inputs |= {key: [value.to(dtype) for value in inputs[key]] for key in ("x", "cap_feats")}
    with torch.no_grad():
        assert torch.equal(plain(**inputs)[0][0], other(**inputs)[0][0])


def test_the_runtime_takes_the_moves_back(source, folded):
    stored, _ = folded["kept"]
    assert tiny.same_bytes(load_model(stored).state_dict(), load_model(source).state_dict())
    assert {tensor.difference for tensor in compare(source, Checkpoint(stored))} == {0.0}


def test_fp8_weights_mean_the_same_with_and_without_the_header(source, folded):
    ours, others = (tiny.run(load_model(path, torch.float32)) for path in folded["fp8"])
    assert torch.equal(ours, others)
    assert loras.distance(ours, tiny.run(load_model(source, torch.float32))) < 0.2


def test_a_lora_does_on_a_folded_file_what_it_does_on_the_original(source, folded):
    def with_lora(path, **how):
        pipe = loras.pipeline(load_model(path, torch.float32, **how))
        pipe.load_lora_weights(loras.diffusers_layout())
        return tiny.run(pipe.transformer)

    told, silent = folded["kept"]
    assert torch.equal(with_lora(told), with_lora(source))
    without = tiny.run(load_model(source, torch.float32))
    effect, elsewhere = (loras.distance(with_lora(path), without) for path in (source, silent))
    assert effect > 0.02 and elsewhere < 0.2 * effect, "what README says of other loaders"
    told, _ = folded["fp8"]
    assert torch.equal(with_lora(told), with_lora(told, dequantize=True))


def test_a_folded_model_is_saved_and_opened_again(folded, tmp_path):
    told, _ = folded["fp8"]
    model = load_model(told, torch.float32)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, torch_dtype=torch.float32)
    assert torch.equal(tiny.run(again), tiny.run(model))


def test_it_lifts_small_weights_off_the_smallest_steps_of_the_grid(source, calibration, tmp_path):
    exact, errors = tiny.run(load_model(source, torch.float32)), {}
    for rounding in ("nearest", "gptq"):
        for fold in (False, True):
            how = recipe(rounding=rounding, fold=fold)
            plans, path = plan_everything(source, calibration, [Format.V1], how), tmp_path / "out.safetensors"
            if rounding != "nearest":
                arguments = plans, {Format.V1: path}, rounding, RoundingSettings()
                write_compensated(source, calibration, *arguments, source_sha256="0" * 64)
            else:
                write_quantized(source, plans[Format.V1], path, source_sha256="0" * 64)
            stored = Checkpoint(path)
            layer = compare(source, stored)[
                [d.layer for d in plans[Format.V1].decisions].index("layers.0.attention.qkv")
            ]
            error = (tiny.run(load_model(stored, torch.float32)) - exact).square().mean().item()
            errors[rounding, fold] = error, layer.difference
    assert errors["nearest", True][1] < 0.3 * errors["nearest", False][1]
    for rounding in ("nearest", "gptq"):
        assert errors[rounding, True][0] < errors[rounding, False][0], rounding


def test_how_far_things_move(tmp_path):
    """448 / 0.25 = 1792, which is over 2¹⁰, and one power stays free: w1 and w3 could take 2⁹, w2 with 3.0 takes 2⁶.
    What w1 takes, w3 and w2 share. Of the attention q and k take 2⁹; v, with 100.0, has room for 2, out for 2⁹."""

    def set_largest(tensors):
        for layer, value in (("feed_forward.w1", 0.25), ("feed_forward.w3", 0.25), ("feed_forward.w2", 3.0)):
            tensors[f"{BLOCK}{layer}.weight"].clamp_(-value, value)[0, 0] = value
        qkv = tensors[f"{BLOCK}attention.qkv.weight"].clamp_(-0.25, 0.25)
        qkv[0, 0], qkv[-1, 0] = 0.25, 100.0
        tensors[f"{BLOCK}attention.out.weight"].clamp_(-0.25, 0.25)[0, 0] = 0.25

    moves = find_moves(Checkpoint(tiny.checkpoint(tmp_path, change=set_largest)))
    assert {key.removeprefix(BLOCK): runs for key, runs in moves.items() if key.startswith(BLOCK)} == {
        "feed_forward.w1.weight": ((256, 9),),
        "feed_forward.w3.weight": ((256, 5),),
        "feed_forward.w2.weight": ((96, 4),),
        "ffn_norm1.weight": ((96, -9),),
        "attention.qkv.weight": ((192, 9), (96, 1)),
        "attention.out.weight": ((96, 8),),
        "attention_norm1.weight": ((96, -9),),
    }


def test_what_would_be_rounded_does_not_move(tmp_path):
    """In float16 the smallest value cannot be halved."""

    def tiny_norm(tensors):
        tensors |= {key: tensor.half() for key, tensor in tensors.items()}
        tensors[f"{BLOCK}ffn_norm1.weight"][0] = 2.0**-24

    moves = find_moves(Checkpoint(tiny.checkpoint(tmp_path, change=tiny_norm)))
    assert f"{BLOCK}ffn_norm1.weight" not in moves and f"{BLOCK}attention_norm1.weight" in moves
    assert f"{BLOCK}feed_forward.w1.weight" not in moves


def test_moving_there_and_back_is_exact():
    tensor, runs = torch.randn(5, 3).bfloat16(), ((2, 7), (3, -4))
    there = moved(tensor, runs)
    assert torch.equal(there[:2], tensor[:2] * 128) and torch.equal(there[2:], tensor[2:] / 16)
    assert torch.equal(moved(there, runs, back=True), tensor)


def test_only_v1_is_folded(source, calibration):
    plans = plan_everything(source, calibration, ALL_FORMATS, recipe(fold=True))
    assert plans[Format.V1].moves and not plans[Format.V2].moves
    plain = plan_everything(source, calibration, [Format.V2], recipe())[Format.V2]
    assert plans[Format.V2].decisions == plain.decisions
    with pytest.raises(HSWQError, match="folding is for V1"):
        check_fold(source, [Format.V2], recipe(fold=True))


WRONG = """[] | { | {"a": 3} | {"a": [[2, 1]]} | {"a": [[1, 1], [2.0, 0]]} | {"a": [[4, 1], [-1, 1]]} | {"b": []}
| {"a": [[3, 33]]} | {"a": [[3, true]]} | {"a": [[3, 1, 1]]}"""


@pytest.mark.parametrize("entry", [*WRONG.split("|"), "[" * 100_000], ids=str.__len__)
def test_a_header_that_lies_is_a_format_error(entry):
    with pytest.raises(FormatError, match=Metadata.FOLD.value):
        fold_of({Metadata.FOLD.value: entry}, {"a": 3})
