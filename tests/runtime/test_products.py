"""What a file says of how its linear layers are multiplied stays with them, wherever they go."""

import copy
import json
import os
import pickle
import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from accelerate import cpu_offload
from diffusers import ZImageTransformer2DModel
from diffusers.hooks import apply_group_offloading
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import tiny

import hswq_runtime.layers
from hswq_runtime import (
    Checkpoint,
    FormatError,
    FullPrecisionError,
    HSWQConfig,
    HSWQLinear,
    HSWQPipeline,
    load_model,
    set_quantized_matmul,
    weight_bytes,
)
from hswq_runtime.checkpoints.mapping import Piece, gather_product
from hswq_runtime.formats import Product, Reader
from hswq_runtime.layers import fp8

QKV = f"{tiny.PREFIX}layers.0.attention.qkv"
W1 = "layers.0.feed_forward.w1"
KINDS = Product(exact=True), Product(), Product(input_scale=0.37), Product(input_scale=2.0)


def marked(tensors):
    """Give the layers of a file in ComfyUI's format each kind of product; the fused attention an input scale."""
    marks = sorted(key for key in tensors if key.endswith(".comfy_quant"))
    for number, key in enumerate(marks):
        layer = key.removesuffix(".comfy_quant")
        product = KINDS[2] if layer == QKV else KINDS[number % len(KINDS)]
        said = {"format": "float8_e4m3fn"} | ({"full_precision_matrix_mult": True} if product.exact else {})
        tensors[key] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
        if product.input_scale is not None:
            tensors[layer + ".input_scale"] = torch.tensor(product.input_scale)


@pytest.fixture
def path(tmp_path):
    return tiny.quantized(tmp_path, "comfyui", change=marked)


@pytest.fixture
def model(path):
    return load_model(path, torch.float32)


def products(model):
    """What every FP8 linear layer holds of it, by name."""
    return {
        name: (one.exact, None if one.input_scale is None else (one.input_scale.dtype, one.input_scale.tolist()))
        for name, one in model.named_modules()
        if isinstance(one, HSWQLinear)
    }


def simulated(model):
    set_quantized_matmul(model, reader=Reader.COMFYUI)
    return tiny.run(model)


def test_a_loaded_model_has_what_the_file_says(path, model):
    stored, found = load_file(path), products(model)
    assert len({*map(str, found.values())}) == len(KINDS)
    for part in "qkv":
        scale = stored[f"{QKV}.input_scale"]
        assert found[f"layers.0.attention.to_{part}"] == (False, (torch.float32, [scale.item()]))
    checkpoint = Checkpoint(path)
    for name, pieces in checkpoint.parameters.items():
        if (layer := name.removesuffix(".weight")) in found:
            product = checkpoint.product_of(pieces)
            assert found[layer][0] == product.exact and (found[layer][1] is None) == (product.input_scale is None)


def test_where_stored_tensors_of_one_layer_disagree_it_is_exact():
    pieces = [Piece("a", 0, 4), Piece("b", 0, 4)]
    fast, other, marked, unmarked = Product(input_scale=0.5), Product(input_scale=0.25), Product(True), Product()
    for one, two in ((fast, other), (fast, unmarked), (unmarked, marked), (fast, Product(True, 0.5))):
        assert gather_product(pieces, {"a": one, "b": two}) == Product(exact=True)
    for one in (fast, marked, unmarked):
        assert gather_product(pieces, {"a": one, "b": one}) == one


def test_bytes_of_input_scales_are_counted(path):
    checkpoint = Checkpoint(path)
    assert checkpoint.weight_bytes == weight_bytes(load_model(checkpoint))


# --- Copies, moves, offloading ------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_copies_have_it(model, copied):
    expected = simulated(model)
    other = copied(model)
    assert products(other) == products(model)
    assert torch.equal(tiny.run(other), expected), "and so they have the arithmetic"
    assert torch.equal(simulated(copied(load_again(model))), expected)


def load_again(model):
    set_quantized_matmul(model, False)
    return model


