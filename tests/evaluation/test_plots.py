"""Drawings show what the plan says; comparing shows what two files hold."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from support import tiny

from hswq_hub.cli.main import main
from hswq_hub.evaluation import plots
from hswq_hub.evaluation.compare import compare
from hswq_hub.quantization.plan import KEPT, Decision, Plan, plan_naive
from hswq_hub.quantization.writer import write_quantized
from hswq_hub.sources.find import resolve
from hswq_runtime import Checkpoint, Format
from hswq_runtime.errors import FormatError


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Checkpoint:
    return Checkpoint(tiny.checkpoint(tmp_path_factory.mktemp("source")))


def decision(layer, error, kept=False):
    return Decision(f"{layer}.weight", layer, "Linear", KEPT if kept else "fp8_e4m3fn", "rank", error=error)


def test_layers_are_ranked_and_kept_ones_marked():
    plan = Plan(Format.V2, "x", (decision("a", 1e-6), decision("b", 1e-3, kept=True), decision("c", 1e-5)))
    (axes,) = plots.sensitivity(plan).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "c", "a"]
    assert [bar.get_width() for bar in axes.patches] == [1e-3, 1e-5, 1e-6]
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] != colours[1] == colours[2]


def test_weights_are_drawn_on_the_grid(source):
    plan = plan_naive(source)
    figure = plots.weights(source, plan)
    assert len(figure.axes) == 4
    for axes in figure.axes:
        assert sum(axes.patches[0].get_data().values) == pytest.approx(1)
        assert len(axes.collections[0].get_segments()) == 126, "all positive values of the grid"


def test_what_keeping_gives_is_drawn_from_the_errors_of_the_plan(source):
    """Errors 3e-3, 2e-3 and 1e-3 on weights of one size: kept are none, one or two of them, and here the first."""
    all_fp8 = plan_naive(source)
    three = [d for d in all_fp8.quantized if d.layer.endswith(("w1", "w3"))][:3]
    errors = dict(zip([d.key for d in three], (3e-3, 2e-3, 1e-3), strict=True))
    decisions = [replace(d, error=errors.get(d.key)) for d in all_fp8.decisions]
    decisions = [replace(d, number_format=KEPT, scale=None) if d.error == 3e-3 else d for d in decisions]
    (axes,) = plots.keeping(source, replace(all_fp8, decisions=tuple(decisions))).axes
    sizes, left = axes.lines[0].get_data()
    assert left == pytest.approx([6e-3, 3e-3, 1e-3])
    whole = sum(info.nbytes for info in source.tensors.values())
    assert sizes[2] - sizes[1] == pytest.approx(100 * source.tensors[three[1].key].values / whole)
    assert axes.collections[0].get_offsets().tolist() == [pytest.approx([sizes[1], left[1]])]


def test_what_other_budgets_give_goes_through_the_measured_point(source):
    """Errors 3e-3, 2e-3 and 1e-3, of which the file left 3e-3 and was measured at 6e-3: twice as much."""
    all_fp8 = plan_naive(source)
    assert plots.curve(source, all_fp8) == [], "nothing was measured"
    three = [d for d in all_fp8.quantized if d.layer.endswith(("w1", "w3"))][:3]
    errors = dict(zip([d.key for d in three], (3e-3, 2e-3, 1e-3), strict=True))
    decisions = [replace(d, error=errors.get(d.key)) for d in all_fp8.decisions]
    decisions = [replace(d, number_format=KEPT, scale=None) if d.error == 3e-3 else d for d in decisions]
    found = plots.curve(source, replace(all_fp8, decisions=tuple(decisions)))
    here = found[1][0]
    (axes,) = plots.error_against_size({"V1": (here, 6e-3)}, curves={"V1": found}).axes
    sizes, expected = axes.lines[0].get_data()
    assert expected == pytest.approx([12e-3, 6e-3, 2e-3]) and sizes[1] == pytest.approx(100 * here)


def test_the_noise_floor_is_a_line_under_the_files():
    (axes,) = plots.error_against_size({"V1": (0.5, 1e-3)}, ("original in BF16", 2e-4)).axes
    (line,) = axes.lines
    assert list(line.get_ydata()) == [2e-4, 2e-4] and "original in BF16" in [text.get_text() for text in axes.texts]
    (axes,) = plots.error_against_size({"V1": (0.5, 1e-3)}).axes
    assert not axes.lines


def test_the_same_drawing_has_the_same_bytes(tmp_path):
    points = {"V1": (0.56, 1e-4), "V2": (0.56, 3e-5)}
    one, two = (plots.save(plots.error_against_size(points), tmp_path / name) for name in ("1.png", "2.png"))
    assert one.read_bytes() == two.read_bytes()
    assert Image.open(one).size[0] > 500


def test_two_files_are_compared_tensor_by_tensor(source, tmp_path):
    plan = plan_naive(source)
    write_quantized(source, plan, tmp_path / "fp8.safetensors", source_sha256="0" * 64)
    found = {c.layer: c for c in compare(source, Checkpoint(tmp_path / "fp8.safetensors"))}
    for d in plan.decisions:
        weight = source.tensor(d.key).float()
        rounded = weight.to(torch.float8_e4m3fn).float() if d.quantized else weight
        assert found[d.layer].difference == pytest.approx(((weight - rounded).norm() / weight.norm()).item(), abs=1e-7)
        assert found[d.layer].codes is None
    same = compare(*[Checkpoint(tmp_path / "fp8.safetensors")] * 2)
    assert {c.difference for c in same} == {0.0} and {c.codes for c in same} == {0.0, None}
    result = CliRunner().invoke(main, ["compare", str(source.path), str(tmp_path / "fp8.safetensors")])
    assert result.exit_code == 0 and "F8_E4M3" in result.output


def test_files_of_different_models_are_not_compared(source, tmp_path):
    with pytest.raises(FormatError, match="not the same model"):
        compare(source, resolve("demo").checkpoint)
