"""Rounding that knows a layer's outputs, and the moments that it needs, against slow ways and small cases."""

import ctypes
from pathlib import Path

import psutil
import pytest
import torch
from support import tiny
from support.layers import case, form, scale_of
from torch import nn

from hswq_hub.common.hardware import PeakMemory
from hswq_hub.generation.recording import RecordedCall
from hswq_hub.quantization.blocks import BlockReplays
from hswq_hub.quantization.compensate import Wanted, compensated_layers, working_bytes
from hswq_hub.quantization.gptq import compensated, damped, upper_factor
from hswq_hub.quantization.kfac import BLOCK, Problem, _feedback, compensated_both_ways
from hswq_hub.quantization.moments import Layer, Moments, Rows, layers_of, second_moments
from hswq_hub.settings import RoundingSettings
from hswq_runtime import Checkpoint, load_model
from hswq_runtime.errors import HSWQError
from hswq_runtime.formats import Number
from hswq_runtime.layers.fp8 import dequantize, quantize
from hswq_runtime.layers.numbers import NUMBERS


def both_ways(weight, inputs, outputs, scale=None, number=Number.FP8, **changes):
    """One weight with a scale of any kind."""
    if scale is not None and scale.numel() > 1:
        problem = Problem(weight.unsqueeze(0), inputs, outputs, scale)
    else:
        stored = (weight if scale is None else weight.double() / scale.double()).unsqueeze(0)
        problem = Problem(stored, inputs, outputs, number=number)
    return compensated_both_ways([problem], **changes)[0][0]


def rounded(moments, *forms):
    """Codes of each form of one weight."""
    return compensated_layers([Wanted([form(*one) for one in forms], moments)], RoundingSettings(sweeps=1))[0]


def outputs_of(seed: int, rows: int = 24) -> torch.Tensor:
    """Second moments of outputs that matter together."""
    return case(seed + 100, n=rows)[1]


def error(weight, codes, scale, inputs, outputs):
    """tr(G D H Dᵀ) in float64."""
    d = (dequantize(codes, scale, torch.float32) - weight).double()
    return ((outputs.double() @ d @ inputs.double()) * d).sum().item()


def test_the_second_row_makes_up_for_the_first():
    """Two outputs that only count as their sum: to nearest 17.4 becomes 18 twice; known together, 18 and then 16."""
    weight, together = torch.tensor([[17.4], [17.4]]), torch.ones(2, 2)
    found = both_ways(weight, torch.ones(1, 1), together, damping=1e-9, output_damping=1e-9)
    assert found.float().tolist() == [[18.0], [16.0]]
    assert compensated(weight, torch.ones(1, 1)).float().tolist() == [[18.0], [18.0]]


def test_rows_with_the_larger_second_moment_go_first():
    weight, g = torch.tensor([[17.4], [17.4]]), torch.tensor([[1.0], [3.0]])
    found = both_ways(weight, torch.ones(1, 1), g @ g.T, damping=1e-9, output_damping=1e-9)
    assert found.float().tolist() == [[16.0], [18.0]]


@pytest.mark.parametrize("kind", ["v1", "v2", "rows"])
@pytest.mark.parametrize("seed", range(3))
def test_the_model_s_output_is_much_closer_than_with_gptq(kind, seed):
    (weight, inputs), outputs = case(seed), outputs_of(seed)
    scale = scale_of(weight, kind)
    one_way = error(weight, compensated(weight, inputs, scale, sweeps=3), scale, inputs, outputs)
    found = both_ways(weight, inputs, outputs, scale)
    assert error(weight, found, scale, inputs, outputs) < 0.75 * one_way


@pytest.mark.parametrize("kind", ["v1", "v2", "rows"])
def test_outputs_that_count_alike_leave_gptq(kind):
    weight, inputs = case(4)
    scale = scale_of(weight, kind)
    found = both_ways(weight, inputs, torch.eye(24), scale, damping=0.01)
    assert torch.equal(found.float(), compensated(weight, inputs, scale, damping=0.01).float())


