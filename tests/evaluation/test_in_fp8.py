"""Files measured with exact products, and as ComfyUI multiplies them in FP8."""

from dataclasses import replace

import pytest

from hswq_hub.evaluation import plots
from hswq_hub.evaluation.evaluate import evaluate
from hswq_hub.evaluation.report import headings, table
from hswq_hub.evaluation.results import ORIGINAL, Evaluation
from hswq_hub.evaluation.verdict import multiplied
from hswq_hub.quantization.plan import LINEAR, Plan, plan_naive
from hswq_hub.quantization.writer import write_quantized
from hswq_hub.settings import EvaluationSettings
from hswq_hub.sources.find import resolve

SOURCE = resolve("demo")


def written(plan: Plan, path):
    write_quantized(SOURCE.checkpoint, plan, path, source_sha256="0" * 64)
    return path


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_naive(SOURCE.checkpoint)


@pytest.fixture(scope="module")
def evaluation(plan, tmp_path_factory) -> Evaluation:
    folder = tmp_path_factory.mktemp("files")

    def marked(**how) -> Plan:
        return replace(plan, decisions=tuple(replace(d, **how) if linear(d) else d for d in plan.decisions))

    files = {
        "as it likes": written(plan, folder / "naive.safetensors"),
        "exact": written(marked(exact=True), folder / "exact.safetensors"),
        "scaled": written(marked(input_scale=16.0), folder / "scaled.safetensors"),
    }
    return evaluate(SOURCE, files, EvaluationSettings(pairs=2, steps=2, device="cpu", dtype="float32"))


def linear(decision) -> bool:
    return decision.quantized and decision.kind == LINEAR


def test_only_what_the_file_allows_is_multiplied_in_fp8(evaluation, plan):
    likes, exact, scaled = (evaluation.variant(name) for name in ("as it likes", "exact", "scaled"))
    assert likes.rounded_layers == scaled.rounded_layers == sum(map(linear, plan.decisions))
    assert exact.rounded_layers == 0 and exact.multiplied is None and evaluation.variant(ORIGINAL).multiplied is None
    for one, least in ((likes, 2), (scaled, 1.5)):
        assert [(p.prompt, p.seed) for p in one.rounded_pairs] == [(p.prompt, p.seed) for p in one.pairs]
        assert one.multiplied.latent_mse_mean > least * one.latent_mse_mean
    errors = [[pair.latent_mse for pair in one.pairs] for one in (likes, exact, scaled)]
    assert errors[0] == errors[1] == errors[2], "the weights are the same, and so are exact products"
    assert scaled.multiplied.latent_mse_mean < likes.multiplied.latent_mse_mean, "its inputs reach beyond 448"


def test_figures_are_saved_and_shown(evaluation, tmp_path):
    evaluation.save(tmp_path / "metrics.json")
    assert Evaluation.load(tmp_path / "metrics.json") == evaluation
    labels = [row[0] for row in table(evaluation)]
    assert labels == [
        "original",
        "original in BF16 instead of FP32",
        "as it likes",
        "as it likes, multiplied in FP8",
        "exact",
        "scaled",
        "scaled, multiplied in FP8",
    ]
    assert all(len(row) == len(headings(evaluation)) for row in table(evaluation))
    first, second = multiplied(evaluation)
    assert (first.label, second.label) == ("as it likes", "scaled")
    one = evaluation.variant("scaled")
    assert second.difference == one.multiplied.ssim_mean - one.ssim_mean < 0
    assert second.latent_ratio == one.multiplied.latent_mse_mean / one.latent_mse_mean


def test_the_curve_ends_where_all_layers_are(plan):
    """Ten layers with as much work each; the dot is where five are in FP8."""
    shown = [d for d in plan.decisions if linear(d)][:10]
    decisions = [
        replace(d, error=1.0, input_error=float(i), work=0.1, input_scale=1.0 if i < 5 else None)
        for i, d in enumerate(shown)
    ]
    (axes,) = plots.arithmetic([replace(plan, decisions=tuple(decisions))], {"V1": 2.5}).axes
    (curve,) = axes.lines
    assert curve.get_xdata()[-1] == pytest.approx(100) and curve.get_ydata()[-1] == pytest.approx(1 + 45 / 10)
    dot, cross = (collection.get_offsets()[0] for collection in axes.collections)
    assert list(dot) == pytest.approx([50, 1 + 10 / 10]) and list(cross) == pytest.approx([50, 2.5])
