"""What ComfyUI computes from a file on a GPU with FP8 arithmetic, against its own library, to the bit."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from support import loras, tiny
from support.kitchen import Theirs, inputs, theirs_in

from hswq_runtime import Checkpoint, FullPrecisionError, HSWQLinear, load_model, set_quantized_matmul
from hswq_runtime.formats import Product, Reader
from hswq_runtime.layers import fp8

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
W1 = "layers.0.feed_forward.w1"
KINDS = Product(exact=True), Product(), Product(input_scale=0.37), Product(input_scale=0.015), Product(input_scale=1.0)


def marked(tensors):
    """Give the layers of a file in ComfyUI's format each kind of product in turn."""
    marks = sorted(key for key in tensors if key.endswith(".comfy_quant"))
    for number, key in enumerate(marks):
        product, layer = KINDS[number % len(KINDS)], key.removesuffix(".comfy_quant")
        said = {"format": "float8_e4m3fn"} | ({"full_precision_matrix_mult": True} if product.exact else {})
        tensors[key] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
        if product.input_scale is not None:
            tensors[layer + ".input_scale"] = torch.tensor(product.input_scale)


def simulation(path, dtype, **how):
    model = load_model(path, dtype, **how)
    assert set_quantized_matmul(model, reader=Reader.COMFYUI) > 0
    return model


@pytest.fixture(autouse=True)
def hardware(monkeypatch):
    """On a CPU torch multiplies whatever the shape; this refuses what a GPU refuses, and ComfyUI falls back."""
    from comfy_kitchen.tensor import fp8 as theirs

    multiply = theirs.scaled_mm_v2

    def refuse(input, weight, **arguments):
        if input.shape[1] % 16 or weight.shape[1] % 16:
            raise RuntimeError("trailing dimensions must be divisible by 16")
        return multiply(input, weight, **arguments)

    monkeypatch.setattr(theirs, "scaled_mm_v2", refuse)


def layer(k, n, product, dtype, bias=True, scale=0.0123):
    torch.manual_seed(k * n)
    made = HSWQLinear(k, n, bias, scales=0 if scale is None else 1, compute_dtype=dtype, product=product, device="cpu")
    made.weight.data.copy_(fp8.quantize(torch.randn(n, k) * (5 if scale is None else 30)))
    if scale is not None:
        made.scale.fill_(scale)
    if bias:
        made.bias = torch.nn.Parameter(torch.randn(n).to(dtype), requires_grad=False)
    return made


@DTYPES
@pytest.mark.parametrize("product", KINDS, ids=str)
@pytest.mark.parametrize("size", [(64, 48), (96, 256), (20, 32), (32, 20), (7, 5)], ids=str)
def test_a_layer_is_theirs_to_the_bit(dtype, product, size):
    for bias in (True, False):
        for scale in (0.0123, None):
            ours = layer(*size, product, dtype, bias, scale)
            set_quantized_matmul(torch.nn.Sequential(ours), reader=Reader.COMFYUI)
            for shape in ((7,), (1,), (2, 3), (2, 3, 2)):
                x = inputs(size[0], shape).to(dtype)
                found, expected = ours(x), Theirs(ours)(x)
                assert found.dtype == dtype and torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_activations_beyond_the_range_saturate_as_theirs_do(dtype):
    ours = layer(32, 32, Product(), dtype, bias=False)
    set_quantized_matmul(torch.nn.Sequential(ours), reader=Reader.COMFYUI)
    far = torch.full((2, 32), 6.6e4, dtype=dtype)
    assert torch.equal(ours(far), Theirs(ours)(far))
    assert torch.equal(ours(far), ours(torch.full((2, 32), 448.0, dtype=dtype)))


@DTYPES
def test_a_whole_model_is_theirs_to_the_bit(tmp_path, dtype):
    path = tiny.quantized(tmp_path, "comfyui", change=marked)
    ours, theirs = simulation(path, dtype), theirs_in(load_model(path, dtype))
    arguments = tiny.inputs()
    arguments["x"], arguments["cap_feats"] = ([t.to(dtype) for t in arguments[name]] for name in ("x", "cap_feats"))
    with torch.no_grad():
        found, expected = (model(**arguments)[0][0] for model in (ours, theirs))
        exact = load_model(path, dtype)(**arguments)[0][0]
    assert torch.equal(found, expected) and found.isfinite().all()
    assert not torch.equal(found, exact)


def test_every_layer_that_is_not_marked_rounds_its_input_sensitive_or_not(tmp_path):
    model = simulation(tiny.quantized(tmp_path, "comfyui", change=marked), torch.float32)
    layers = [one for one in model.modules() if isinstance(one, HSWQLinear)]
    assert {one.quantized_matmul for one in layers if one.exact} == {False}
    assert {one.quantized_matmul for one in layers if not one.exact} == {True}
    rounding = [name for name, one in model.named_modules() if isinstance(one, HSWQLinear) and one.quantized_matmul]
    assert any("adaLN" in name or "embedder" in name for name in rounding)


def test_a_file_without_marks_in_fp8_is_simulated_with_scale_one(tmp_path):
    model = simulation(tiny.quantized(tmp_path, "comfyui"), torch.float32)
    w1 = model.get_submodule(W1)
    assert w1.input_scale is None and w1.quantized_matmul
    x = torch.randn(3, 96)
    rounded = fp8.saturating_cast(x).float()
    assert torch.allclose(w1(x), F.linear(rounded, w1.dequantized_weight()), rtol=1e-5, atol=1e-6)