def test_casting_a_layer_does_not_cast_its_scales(model):
    layer = model.get_submodule("layers.0.attention.to_q")
    before = layer.input_scale.clone()
    layer.half()
    assert layer.compute_dtype == torch.float16
    assert layer.input_scale.dtype == torch.float32 and torch.equal(layer.input_scale, before)
    assert layer.to("meta").input_scale.is_meta


def test_dequantized_it_is_the_exact_model(model):
    expected = tiny.run(model)
    set_quantized_matmul(model, reader=Reader.COMFYUI)
    model.dequantize()
    assert products(model) == {} and not any("input_scale" in name for name in model.state_dict())
    assert torch.equal(tiny.run(model), expected)


def test_offloading_moves_it(model):
    expected = simulated(model)
    cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
    assert model.get_submodule("layers.0.attention.to_q").input_scale.is_meta
    assert torch.equal(tiny.run(model), expected)


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offloading_moves_it(model, kind):
    expected, cpu = simulated(model), torch.device("cpu")
    arguments = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    apply_group_offloading(model, cpu, offload_device=cpu, offload_type=kind, **arguments)
    for _ in range(2):
        assert torch.equal(tiny.run(model), expected)


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offloading_with_streams_moves_it(model, offload_with_streams, kind):
    expected = simulated(model)
    offload_with_streams(model, kind)
    for _ in range(2):
        assert torch.equal(tiny.run(model), expected)


# --- Saving and diffusers' own classes ----------------------------------------------------------------


@pytest.mark.parametrize("shards", ["10GB", "100KB"], ids=["whole", "sharded"])
def test_saved_and_opened_again(model, tmp_path, shards):
    model.save_pretrained(tmp_path / "saved", max_shard_size=shards)
    again = ZImageTransformer2DModel.from_pretrained(tmp_path / "saved", torch_dtype=torch.float32)
    assert products(again) == products(model)
    assert tiny.same_bytes(again.state_dict(), model.state_dict())
    again.save_pretrained(tmp_path / "twice", max_shard_size=shards)
    once, twice = (
        {key: tensor for part in (tmp_path / name).glob("*.safetensors") for key, tensor in load_file(part).items()}
        for name in ("saved", "twice")
    )
    assert tiny.same_bytes(once, twice)
    described = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("saved", "twice")]
    assert described[0]["quantization_config"] == described[1]["quantization_config"]
    assert {*described[0]["quantization_config"]["exact"]} == {
        name for name, (exact, _) in products(model).items() if exact
    }
    assert torch.equal(simulated(again), simulated(model))


def test_a_half_model_keeps_its_scales(path, tmp_path):
    model = load_model(path, torch.float16)
    model.save_pretrained(tmp_path / "saved")
    again = ZImageTransformer2DModel.from_pretrained(tmp_path / "saved", torch_dtype=torch.float16)
    assert products(again) == products(model) == products(load_model(path, torch.float32))


def test_from_single_file_gives_what_our_own_loader_gives(path, model, tmp_path):
    tiny.model().save_config(tmp_path / "config")
    single = ZImageTransformer2DModel.from_single_file(
        str(path), config=str(tmp_path / "config"), quantization_config=HSWQConfig(), torch_dtype=torch.float32
    )
    assert products(single) == products(model)
    single.save_pretrained(tmp_path / "saved")
    again = ZImageTransformer2DModel.from_pretrained(tmp_path / "saved", torch_dtype=torch.float32)
    assert products(again) == products(model)


def test_a_saved_model_that_is_marked_throughout_is_refused_as_its_file_is(tmp_path):
    load_model(tiny.quantized(tmp_path, "comfyui-old")).save_pretrained(tmp_path / "saved")
    config = HSWQConfig(quantized_matmul=True)
    saved = ZImageTransformer2DModel.from_pretrained(tmp_path / "saved")
    assert all(exact for exact, _ in products(saved).values())
    with pytest.raises(FullPrecisionError, match="--speed"):
        set_quantized_matmul(saved)
    tiny.model().save_config(tmp_path / "config")
    with pytest.raises(FullPrecisionError, match="--speed"):
        ZImageTransformer2DModel.from_single_file(
            str(tmp_path / "comfyui-old.safetensors"), config=str(tmp_path / "config"), quantization_config=config
        )


