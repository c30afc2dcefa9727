"""FP8 layers compute what plain layers with the dequantized weight compute."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from hswq_runtime import HSWQConv2d, HSWQLinear, dequantize_, weight_bytes
from hswq_runtime.layers.fp8 import FP8, fresh_scale, quantize
from hswq_runtime.layers.modules import quantized_twin

KINDS = pytest.mark.parametrize("kind", ["linear", "conv"])
SCALES = pytest.mark.parametrize("scales", ["none", "one", "rows"])


def plain_layer(kind: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Linear(32, 48), torch.randn(3, 5, 32)
    return nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2, padding_mode="circular"), torch.randn(2, 8, 9, 9)


def fp8_layer(plain: nn.Module, scales: str = "one", dtype=torch.float32) -> nn.Module:
    count = {"none": 0, "one": 1, "rows": len(plain.weight)}[scales]
    layer = quantized_twin(plain, scales=count, compute_dtype=dtype)
    scale = fresh_scale(plain.weight, count) * 1.1 if count else None
    state = {"weight": quantize(plain.weight, scale), "bias": plain.bias.detach().to(dtype)}
    layer.load_state_dict(state | ({"scale": scale} if count else {}), strict=True, assign=True)
    return layer.requires_grad_(False)


def dequantized(layer: nn.Module) -> torch.Tensor:
    """Its weight in float32, by torch's own cast and an explicit shape."""
    scale = torch.ones(1) if layer.scale is None else layer.scale.cpu()
    return layer.weight.cpu().float() * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))


@SCALES
@KINDS
def test_output_equals_the_dequantized_layer_bit_for_bit(kind, scales):
    plain, inputs = plain_layer(kind)
    layer = fp8_layer(plain, scales)
    assert isinstance(layer, (HSWQLinear, HSWQConv2d)) and isinstance(layer, type(plain))
    plain.weight.data = dequantized(layer)
    assert torch.equal(layer(inputs), plain(inputs))


@SCALES
@pytest.mark.parametrize(
    "change",
    [{}, {"padding": "same", "stride": 1}, {"padding_mode": "reflect"}, {"dilation": 2}, {"groups": 1}],
    ids=str,
)
def test_gradients_of_a_convolution_equal_the_dequantized_one(change, scales):
    torch.manual_seed(0)
    plain = nn.Conv2d(
        **{"in_channels": 8, "out_channels": 12, "kernel_size": 3, "stride": 2, "padding": 1, "groups": 2, **change}
    )
    check_gradients(plain, scales, torch.randn(2, 8, 9, 9))


@SCALES
def test_gradients_of_a_linear_layer_equal_the_dequantized_one(scales):
    plain, inputs = plain_layer("linear")
    check_gradients(plain, scales, inputs)


def check_gradients(plain, scales, inputs):
    layer = fp8_layer(plain, scales)
    plain.weight.data = dequantized(layer)
    layer.bias.requires_grad_(True)
    found, expected = inputs.clone().requires_grad_(True), inputs.clone().requires_grad_(True)
    torch.manual_seed(1)
    weights = torch.randn_like(plain(inputs))
    (layer(found) * weights).sum().backward()
    (plain(expected) * weights).sum().backward()
    assert torch.allclose(found.grad, expected.grad, rtol=1e-5, atol=1e-6)
    assert torch.allclose(layer.bias.grad, plain.bias.grad, rtol=1e-4, atol=1e-4)
    assert layer.weight.grad is None


@KINDS
def test_inference_mode_and_training_may_follow_each_other_in_any_order(kind):
    plain, inputs = plain_layer(kind)
    layer = fp8_layer(plain)

    def infer():
        with torch.inference_mode():
            return layer(inputs).clone()

    def run_in_a_fresh_thread():
        first = infer()
        layer(inputs.clone().requires_grad_(True)).sum().backward()
        return torch.equal(first, infer())

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run_in_a_fresh_thread).result()


def test_training_keeps_the_fp8_weight_for_the_backward_pass_and_no_expanded_one():
    layer, inputs = fp8_layer(plain_layer("linear")[0]), plain_layer("linear")[1]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(inputs.requires_grad_(True))
    assert sum(t.nbytes for t in saved) == layer.weight.nbytes + layer.scale.nbytes


@KINDS
def test_dequantize_gives_the_plain_layer(kind):
    plain, inputs = plain_layer(kind)
    model = nn.Sequential(fp8_layer(plain))
    expected = model(inputs)
    assert type(dequantize_(model)[0]) is type(plain)
    assert torch.equal(model(inputs), expected)


@SCALES
@KINDS
def test_requantizing_rounds_to_nearest_with_fresh_scales_of_the_same_kind(kind, scales):
    plain, _ = plain_layer(kind)
    layer = fp8_layer(plain, scales)
    values = torch.randn_like(plain.weight) * 3
    layer.requantize(values)
    assert layer.weight.dtype == FP8
    if scales == "none":
        assert layer.scale is None
    else:
        rows = values.abs().flatten(1).amax(1)
        assert torch.equal(layer.scale, (rows if scales == "rows" else rows.max().reshape(1)) / 448)
    unit = torch.ones(1) if layer.scale is None else layer.scale
    half_step = torch.maximum(values.abs() / 16, unit.reshape(-1, *[1] * (values.ndim - 1)) * 2**-10)
    assert ((dequantized(layer) - values).abs() <= half_step * (1 + 1e-5)).all()


@SCALES
def test_changing_dtype_changes_what_is_computed_in_and_nothing_stored(scales):
    plain, inputs = plain_layer("linear")
    layer = fp8_layer(plain, scales)
    stored, scale = layer.weight.view(torch.uint8).clone(), None if layer.scale is None else layer.scale.clone()
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == FP8 and torch.equal(layer.weight.view(torch.uint8), stored)
    assert layer.compute_dtype == layer.bias.dtype == layer(inputs.bfloat16()).dtype == torch.bfloat16
    if scale is not None:
        assert layer.scale.dtype == torch.float32 and torch.equal(layer.scale, scale)


def test_moving_keeps_the_parameter_and_the_order_of_the_state():
    """Optimizers and offload hooks hold on to the parameter object; nn.Linear keeps it, so do we."""
    layer = fp8_layer(plain_layer("linear")[0])
    weight, names = layer.weight, list(layer.state_dict())
    layer.to(torch.bfloat16).to("cpu")
    assert layer.weight is weight and list(layer.state_dict()) == names


def test_weights_take_a_quarter_of_float32():
    plain = nn.Linear(256, 256, bias=False)
    layer = quantized_twin(plain, scales=1, compute_dtype=torch.float32).to_empty(device="cpu")
    assert weight_bytes(layer) == weight_bytes(plain) // 4 + layer.scale.nbytes


def test_other_layers_have_no_twin():
    with pytest.raises(TypeError, match="LayerNorm"):
        quantized_twin(nn.LayerNorm(4), scales=0, compute_dtype=torch.float32)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@SCALES
@KINDS
def test_output_equals_the_dequantized_layer_on_cuda(kind, scales):
    plain, inputs = plain_layer(kind)
    layer = fp8_layer(plain, scales).to("cuda")
    plain.weight.data = dequantized(layer)
    assert torch.equal(layer(inputs.cuda()), plain.to("cuda")(inputs.cuda()))