def test_marked_files_are_simulated_with_their_scale_in_the_compute_dtype(tmp_path):
    path = tiny.quantized(tmp_path, "comfyui-old")
    model = load_model(path, torch.bfloat16)
    w1 = model.get_submodule(W1)
    w1.scale.fill_(0.0123)
    x = torch.randn(3, 96).bfloat16()
    once = w1(x)
    assert set_quantized_matmul(model, reader=Reader.COMFYUI) == 0
    twice = F.linear(x, w1.weight.bfloat16() * w1.scale.bfloat16())
    assert torch.equal(w1(x), twice) and not torch.equal(once, twice)
    set_quantized_matmul(model, False)
    assert torch.equal(w1(x), once)


def test_layers_with_one_scale_a_row_round_their_input_and_expand_their_weight(tmp_path):
    model = simulation(tiny.quantized(tmp_path, "v2-rows"), torch.float32)
    w1 = model.get_submodule(W1)
    x = torch.randn(3, 96)
    assert torch.equal(w1(x), F.linear(fp8.saturating_cast(x).float(), w1.dequantized_weight()))


@pytest.mark.parametrize("fused", [False, True], ids=["beside", "fused"])
def test_a_lora_makes_its_layers_exact(tmp_path, fused):
    path = tiny.quantized(tmp_path, "comfyui", change=marked)
    model, plain = simulation(path, torch.float32), load_model(path, torch.float32)
    for one in (model, plain):
        pipe = loras.pipeline(one)
        pipe.load_lora_weights(loras.diffusers_layout())
        if fused:
            pipe.fuse_lora()
    adapted = [name for name, one in plain.named_modules() if hasattr(one, "base_layer")]
    assert any(not plain.get_submodule(name).base_layer.exact for name in adapted)
    x = torch.randn(3, 96)
    for name in adapted:
        ours, exact = model.get_submodule(name), plain.get_submodule(name)
        if ours.in_features == 96:
            assert torch.equal(ours(x), exact(x)), name
    if not fused:
        pipe = loras.pipeline(model)
        pipe.disable_lora()
        (name, *_) = [name for name in adapted if not model.get_submodule(name).base_layer.exact]
        off, exact = model.get_submodule(name), plain.get_submodule(name).base_layer
        x = torch.randn(3, exact.in_features)
        assert not torch.equal(off(x), exact(x)), "a LoRA that is off is none"


def test_gradients_are_those_of_the_exact_product(tmp_path):
    path, gradients = tiny.quantized(tmp_path, "comfyui", change=marked), []
    for model in (simulation(path, torch.float32), load_model(path, torch.float32)):
        x = torch.ones(3, 96, requires_grad=True)
        model.get_submodule(W1)(x).sum().backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients)


@pytest.mark.parametrize("reader", list(Reader))
@pytest.mark.parametrize("product", KINDS[1:3], ids=str)
def test_it_compiles_without_graph_breaks(reader, product):
    torch._dynamo.reset()
    ours, x = layer(64, 48, product, torch.float32), torch.randn(3, 64)
    set_quantized_matmul(torch.nn.Sequential(ours), reader=reader)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), ours(x), rtol=1e-4, atol=1e-6)


# --- Ours -----------------------------------------------------------------------------------------------


def test_our_own_product_takes_the_file_s_input_scale():
    ours = layer(64, 48, Product(input_scale=0.015), torch.float32)
    set_quantized_matmul(torch.nn.Sequential(ours))
    theirs, x = Theirs(ours), torch.randn(3, 64)
    assert torch.equal(ours(x), theirs(x))
    ours.set_product(Product())
    assert not torch.equal(ours(x), theirs(x)), "without one, every row has its own"


def test_marked_and_sensitive_layers_and_odd_shapes_stay_exact(tmp_path):
    model = load_model(tiny.quantized(tmp_path, "comfyui", change=marked), torch.float32, quantized_matmul=True)
    for name, one in model.named_modules():
        if isinstance(one, HSWQLinear) and one.quantized_matmul:
            assert not one.exact and not any(word in name for word in ("embedder", "adaLN", "final"))


def test_a_folded_file_can_be_opened_as_it_is_stored(tmp_path):
    def fold(tensors):
        marked(tensors)
        tensors[f"{tiny.PREFIX}{W1}.input_scale"] = torch.tensor(0.5)

    entry = {"hswq_fold": json.dumps({f"{tiny.PREFIX}{W1}.weight": [[256, 2]]})}
    path = tiny.quantized(tmp_path, "comfyui", change=fold)
    save_file(load_file(path), path, metadata=entry)
    unfolded, stored = load_model(path), load_model(Checkpoint(path, unfold=False))
    one, other = unfolded.get_submodule(W1), stored.get_submodule(W1)
    assert torch.equal(one.scale * 4, other.scale)
    assert one.input_scale is None, "it is that of the folded input"
    assert other.input_scale.item() == 0.5


def test_a_file_that_wants_every_layer_exact_is_refused(tmp_path):
    path = tiny.quantized(tmp_path, "comfyui-old")
    for load in (lambda: load_model(path, quantized_matmul=True), lambda: set_quantized_matmul(load_model(path))):
        with pytest.raises(
            FullPrecisionError, match=r"load the model without quantized_matmul, or quantize .* --speed"
        ):
            load()
    assert set_quantized_matmul(load_model(path), False) == 0
    assert set_quantized_matmul(load_model(tiny.checkpoint(tmp_path))) == 0, (
        "a model without FP8 layers has none to mark"
    )