def test_a_pipeline_of_such_a_file_is_refused_too(tmp_path):
    folder = tiny.published_demo(tmp_path)
    path = folder / "demo-hswq-v2.safetensors"
    stored = load_file(path)
    for key in [key for key in stored if key.endswith(".scale")]:
        layer = key.removesuffix(".scale")
        said = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True}).encode()
        stored |= {
            f"{layer}.weight_scale": stored[key][0].clone(),
            f"{layer}.comfy_quant": torch.tensor([*said]).byte(),
        }
    save_file(stored, path, metadata={"hswq_format": "v2"})
    with pytest.raises(FullPrecisionError, match="every quantized layer"):
        HSWQPipeline.from_pretrained(folder, variant="v2", quantized_matmul=True)


@pytest.mark.parametrize("exact", [3, "layers.0", [1], {"a": 1}], ids=str)
def test_a_configuration_with_nonsense_for_names_is_refused(exact):
    with pytest.raises(FormatError, match="exact is a list of names"):
        HSWQConfig(exact=exact)


# --- Files from elsewhere -----------------------------------------------------------------------------


def test_input_scales_of_other_files_are_read_by_both_names(tmp_path):
    for style, name in (("comfyui-input-scale", "input_scale"), ("comfyui-old", "scale_input")):
        change = lambda tensors, name=name: tensors.update({f"{tiny.PREFIX}{W1}.{name}": torch.tensor(0.25)})  # noqa: E731
        (tmp_path / style).mkdir()
        loaded = load_model(tiny.quantized(tmp_path / style, style, change=change))
        assert loaded.get_submodule(W1).input_scale.tolist() == [0.25]
        assert loaded.get_submodule(W1).exact == (style == "comfyui-old"), "two values in scaled_fp8: exact"


def test_the_header_of_a_file_may_say_what_is_exact(tmp_path):
    path = tiny.quantized(tmp_path, "comfyui-header")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    described = json.loads(metadata["_quantization_metadata"])
    described["layers"][f"{tiny.PREFIX}{W1}"]["full_precision_matrix_mult"] = True
    save_file(load_file(path), path, metadata={"_quantization_metadata": json.dumps(described)})
    exact = {name for name, (exact, _) in products(load_model(path)).items() if exact}
    assert exact == {W1}


@pytest.mark.parametrize("name", ["input_scale", "scale_input"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0, [1.0, 2.0]], ids=str)
def test_a_hostile_input_scale_is_refused_by_both_loaders(tmp_path, name, value):
    def change(tensors):
        tensors[f"{tiny.PREFIX}{W1}.{name}"] = torch.tensor(value)

    path = tiny.quantized(tmp_path, "comfyui", change=change)
    tiny.model().save_config(tmp_path / "config")
    with pytest.raises(FormatError, match=f"w1.{name}"):
        load_model(path)
    with pytest.raises(FormatError, match=f"w1.{name}"):
        ZImageTransformer2DModel.from_single_file(
            str(path), config=str(tmp_path / "config"), quantization_config=HSWQConfig()
        )


def test_an_input_scale_without_an_fp8_weight_is_refused(tmp_path):
    def change(tensors):
        tensors[f"{tiny.PREFIX}t_embedder.mlp.0.input_scale"] = torch.tensor(0.5)

    with pytest.raises(FormatError, match=r"t_embedder.*input_scale belongs to .*, which is not quantized"):
        load_model(tiny.quantized(tmp_path, "comfyui", change=change))


# --- Kernels ------------------------------------------------------------------------------------------

