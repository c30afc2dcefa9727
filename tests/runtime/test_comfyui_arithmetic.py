"""What ComfyUI computes on a GPU with FP8 arithmetic, against comfy-kitchen's own code, bit for bit."""

import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from comfy_kitchen.tensor import QuantizedTensor, TensorCoreFP8Layout
from safetensors.torch import load_file, save_file
from support import tiny

from hswq_hub.generation.recording import map_tensors
from hswq_runtime import HSWQConfig, HSWQLinear, load_model, set_fp8_matmul
from hswq_runtime.errors import FormatError, HSWQError
from hswq_runtime.formats import Format, Product, Reader, companions, layer_of
from hswq_runtime.layers.fp8 import FP8, saturating_cast

LAYOUT = "TensorCoreFP8Layout"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EXACT, UNSCALED, SCALED = Product(exact=True), Product(), Product(input_scale=0.25)


def as_kitchen(layer: HSWQLinear, x: torch.Tensor) -> torch.Tensor:
    """What ComfyUI's layer does with an input: it takes the scale 1 where the file has none."""
    dtype, one = x.dtype, torch.ones(())
    scale = one if layer.scale is None else layer.scale.reshape(())
    params = TensorCoreFP8Layout.Params(scale=scale, orig_dtype=dtype, orig_shape=tuple(layer.weight.shape))
    weight = QuantizedTensor(layer.weight.data, LAYOUT, params)
    bias = None if layer.bias is None else layer.bias.data
    if layer.exact:
        return F.linear(x, weight.dequantize(), bias)
    at = one if layer.input_scale is None else layer.input_scale.reshape(())
    rounded = QuantizedTensor.from_float(x.reshape(-1, x.shape[-1]), LAYOUT, scale=at)
    if any(size % 16 for size in layer.weight.shape):  # the hardware refuses, and the handler expands both
        made = F.linear(rounded.dequantize(), weight.dequantize(), bias)
    else:
        made = F.linear(rounded, weight, bias)
    return made.reshape(*x.shape[:-1], len(layer.weight))


def a_layer(product: Product, dtype: torch.dtype, *, scale: float | None, bias: bool, size=(48, 32)) -> HSWQLinear:
    out, n = size
    layer = HSWQLinear(n, out, bias, scales=int(scale is not None), compute_dtype=dtype, product=product)
    generator = torch.Generator().manual_seed(3)
    layer.weight.data.copy_(saturating_cast(torch.randn(out, n, generator=generator) * 20))
    if scale is not None:
        layer.scale.fill_(scale)
    if bias:
        layer.bias = torch.nn.Parameter(torch.randn(out, generator=generator).to(dtype))
    return layer


def simulated(layer: HSWQLinear) -> HSWQLinear:
    set_fp8_matmul(torch.nn.Sequential(layer), reader=Reader.COMFYUI)
    return layer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("product", [EXACT, UNSCALED, SCALED])
