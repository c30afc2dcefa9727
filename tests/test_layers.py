"""FP8 layers compute what plain layers with the dequantized weight compute."""

import pytest
import torch
from torch import nn

from hswq_runtime import HSWQConv2d, HSWQLinear, dequantize_, weight_bytes
from hswq_runtime.fp8 import FP8, quantize
from hswq_runtime.layers import quantized_twin

SCALE = torch.tensor([0.0013])


def plain_layer(kind: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Linear(32, 48), torch.randn(3, 5, 32)
    return nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2, padding_mode="circular"), torch.randn(2, 8, 9, 9)


def fp8_layer(plain: nn.Module, scaled: bool, dtype=torch.float32) -> nn.Module:
    layer = quantized_twin(plain, scaled=scaled, compute_dtype=dtype)
    state = {"weight": quantize(plain.weight, SCALE if scaled else None), "bias": plain.bias.detach().to(dtype)}
    layer.load_state_dict(state | ({"scale": SCALE} if scaled else {}), strict=True, assign=True)
    return layer.requires_grad_(False)


@pytest.mark.parametrize("scaled", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_output_equals_the_dequantized_layer_bit_for_bit(kind, scaled):
    plain, inputs = plain_layer(kind)
    layer = fp8_layer(plain, scaled)
    assert isinstance(layer, (HSWQLinear, HSWQConv2d)) and isinstance(layer, type(plain))
    plain.weight.data = layer.weight.float() * (SCALE if scaled else 1)
    assert torch.equal(layer(inputs), plain(inputs))


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_dequantize_gives_the_plain_layer(kind):
    plain, inputs = plain_layer(kind)
    model = nn.Sequential(fp8_layer(plain, scaled=True))
    expected = model(inputs)
    assert type(dequantize_(model)[0]) is type(plain)
    assert torch.equal(model(inputs), expected)


@pytest.mark.parametrize("scaled", [False, True], ids=["v1", "v2"])
def test_changing_dtype_changes_what_is_computed_in_and_nothing_stored(scaled):
    plain, inputs = plain_layer("linear")
    layer = fp8_layer(plain, scaled)
    stored = layer.weight.view(torch.uint8).clone()
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == FP8 and torch.equal(layer.weight.view(torch.uint8), stored)
    assert layer.compute_dtype == layer.bias.dtype == layer(inputs.bfloat16()).dtype == torch.bfloat16
    if scaled:
        assert layer.scale.dtype == torch.float32 and torch.equal(layer.scale, SCALE)


def test_moving_keeps_the_parameter_and_the_order_of_the_state():
    """Optimizers and offload hooks hold on to the parameter object; nn.Linear keeps it, so do we."""
    layer = fp8_layer(plain_layer("linear")[0], scaled=True)
    weight, names = layer.weight, list(layer.state_dict())
    layer.to(torch.bfloat16).to("cpu")
    assert layer.weight is weight and list(layer.state_dict()) == names


def test_weights_take_a_quarter_of_float32():
    plain = nn.Linear(256, 256, bias=False)
    layer = quantized_twin(plain, scaled=True, compute_dtype=torch.float32).to_empty(device="cpu")
    assert weight_bytes(layer) == weight_bytes(plain) // 4 + SCALE.nbytes


def test_other_layers_have_no_twin():
    with pytest.raises(TypeError, match="LayerNorm"):
        quantized_twin(nn.LayerNorm(4), scaled=False, compute_dtype=torch.float32)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_output_equals_the_dequantized_layer_on_cuda(kind):
    plain, inputs = plain_layer(kind)
    layer = fp8_layer(plain, scaled=True).to("cuda")
    plain.weight.data = layer.weight.float().cpu() * SCALE
    assert torch.equal(layer(inputs.cuda()), plain.to("cuda")(inputs.cuda()))