@pytest.mark.parametrize(
    ("number", "large", "nearest"),
    [
        (Number.FP8, 1, lambda value: quantize(value).double()),
        (Number.INT8, 1000, lambda value: value.round().clamp(-127, 127)),
    ],
    ids=["fp8", "int8"],
)
def test_it_is_element_by_element_what_the_formula_says(number, large, nearest):
    """Each element is that code nearest to where its own of Sᵀ D R is zero, with D complete above and to the left."""
    (weight, inputs), outputs = case(1, rows=5, n=7), outputs_of(1, rows=5)
    weight = weight * large
    h = inputs + 0.01 * inputs.diagonal().mean() * torch.eye(7)
    g = outputs + 0.02 * outputs.diagonal().mean() * torch.eye(5)
    columns, rows = h.diagonal().argsort(descending=True), g.diagonal().argsort(descending=True)
    h, g, w = h[columns][:, columns], g[rows][:, rows], weight.double()[rows][:, columns]
    r = torch.linalg.cholesky(h.flip(0, 1)).flip(0, 1)
    s = torch.linalg.cholesky(g.flip(0, 1)).flip(0, 1)
    d, codes = torch.zeros_like(w), torch.zeros_like(w)
    for i in range(5):
        for j in range(7):
            own = (s.T @ d @ r)[i, j]  # d[i, j] is still zero
            codes[i, j] = nearest(w[i, j] - own / (s[i, i] * r[j, j]))
            d[i, j] = codes[i, j] - w[i, j]
    found = both_ways(weight, inputs, outputs, number=number, damping=0.01, output_damping=0.02)
    assert torch.equal(found.double()[rows][:, columns], codes)


@pytest.mark.parametrize("block", [1, 7, 16, 40, 100])
@pytest.mark.parametrize("kind", ["v1", "rows"])
def test_blocks_change_nothing(block, kind):
    (weight, inputs), outputs = case(0), outputs_of(0)
    scale = scale_of(weight, kind)
    whole = both_ways(weight, inputs, outputs, scale)
    assert torch.equal(both_ways(weight, inputs, outputs, scale, block=block).float(), whole.float())


def test_what_nobody_sees_is_rounded_to_nearest():
    weight, _ = case(0)
    found = both_ways(weight, torch.zeros(40, 40), torch.zeros(24, 24))
    assert torch.equal(found.float(), quantize(weight).float())


def test_what_is_beyond_the_grid_saturates():
    found = both_ways(torch.tensor([[1e4, -1e4]]), torch.eye(2), torch.eye(1))
    assert found.float().tolist() == [[448.0, -448.0]]


@pytest.mark.parametrize("kind", ["v1", "v2", "rows"])
def test_parts_of_a_weight_are_rounded_by_their_own_moments(kind):
    weight, inputs = case(0, rows=10, n=36)
    other, outputs = case(1, n=36)[1], (outputs_of(0, rows=5), outputs_of(1, rows=3), outputs_of(2, rows=2))
    scale = scale_of(weight, kind)
    moments = Moments(torch.stack([inputs, other]), ((0, 5), (1, 3), (1, 2)), outputs)
    shaped = None if scale is None else scale.reshape(-1, 1, 1, 1)
    found = rounded(moments, (weight.reshape(10, 4, 3, 3), shaped))[0]
    for rows, h, g in ((slice(0, 5), inputs, 0), (slice(5, 8), other, 1), (slice(8, 10), other, 2)):
        part = scale[rows] if kind == "rows" else scale
        expected = both_ways(weight[rows], h, outputs[g], part)
        assert torch.equal(found.reshape(10, -1)[rows].float(), expected.float())


def test_several_forms_of_a_weight_are_rounded_as_each_alone():
    weight, inputs = case(3, rows=10)
    outputs = outputs_of(3, rows=10)
    moments = Moments(inputs.unsqueeze(0), ((0, 10),), (outputs,))
    wanted = [(weight, None), (weight, scale_of(weight, "v2")), (2 * weight, None), (weight, scale_of(weight, "rows"))]
    together = rounded(moments, *wanted)
    for one, codes in zip(wanted, together, strict=True):
        assert torch.equal(codes.float(), rounded(moments, one)[0].float())
    assert not torch.equal(together[0].float(), together[2].float())


def test_what_a_gpu_computes_in_float32_is_as_close():
    (weight, inputs), outputs = case(5, rows=96, n=160), outputs_of(5, rows=96)
    exact = error(weight, both_ways(weight, inputs, outputs), None, inputs, outputs)
    h, g = damped(inputs.double(), 0.003), damped(outputs.double(), 0.1)
    columns, rows = h.diagonal().argsort(descending=True), g.diagonal().argsort(descending=True)
    r, s = upper_factor(h[columns][:, columns]), upper_factor(g[rows][:, rows])
    single = (weight[rows][:, columns].unsqueeze(0), r, s / s.diagonal())
    codes = _feedback([tuple(t.float() for t in single)], BLOCK, NUMBERS[Number.FP8])[0][0].float()
    d = torch.empty_like(weight)
    d[rows.unsqueeze(1), columns] = codes - weight[rows][:, columns]
    found = ((outputs.double() @ d.double() @ inputs.double()) * d).sum().item()
    assert found == pytest.approx(exact, rel=0.02)