@pytest.mark.parametrize("scale", [None, 0.0078125])
@pytest.mark.parametrize("size", [(48, 32), (20, 12), (48, 12)])
def test_a_layer_is_computed_as_by_comfy_kitchen(dtype, product, scale, size):
    generator = torch.Generator().manual_seed(1)
    for bias in (True, False):
        layer = simulated(a_layer(product, dtype, scale=scale, bias=bias, size=size))
        assert layer.fp8_matmul == (not product.exact)
        for shape in ((7, size[1]), (2, 5, size[1]), (2, 3, 2, size[1])):
            x = torch.randn(shape, generator=generator) * 3
            x.view(-1)[0], x.view(-1)[1] = 6.6e4 if dtype != torch.float16 else 6e4, 0.0
            x = x.to(dtype)
            with torch.no_grad():
                assert torch.equal(layer(x), as_kitchen(layer, x)), (bias, shape)
            assert torch.equal(layer(torch.zeros_like(x)), as_kitchen(layer, torch.zeros_like(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", list(Format))
def test_a_model_is_computed_as_by_comfy_kitchen(tmp_path, dtype, format):
    """Layers of each kind in one file, among them some that hardware cannot multiply."""
    model = load_model(marked(tmp_path, format), dtype)
    layers = [layer for layer in model.modules() if isinstance(layer, HSWQLinear)]
    assert {layer.exact for layer in layers} == {True, False}
    assert {layer.input_scale is None for layer in layers if not layer.exact} == {True, False}
    before = run(model, dtype)
    count = set_fp8_matmul(model, reader=Reader.COMFYUI)
    assert count == sum(not layer.exact for layer in layers)
    found = run(model, dtype)
    set_fp8_matmul(model, False)
    assert torch.equal(run(model, dtype), before)
    for layer in layers:
        layer.forward = lambda x, layer=layer: as_kitchen(layer, x)
    assert torch.equal(found, run(model, dtype)) and not torch.equal(found, before)


@torch.no_grad()
def run(model, dtype: torch.dtype) -> torch.Tensor:
    cast = {name: map_tensors(lambda t: t.to(dtype), value) for name, value in tiny.inputs().items()}
    return model(**cast)[0][0]


def marked(folder, format: Format):
    """A tiny file of `format` as the hub writes it, each third layer with another product."""
    path = folder / "marked.safetensors"
    tensors = load_file(tiny.quantized(folder, format.value))
    keys = [key for key, tensor in tensors.items() if tensor.dtype == FP8]
    for number, key in enumerate(keys):
        product = (EXACT, UNSCALED, SCALED)[number % 3]
        scale = tensors.get(f"{layer_of(key)}.scale", torch.ones(1)).item()
        tensors |= companions(key, scale, format, comfyui=True, product=product)
    save_file(tensors, path)
    return path


def test_products_survive_saving_by_diffusers_and_pickling(tmp_path):
    model = load_model(marked(tmp_path, Format.V2), torch.float32)
    said = {name: product(layer) for name, layer in linear(model).items()}
    assert set(said.values()) == {EXACT, UNSCALED, SCALED}
    model.save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    again = type(model).from_pretrained(tmp_path / "saved")
    assert {name: product(layer) for name, layer in linear(again).items()} == said
    again.save_pretrained(tmp_path / "twice", max_shard_size="100KB")
    type(model).from_pretrained(tmp_path / "twice").save_pretrained(tmp_path / "again", max_shard_size="100KB")
    for path in (tmp_path / "twice").glob("*.safetensors*"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    pickled = pickle.loads(pickle.dumps(model))
    assert {name: product(layer) for name, layer in linear(pickled).items()} == said
    layer = a_layer(SCALED, torch.float32, scale=0.5, bias=True).to(torch.bfloat16)
    assert layer.input_scale.dtype == torch.float32 and layer.bias.dtype == torch.bfloat16


def linear(model) -> dict[str, HSWQLinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, HSWQLinear)}


def product(layer: HSWQLinear) -> Product:
    return Product(layer.exact, None if layer.input_scale is None else layer.input_scale.item())


def test_the_runtime_multiplies_with_the_scales_of_the_file(tmp_path):
    """Static ones where the file has them, one a token where not; and what it wants exact is exact."""
    model = load_model(marked(tmp_path, Format.V1), torch.float32)
    plain = load_model(marked(tmp_path, Format.V1), torch.float32)
    assert 0 < set_fp8_matmul(model) == sum(layer.fp8_matmul for layer in linear(model).values())
    kinds = set()
    for name, layer in linear(model).items():
        x = torch.randn(4, layer.in_features, generator=torch.Generator().manual_seed(2))
        made, expanded = layer(x), plain.get_submodule(name)(x)
        kinds.add((layer.fp8_matmul, product(layer)))
        if not layer.fp8_matmul:
            assert torch.equal(made, expanded), name
        elif layer.input_scale is None:
            assert torch.allclose(made, expanded, rtol=0.1, atol=0.05 * expanded.abs().max().item()), name
            assert not torch.equal(made, expanded)
        else:
            assert torch.equal(made, as_kitchen(layer, x)), name
    assert {(False, EXACT), (True, UNSCALED), (True, SCALED)} <= kinds


def test_a_file_that_wants_all_exact_refuses_products_in_fp8(tmp_path):
    tensors = load_file(tiny.quantized(tmp_path, "v1"))
    for key in [key for key, tensor in tensors.items() if tensor.dtype == FP8]:
        tensors |= companions(key, 1.0, Format.V1, comfyui=True, product=EXACT)
    save_file(tensors, tmp_path / "exact.safetensors")
    with pytest.raises(HSWQError, match="--speed"):
        load_model(tmp_path / "exact.safetensors", fp8_matmul=True)
    model = load_model(tmp_path / "exact.safetensors")
    assert set_fp8_matmul(model, reader=Reader.COMFYUI) == 0


@pytest.mark.parametrize("name", ["input_scale", "scale_input"])
def test_other_tools_scales_of_inputs_are_read(tmp_path, name):
    tensors = load_file(tiny.quantized(tmp_path, "v1"))
    key = next(key for key in tensors if key.endswith("layers.0.feed_forward.w1.weight"))
    tensors[f"{layer_of(key)}.{name}"] = torch.tensor(0.5)
    save_file(tensors, tmp_path / "foreign.safetensors")
    layer = load_model(tmp_path / "foreign.safetensors").layers[0].feed_forward.w1
    assert product(layer) == Product(input_scale=0.5)


@pytest.mark.parametrize("bad", [torch.tensor(0.0), torch.tensor(float("nan")), torch.tensor(-1.0), torch.ones(7)])
def test_a_senseless_scale_of_inputs_is_refused(tmp_path, bad):
    tensors = load_file(tiny.quantized(tmp_path, "v1"))
    key = next(key for key in tensors if key.endswith("layers.0.feed_forward.w1.weight"))
    tensors[f"{layer_of(key)}.input_scale"] = bad
    save_file(tensors, tmp_path / "foreign.safetensors")
    with pytest.raises(FormatError, match="input_scale"):
        load_model(tmp_path / "foreign.safetensors")
    tensors |= {f"{layer_of(key)}.input_scale": torch.tensor(1.0), f"{layer_of(key)}.scale_input": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "foreign.safetensors")
    with pytest.raises(FormatError, match="agree"):
        load_model(tmp_path / "foreign.safetensors")


def test_a_layer_with_a_lora_is_exact(tmp_path):
    model = load_model(marked(tmp_path, Format.V1), torch.float32)
    name = next(name for name, layer in linear(model).items() if not layer.exact and "feed_forward" in name)
    from peft import LoraConfig

    model.add_adapter(LoraConfig(target_modules=[name], r=2))
    count = set_fp8_matmul(model, reader=Reader.COMFYUI)
    assert not model.get_submodule(f"{name}.base_layer").fp8_matmul
    assert count == sum(not layer.exact for layer in linear(model).values()) - 1


def test_derivatives_are_those_of_the_exact_product():
    layer = a_layer(SCALED, torch.float32, scale=0.5, bias=True)
    x = torch.randn(3, 32, requires_grad=True)
    set_fp8_matmul(torch.nn.Sequential(layer))
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.dequantized_weight().sum(0).expand(3, -1))


@pytest.mark.parametrize("bad", ["all", [1, 2]])
def test_the_list_of_exact_layers_is_one_of_names(bad):
    with pytest.raises(FormatError, match="names of layers"):
        HSWQConfig(exact=bad)
    assert json.loads(HSWQConfig(exact=["b", "a"]).to_json_string())["exact"] == ["a", "b"]
