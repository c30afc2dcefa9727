"""INT8 weights: rounded where their inputs are rotated, with the cheapest scales, and what their files hold."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import tiny
from support.layers import case, form
from torch import nn

from hswq_hub.calibration.calibrate import Calibration, monitor
from hswq_hub.generation.recording import RecordedCall, record_calls
from hswq_hub.quantization.blocks import BlockReplays
from hswq_hub.quantization.choices.keep import keep
from hswq_hub.quantization.compensate import Wanted, compensated_layers, int8_form, write_compensated
from hswq_hub.quantization.gptq import compensated, conditional_variances, damped
from hswq_hub.quantization.measure import measure_errors
from hswq_hub.quantization.moments import Layer, Moments, Rows, second_moments
from hswq_hub.quantization.plan import Plan, input_scales, plan_everything
from hswq_hub.quantization.samples.inputs import Rounded
from hswq_hub.quantization.search import cheapest_scales
from hswq_hub.quantization.writer import codes_of, write_quantized
from hswq_hub.settings import ALL_FORMATS, ErrorSettings, RoundingSettings, recipe
from hswq_runtime import Checkpoint, Format, HSWQLinear, load_model, set_quantized_matmul
from hswq_runtime.formats import Number, Product, Reader, layer_of
from hswq_runtime.layers import int8
from hswq_runtime.layers.numbers import quantize

SHA = "0" * 64
HOW = recipe(keep_ratio=0.2)


def error(weight, values, inputs, outputs):
    """tr(G D H Dᵀ) in float64, where nothing is rotated."""
    d = (values - weight).double()
    return ((outputs.double() @ d @ inputs.double()) * d).sum().item()


@pytest.mark.parametrize("rounding", ["gptq", "kfac"])
def test_compensated_beats_nearest_in_the_basis_of_the_model(rounding):
    (weight, inputs), outputs = case(0, rows=24, n=64), case(100, n=24)[1]
    outputs = outputs if rounding == "kfac" else torch.eye(24)
    moments = Moments(inputs.unsqueeze(0), ((0, 24),), (outputs,) if rounding == "kfac" else None)
    rounded = int8_form(weight, moments, 64, 0.003)
    ((codes,),) = compensated_layers([Wanted([rounded], moments)], RoundingSettings())
    assert codes.dtype == torch.int8 and codes.abs().max() <= 127
    ours = int8.dequantize(codes, rounded.scale, torch.float32, 64)
    nearest = int8.dequantize(*quantize(weight, Number.INT8, 24, 64), torch.float32, 64)
    assert error(weight, ours, inputs, outputs) < 0.4 * error(weight, nearest, inputs, outputs)


def test_problems_of_both_number_formats_are_rounded_as_each_alone():
    weight, inputs = case(2, rows=10, n=64)
    moments = Moments(inputs.unsqueeze(0), ((0, 10),), (case(102, n=10)[1],))
    forms = [form(weight), int8_form(weight, moments, 16, 0.003), form(2 * weight)]
    (together,) = compensated_layers([Wanted(forms, moments)], RoundingSettings())
    for one, codes in zip(forms, together, strict=True):
        ((alone,),) = compensated_layers([Wanted([one], moments)], RoundingSettings())
        assert torch.equal(codes.view(torch.uint8), alone.view(torch.uint8))


def test_moments_are_rotated_as_the_inputs_are_and_rounding_adds_to_them():
    weight, _ = case(3, rows=8, n=32)
    x = torch.randn(100, 32, dtype=torch.float64)
    moments = Moments((x.T @ x).unsqueeze(0).float(), ((0, 8),), None, noise=0.5)
    rotated = int8.rotate(x, 16)
    found = int8_form(weight, moments, 16, 0.003)
    expected = rotated.T @ rotated + 0.5 * torch.eye(32, dtype=torch.float64)
    assert torch.allclose(found.inputs[0], expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(found.values @ rotated.T, weight.double() @ x.T, atol=1e-6), "the same product"


def test_a_scale_is_the_cheapest_of_those_tried():
    torch.manual_seed(0)
    weight, cost = torch.randn(6, 200, dtype=torch.float64), torch.rand(200, dtype=torch.float64)
    weight[1, 7], weight[2] = 40.0, 0.0
    found = cheapest_scales(weight, cost, 127)
    assert found[2] == 1
    tried = torch.linspace(0.5, 1, 26, dtype=torch.float64)
    for row in (0, 1, 3):
        scales = weight[row].abs().max() / 127 * tried
        costs = [
            (cost * (s**2 / 12 + (weight[row].abs() - 127 * s).clamp(min=0).square())).sum().item() for s in scales
        ]
        assert found[row].item() == pytest.approx(scales[costs.index(min(costs))].item())


def test_clipping_a_weight_that_nobody_sees_buys_finer_steps_for_the_others():
    weight, cost = torch.ones(1, 64, dtype=torch.float64), torch.ones(64, dtype=torch.float64)
    weight[0, 3], cost[3] = 1.9, 0.0
    assert 1 / 127 <= cheapest_scales(weight, cost, 127).item() < 1.05 / 127
    cost[3] = 1.0
    assert cheapest_scales(weight, cost, 127).item() > 1.8 / 127


def test_costs_are_conditional_variances():
    _, inputs = case(4, n=20)
    h = damped(inputs.double(), 0.01)
    order = h.diagonal().argsort(descending=True)
    found = conditional_variances(inputs, 0.01)
    for place, column in enumerate(order):
        rest = order[place:]
        assert found[column].item() == pytest.approx(1 / torch.linalg.inv(h[rest][:, rest])[0, 0].item(), rel=1e-6)


def test_gptq_rounds_to_whole_numbers_times_the_scale():
    weight, moment = torch.tensor([[2.3, -0.7, 300.0]]), torch.eye(3)
    found = compensated(weight, moment, torch.tensor([[0.5]]), number=Number.INT8, damping=1e-9)
    assert found.tolist() == [[5, -1, 127]]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return Checkpoint(tiny.checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def calibration(source) -> Calibration:
    denoiser = load_model(source, torch.float32)
    with record_calls(denoiser, set(range(3))) as calls, monitor(denoiser) as layers, torch.no_grad():
        for seed in range(3):
            denoiser(**tiny.inputs(seed))
    return Calibration(layers, {"dtype": "float32"}, calls)


@pytest.fixture(scope="module")
def plans(source, calibration) -> dict[Format, Plan]:
    return plan_everything(source, calibration, ALL_FORMATS, HOW)


@pytest.fixture(scope="module")
def rounded(source, calibration, plans, tmp_path_factory):
    """A file of each format with all weights rounded."""
    paths = {format: tmp_path_factory.mktemp("rounded") / f"{format}.safetensors" for format in ALL_FORMATS}
    write_compensated(source, calibration, plans, paths, "kfac", RoundingSettings(), source_sha256=SHA)
    return paths


@pytest.fixture(scope="module")
def errors(source, calibration, plans, rounded, tmp_path_factory):
    codes = {format: codes_of(source, format, path) for format, path in rounded.items()}
    scales, place = input_scales(source, calibration, plans[Format.V1]), tmp_path_factory.mktemp("errors")
    return measure_errors(source, calibration, plans, codes, ErrorSettings(), scales=scales, place=place)


def test_linear_layers_are_int8_with_rotated_inputs_and_the_same_are_quantized(source, plans):
    linear = plans[Format.INT8].quantized
    assert {d.key for d in linear} == {d.key for d in plans[Format.V1].quantized}
    for decision in linear:
        assert decision.number is Number.INT8 and decision.scale is None
        columns = source.tensors[decision.key].shape[1]
        assert columns % decision.group == 0 and decision.group in (4, 16, 64, 256)


def test_what_the_file_holds(source, calibration, plans, rounded, errors, tmp_path):
    chosen = keep(plans[Format.INT8], source, HOW, errors.weights[Format.INT8], errors.inputs)
    path = tmp_path / "tiny-int8.safetensors"
    write_quantized(source, chosen, path, codes_of(source, Format.INT8, rounded[Format.INT8]), source_sha256=SHA)
    stored, original, whole = load_file(path), load_file(source.path), load_file(rounded[Format.INT8])
    assert 0 < len(chosen.kept) < len(chosen.decisions)
    expected = {*original}
    for decision in chosen.quantized:
        layer = layer_of(decision.key)
        expected |= {f"{layer}.weight_scale", f"{layer}.comfy_quant"}
        assert stored[decision.key].dtype == torch.int8 and torch.equal(stored[decision.key], whole[decision.key])
        assert stored[f"{layer}.weight_scale"].shape == (len(stored[decision.key]), 1)
        said = json.loads(bytes(stored[f"{layer}.comfy_quant"].tolist()))
        exact = {"full_precision_matrix_mult": True} if decision.exact else {}
        rotated = {"convrot": True, "convrot_groupsize": decision.group}
        assert said == {"format": "int8_tensorwise", **rotated, **exact}
    assert stored.keys() == expected
    assert all(torch.equal(stored[d.key], original[d.key]) for d in chosen.kept)
    assert Checkpoint(path).metadata["hswq_format"] == "int8"
    model = load_model(path, torch.float32)
    chosen_layers = {d.layer for d in chosen.quantized if d.rounds_input}
    assert set_quantized_matmul(model, reader=Reader.COMFYUI) >= len(chosen_layers) > 0
    reference = tiny.run(load_model(source, torch.float32))
    assert (tiny.run(model) - reference).norm() < 0.05 * reference.norm()


def test_int8_is_closer_than_v2_and_curvature_closer_than_nearest(
    source, calibration, plans, rounded, errors, tmp_path
):
    nearest = plan_everything(source, calibration, [Format.INT8], recipe(keep_ratio=0.2, rounding="nearest"))
    of_nearest = measure_errors(
        source,
        calibration,
        nearest,
        {Format.INT8: codes_of(source, Format.INT8)},
        ErrorSettings(),
        scales={},
        place=tmp_path,
    )
    total = {format: sum(errors.weights[format].values()) for format in ALL_FORMATS}
    assert total[Format.INT8] < total[Format.V2]
    assert total[Format.INT8] < 0.5 * sum(of_nearest.weights[Format.INT8].values())


def test_rounded_inputs_are_measured_for_each_number_format(errors, plans):
    found = errors.inputs
    assert set(found) == {Number.FP8, Number.INT8} and found[Number.FP8].keys() == found[Number.INT8].keys()
    fp8, eight = (sum(one.error for one in found[number].values()) for number in (Number.FP8, Number.INT8))
    assert 0 < eight < fp8 / 4, "seven bits of mantissa in place of three"
    assert all(one.scale is None for one in found[Number.INT8].values())
    assert all(a.work == b.work for a, b in zip(*(found[n].values() for n in Number), strict=True))


def test_an_input_is_measured_as_the_layer_rounds_it():
    torch.manual_seed(0)
    layer = HSWQLinear(
        64,
        32,
        False,
        scales=32,
        compute_dtype=torch.float32,
        product=Product(number=Number.INT8, group=16),
        device="cpu",
    )
    codes, scale = quantize(torch.randn(32, 64), Number.INT8, 32, 16)
    layer.weight.data.copy_(codes)
    layer.scale.copy_(scale)
    layer.quantized_matmul = True
    x = torch.randn(7, 64)
    expected = Rounded(Number.INT8, group=16)(x) @ layer.dequantized_weight().T
    assert torch.allclose(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("outputs", [False, True])
def test_noise_is_a_twelfth_of_the_squared_step(outputs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 4)).requires_grad_(False)
    x = torch.randn(1, 50, 16)
    found = _moments(model, x, outputs)
    _, steps = int8.quantize_rows(x[0], 16)
    weights = torch.ones(50) if not outputs else _influence(model, x)
    assert found.noise == pytest.approx((weights * steps.flatten().square()).sum().item() / 12 / 50, rel=1e-4)


def _influence(model, x) -> torch.Tensor:
    """|g|² of each token, g being the probe itself, since the layer is the model's output."""
    return torch.randn(1, 50, 4, generator=torch.Generator().manual_seed(0))[0].square().sum(dim=1)


def _moments(model, x, outputs):
    layers = {"a": Layer((Rows(model[0], 0, 0, 4),))}
    with BlockReplays.open(model, [RecordedCall((x,), {})], "cpu", Path()) as replays:
        return second_moments(replays, layers, outputs=outputs, int8={"a": 16})["a"]