KERNELS = """
import unittest.mock
import torch
from hswq_runtime import HSWQLinear
from hswq_runtime.formats import Product, Reader
from hswq_runtime.layers import fp8, kernels

fp8._kernels = lambda values: None

def same(one, other, finite):
    one, other = (values.float() for values in (one, other))
    assert torch.equal(one[finite], other[finite]) and one[~finite].isnan().all()
    assert torch.equal(one[finite].signbit(), other[finite].signbit())

torch.manual_seed(0)
grid = fp8.grid()
middles = (grid[1:] + grid[:-1]) / 2
bits = torch.arange(-(2**31), 2**31, 999_983).to(torch.int32).view(torch.float32)
halves = torch.arange(-(2**15), 2**15).to(torch.int16)
everything = {
    torch.float32: torch.cat([bits, grid, middles, middles.nextafter(grid[1:]), middles.nextafter(grid[:-1])]),
    torch.bfloat16: halves.view(torch.bfloat16),
    torch.float16: halves.view(torch.float16),
}
codes = torch.arange(256, dtype=torch.uint8).view(fp8.FP8).repeat(3, 9)
for dtype, values in everything.items():
    for scale in (1.0, 0.37, 1e-3, 300.0):
        plain = fp8.quantize_input(values, torch.tensor([scale]))
        same(kernels.quantize(values, torch.tensor([scale])), plain, ~plain.float().isnan())
    rows = (torch.randn(8, 1300) * torch.logspace(-3, 3, 8)[:, None]).to(dtype)
    rows[3], rows[4, 5], rows[5, 7] = 0, float("nan"), float("inf")
    (plain, plain_scale), (found, scale) = fp8.quantize_rows(rows), kernels.quantize_rows(rows)
    assert torch.equal(scale, plain_scale)
    same(found, plain, ~plain.float().isnan())
    for scale in (torch.tensor([0.0123]), torch.tensor([1e-30]), torch.tensor([0.5, 2e-3, 40.0])):
        plain = (codes.float() * scale[:, None]).to(dtype)
        same(kernels.expand(codes, scale, dtype), plain, ~codes.float().isnan())
assert kernels.quantize(torch.empty(0, 16), torch.ones(1)).shape == (0, 16)
assert kernels.expand(codes.reshape(3, 4, 24, 24), torch.ones(1), torch.bfloat16).shape == (3, 4, 24, 24)
fp8._kernels = lambda values: kernels
layer = HSWQLinear(64, 48, scales=1, compute_dtype=torch.bfloat16, product=Product(input_scale=0.37), device="cpu")
layer.weight.data.copy_(fp8.quantize(torch.randn(48, 64)))
layer.scale.fill_(0.0123)
layer.bias, layer.quantized_matmul = None, True
inputs = torch.randn(2, 3, 64).bfloat16()
for product in (Product(input_scale=0.37), Product()):
    for layer.reader in Reader:
        layer.set_product(product)
        found = layer(inputs)
        with unittest.mock.patch.object(fp8, "_kernels", lambda values: None):
            assert torch.equal(found, layer(inputs))
print("the same")
"""


def test_kernels_that_cannot_be_built_are_done_without(monkeypatch):
    """On a machine without a C compiler, say. There is one warning, and every bit is as before."""
    broken = ModuleType("kernels")
    broken.quantize = lambda *_: (_ for _ in ()).throw(RuntimeError("Failed to find C compiler.\nAnd so on"))
    monkeypatch.setitem(sys.modules, "hswq_runtime.layers.kernels", broken)
    monkeypatch.setattr(hswq_runtime.layers, "kernels", broken, raising=False)
    fp8._import_kernels.cache_clear()
    with pytest.warns(UserWarning, match=r"Triton builds no kernels here \(Failed to find C compiler\.\)"):
        assert fp8._import_kernels(torch.device("cpu")) is None
    assert fp8._import_kernels(torch.device("cpu")) is None
    fp8._import_kernels.cache_clear()


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_round_as_the_plain_operations_do():
    """In Triton's interpreter, which has to be chosen before Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", KERNELS], env=environment, capture_output=True, text=True)
    assert ran.stdout == "the same\n", ran.stderr


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_round_as_the_plain_operations_do_on_cuda():
    ran = subprocess.run(
        [sys.executable, "-c", f"import torch\ntorch.set_default_device('cuda')\n{KERNELS.replace('cpu', 'cuda')}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert ran.stdout == "the same\n", ran.stderr