def test_layers_of_any_sizes_are_rounded_together_as_each_alone():
    wanted = []
    for seed, (rows, n) in enumerate([(10, 40), (130, 70), (64, 64), (3, 200)]):
        weight, inputs = case(seed, rows=rows, n=n)
        moments = Moments(inputs.unsqueeze(0), ((0, rows),), (outputs_of(seed, rows=rows),))
        wanted.append(Wanted([form(weight), form(weight, scale_of(weight, "v2"))], moments))
    together = compensated_layers(wanted, RoundingSettings())
    for one, codes in zip(wanted, together, strict=True):
        alone = compensated_layers([one], RoundingSettings())[0]
        assert all(torch.equal(a.float(), b.float()) for a, b in zip(codes, alone, strict=True))


class Chain(nn.Module):
    """Two layers and something that is not linear between them; `unused` sees the input, and nothing sees it."""

    def __init__(self, first: nn.Module, second: nn.Module, unused: nn.Module | None = None):
        super().__init__()
        self.first, self.second, self.unused = first, second, unused

    def forward(self, x):
        if self.unused is not None:
            self.unused(x)
        return self.second(self.first(x).tanh())


def moments_of(model: nn.Module, modules: dict[str, nn.Module], inputs: list[torch.Tensor], groups: int = 1):
    model.requires_grad_(False)
    layers = {
        name: Layer(tuple(Rows(m, g, 0, len(m.weight) // groups) for g in range(groups))) for name, m in modules.items()
    }
    with BlockReplays.open(model, [RecordedCall((x,), {}) for x in inputs], "cpu", Path()) as replays:
        return second_moments(replays, layers, outputs=True)


def test_moments_of_outputs_are_those_of_the_jacobian():
    """Over many probes E[ggᵀ] is Σ JᵀJ, and inputs count by the trace of it at their token."""
    torch.manual_seed(0)
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    model, x = Chain(first, second), torch.randn(1, 5, 3)
    found = moments_of(model, {"first": first}, [x] * 2000)["first"]
    jacobians = [second.weight @ torch.diag(1 - first(token).tanh() ** 2) for token in x[0]]
    squares = [j.T @ j for j in jacobians]
    assert torch.allclose(found.outputs[0], sum(squares) / 5, rtol=0.15, atol=0.02)
    weighted = sum(g.trace() * torch.outer(token, token) for g, token in zip(squares, x[0], strict=True)) / 5
    assert torch.allclose(found.inputs[0], weighted, rtol=0.15, atol=0.05)


@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 1}, {"groups": 2, "padding": "same"}], ids=str)
def test_moments_of_a_convolution_predict_what_a_change_does(settings):
    """Places are tokens: patches of the input, and what the probe's derivative is there."""
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, bias=False, **settings)
    groups = settings.get("groups", 1)
    x = torch.randn(1, 4, 5, 5)
    found = moments_of(Chain(layer, nn.Identity()), {"layer": layer}, [x], groups)["layer"]
    probe = torch.randn(layer(x).shape, generator=torch.Generator().manual_seed(0))
    g = probe * (1 - layer(x).tanh() ** 2)  # the derivative by the layer's output, place by place
    rows = g[0].flatten(1).T.reshape(-1, groups, 6 // groups)
    for group in range(groups):
        expected = rows[:, group].T @ rows[:, group] / len(rows)
        assert torch.allclose(found.outputs[group], expected, rtol=1e-4, atol=1e-6)
    energy = rows.square().sum(dim=2)
    padding = 1 if settings.get("padding") in (1, "same") else 0
    patches = nn.functional.unfold(x, 3, padding=padding, stride=settings.get("stride", 1))[0]
    patches = patches.reshape(groups, -1, patches.shape[-1])
    for group in range(groups):
        expected = (patches[group] * energy[:, group]) @ patches[group].T / len(rows)
        assert torch.allclose(found.inputs[group], expected, rtol=1e-4, atol=1e-5)


def test_inputs_that_are_written_over_later_count_as_they_were():
    class Forgetful(Chain):
        def forward(self, x):
            x = x.clone()
            y = self.first(x)
            x.zero_()
            return self.second(y.tanh())

    first, second, x = nn.Linear(3, 4), nn.Linear(4, 2), torch.randn(1, 5, 3)
    found = [moments_of(model, {"first": first}, [x]) for model in (Chain(first, second), Forgetful(first, second))]
    assert torch.equal(found[0]["first"].inputs, found[1]["first"].inputs)


def test_an_output_that_nothing_sees_has_moments_of_zero_and_is_rounded_to_nearest():
    first, second, unused = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(3, 5)
    found = moments_of(Chain(first, second, unused), {"first": first, "unused": unused}, [torch.randn(1, 5, 3)])
    assert not found["unused"].inputs.any() and found["first"].inputs.any()
    codes = rounded(found["unused"], (unused.weight.detach(), None))[0]
    assert torch.equal(codes.float(), quantize(unused.weight.detach()).float())


def test_what_is_not_finite_is_left_out_or_said():
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    x = torch.randn(1, 5, 3)
    alone = moments_of(Chain(first, second), {"first": first}, [x])["first"]
    both = moments_of(Chain(first, second), {"first": first}, [x, x * float("nan")])["first"]
    assert torch.equal(alone.inputs, both.inputs) and torch.equal(alone.outputs[0], both.outputs[0])
    with pytest.raises(HSWQError, match="nothing finite was seen of first"):
        moments_of(Chain(first, second), {"first": first}, [x * float("inf")])


def test_of_a_real_model_fused_rows_have_parts_and_checkpointing_changes_nothing(tmp_path):
    checkpoint = Checkpoint(tiny.checkpoint(tmp_path))
    model, calls = load_model(checkpoint, torch.float32), tiny.calibration(checkpoint).calls
    keys = [key for key in checkpoint.layers if checkpoint.why_never_quantized(key) is None]
    layers = layers_of(checkpoint, model, keys)
    fused = next(key for key in keys if key.endswith("layers.0.attention.qkv.weight"))
    assert [rows.count for rows in layers[fused].rows] == [96, 96, 96]
    assert layers[fused].moment_bytes(outputs=True) == 4 * (4 * 96 * 96 + RoundingSettings().tokens * 96)
    with BlockReplays.open(model, calls, "cpu", tmp_path) as replays:
        found = second_moments(replays, layers, outputs=True)
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(_module, _inputs, output):
            output.requires_grad_().retain_grad()
            seen[name] = output

        return hook

    plain = load_model(checkpoint, torch.float32).requires_grad_(False)
    for name in ("to_q", "to_k", "to_v"):
        plain.layers[0].attention.get_submodule(name).register_forward_hook(keep(name))
    probe = torch.Generator().manual_seed(0)
    ends = [(end, torch.randn(end.shape, generator=probe)) for end in calls[0].replay(plain, derivable=True)]
    sum((end * v).sum() for end, v in ends).backward()
    for name, outputs in zip(("to_q", "to_k", "to_v"), found[fused].outputs, strict=True):
        g = seen[name].grad.flatten(0, -2)
        expected = g.T @ g  # moments matter up to a factor
        assert torch.allclose(outputs / outputs.trace(), expected / expected.trace(), rtol=1e-2, atol=1e-4), name


def test_rows_beyond_what_fits_together_are_cut(tmp_path):
    checkpoint = Checkpoint(tiny.checkpoint(tmp_path))
    key = next(key for key in checkpoint.layers if key.endswith("layers.0.attention.qkv.weight"))
    rows = layers_of(checkpoint, checkpoint.empty_model(constants=False), [key], together=40)[key].rows
    assert [(r.start, r.count) for r in rows] == [(0, 40), (40, 40), (80, 16)] * 3


@pytest.mark.parametrize("outputs", [False, True], ids=["gptq", "kfac"])
def test_what_rounding_works_with_is_what_was_foretold(outputs):
    module = nn.Linear(2048, 256, bias=False).requires_grad_(False)
    layer = Layer((Rows(module, 0, 0, 256),))
    x, g = torch.randn(4096, 2048), torch.randn(4096, 256)
    moments = Moments((x.T @ x).unsqueeze(0), ((0, 256),), (g.T @ g,) if outputs else None)
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back, and not used again unseen
    before = psutil.Process().memory_info().rss
    with PeakMemory(torch.device("cpu")) as peak:
        rounded(moments, (module.weight, None))
    foretold = working_bytes(layer, outputs, forms=1)
    assert 0.3 * foretold < peak.bytes - before < 1.3 * foretold


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_finds_the_same_moments(tmp_path):
    checkpoint = Checkpoint(tiny.checkpoint(tmp_path))
    keys = [key for key in checkpoint.layers if checkpoint.why_never_quantized(key) is None]
    calls, found = tiny.calibration(checkpoint).calls, {}
    for device in ("cpu", "cuda"):
        model = load_model(checkpoint, torch.float32).to(device)
        with BlockReplays.open(model, calls, device, tmp_path) as replays:
            found[device] = second_moments(replays, layers_of(checkpoint, model, keys), outputs=True)
    for key in keys:
        cpu, cuda = found["cpu"][key], found["cuda"][key]
        for here, there in ((cpu.inputs, cuda.inputs), *zip(cpu.outputs, cuda.outputs, strict=True)):
            assert torch.allclose(here, there.cpu(), rtol=1e-2, atol=1e-3 * here.abs().max().item())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_as_good():
    (weight, inputs), outputs = case(0), outputs_of(0)
    cpu = error(weight, both_ways(weight, inputs, outputs), None, inputs, outputs)
    found = both_ways(weight.cuda(), inputs.cuda(), outputs.cuda())
    assert error(weight, found.cpu(), None, inputs, outputs) == pytest.approx(cpu, rel=0.1)
