"""The noise floor: the original really computed in another dtype, and what it lets a card say."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hswq_hub.cards.card import Card
from hswq_hub.evaluation.evaluate import evaluate
from hswq_hub.evaluation.noise import RoundedProducts, computing_in, other_dtype
from hswq_hub.evaluation.report import floor_label, headings, table
from hswq_hub.evaluation.results import Evaluation, NoiseFloor
from hswq_hub.evaluation.verdict import Noise, against_noise
from hswq_hub.settings import EvaluationSettings, PublishSettings
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.memory import memory_of
from hswq_hub.workflow.publish import PublishPlan
from hswq_runtime.loading import load_model

SHOWN = Path(__file__).parents[2] / "model_cards/demo-hswq"
SETTINGS = EvaluationSettings(pairs=2, steps=2, device="cpu", dtype="float32", perceptual=())
SOURCE = resolve("demo")


def test_it_is_the_original_in_the_other_dtype():
    """Much further from the reference than float16 would be, and less far than a wrong picture; and it is not there if
    nobody asked."""
    floor = evaluate(SOURCE, {}, SETTINGS).noise_floor
    assert (floor.dtype, floor.instead_of, floor.coarser) == ("bfloat16", "float32", "bfloat16")
    assert 1e-7 < floor.latent_mse_mean < 1e-3 and 0.99 < floor.ssim_worst < 1
    back = evaluate(SOURCE, {}, replace(SETTINGS, dtype="bfloat16", pairs=1, steps=1)).noise_floor
    assert (back.dtype, back.instead_of, back.coarser) == ("float32", "bfloat16", "bfloat16")
    assert 0 < back.latent_mse_mean < 1e-3
    assert evaluate(SOURCE, {}, replace(SETTINGS, noise_floor=False, pairs=1, steps=1)).noise_floor is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_denoiser_computes_in_it_and_the_pipeline_does_not_see_it(dtype):
    class Denoiser(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 8, dtype=dtype)

        def forward(self, x, timestep, others):
            seen.append((x.dtype, timestep.dtype, others[0].dtype, others[1].dtype))
            return (self.layer(x), [self.layer(others[0])])

    seen, outside = [], other_dtype(dtype)
    denoiser, x = Denoiser(), torch.randn(2, 8, dtype=outside)
    arguments = x, torch.tensor([958.3]), [x, torch.tensor([[1, 2]])]
    before = torch.get_float32_matmul_precision()
    with torch.no_grad(), computing_in(denoiser, dtype, outside):
        made, (other,) = denoiser(*arguments)
        exact = F.linear(x.float(), denoiser.layer.weight.float(), denoiser.layer.bias.float())
    assert seen == [(dtype, torch.float32, dtype, torch.int64)], "timesteps are not rounded"
    assert made.dtype == other.dtype == outside
    assert torch.allclose(made.float(), exact, atol=0.05) and not torch.equal(made.float(), exact)
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(RuntimeError):
        denoiser(*arguments)


def test_rounded_products_are_sums_in_float32_rounded_once():
    rng = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=rng).bfloat16() for shape in ((5, 64), (7, 64), (7,)))
    with RoundedProducts():
        made = F.linear(x, weight, bias=bias)
        single = F.linear(x.float(), weight.float())
    assert torch.equal(made, F.linear(x.double(), weight.double(), bias.double()).float().bfloat16())
    assert single.dtype == torch.float32


def test_a_denoiser_in_bfloat16_is_within_its_rounding_of_torchs_own_products():
    """The same model, called as it is and with products that are summed in float32."""
    model = load_model(SOURCE.checkpoint, torch.bfloat16)
    layer = next(m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.in_features > 64)
    x = torch.randn(4, layer.in_features).bfloat16()
    with torch.no_grad(), RoundedProducts():
        made = layer(x)
    with torch.no_grad():
        assert torch.allclose(made.float(), layer(x).float(), rtol=2**-7, atol=1e-3)


def shown_with(factors: list[float]) -> Evaluation:
    """The demo model's evaluation with 16 errors of V2 that are so many times the noise floor's."""
    evaluation = Card.from_folder(SHOWN).evaluation
    naive, v1, v2, _ = evaluation.variants[1:]
    floor = [replace(pair, latent_mse=2e-5) for pair in v2.pairs]
    errors = [replace(pair, latent_mse=2e-5 * factor) for pair, factor in zip(v2.pairs, factors, strict=True)]
    variants = [evaluation.variants[0], naive, v1, replace(v2, pairs=errors, rounded_pairs=[])]
    return replace(evaluation, variants=variants, noise_floor=NoiseFloor(floor, "bfloat16", "float32"))


SPREAD = [0.8, 1.2] * 8


@pytest.mark.parametrize(
    ("shift", "noise", "said"),
    [
        (-0.4, Noise.BELOW, "V2 is closer to the original than computing the original in BF16 is"),
        (-0.05, Noise.WITHIN, "V2 is indistinguishable from computing the original in BF16"),
        (0.0, Noise.WITHIN, "V2 is indistinguishable from computing the original in BF16"),
        (0.08, Noise.WITHIN, "V2 is indistinguishable from computing the original in BF16"),
        (0.4, Noise.ABOVE, "V2 is further from the original than computing the original in BF16 is"),
    ],
)
def test_the_verdict_is_that_of_the_interval_and_of_nothing_else(shift, noise, said):
    evaluation = shown_with([factor + shift for factor in SPREAD])
    found = next(n for n in against_noise(evaluation) if n.file == "V2")
    assert found.noise is noise and (noise is Noise.WITHIN) == found.difference.holds(0)
    assert found.ratio == pytest.approx(1 + shift) and found.ratio_interval.holds(1 + shift)
    card = replace(Card.from_folder(SHOWN), evaluation=evaluation)
    (line,) = [line for line in card.verdict_lines if line.startswith("V2 is ") and "computing the original" in line]
    assert line.startswith(said) and line in card.render()


def test_the_verdict_flips_where_the_interval_leaves_zero():
    """Shifted by and by, V2 is told apart from the first interval on that excludes 0, and never goes back."""
    found = [against_noise(shown_with([f + shift / 100 for f in SPREAD])) for shift in range(0, 40, 2)]
    noises = [next(n for n in of_files if n.file == "V2") for of_files in found]
    assert [n.noise is Noise.ABOVE for n in noises] == [n.difference.low > 0 for n in noises]
    turns = [one.noise is not other.noise for one, other in pairwise(noises)]
    assert sum(turns) == 1


def test_without_a_floor_or_with_few_pairs_nothing_is_said():
    evaluation = shown_with(SPREAD)
    assert against_noise(replace(evaluation, noise_floor=None)) == []
    few = [replace(v, pairs=v.pairs[:5], rounded_pairs=v.rounded_pairs[:5]) for v in evaluation.variants]
    floor = replace(evaluation.noise_floor, pairs=evaluation.noise_floor.pairs[:5])
    short = replace(evaluation, variants=few, noise_floor=floor)
    assert against_noise(short) == []
    card = replace(Card.from_folder(SHOWN), evaluation=short)
    said = " ".join(card.verdict_lines)
    assert (
        "computing the original" not in said
        and "5 pairs decide nothing" in said
        and said in " ".join(line.removeprefix("- ") for line in card.render().splitlines() if line.startswith("- "))
    )


def test_its_row_is_in_the_table_and_its_figures_are_saved(tmp_path):
    evaluation = shown_with(SPREAD)
    rows = {row[0]: dict(zip(headings(evaluation), row, strict=True)) for row in table(evaluation)}
    label = floor_label(evaluation.noise_floor)
    assert label == "original in BF16 instead of FP32" and rows[label]["latent MSE"] == "2.00e-05"
    assert (rows["original"]["× noise floor"], rows[label]["× noise floor"]) == ("0", "1")
    assert rows["V2"]["× noise floor"] == "1"
    evaluation.save(tmp_path / "metrics.json")
    assert Evaluation.load(tmp_path / "metrics.json") == evaluation


def test_it_is_foretold_and_in_the_identity():
    def of(**how) -> PublishPlan:
        return PublishPlan.of(SOURCE, PublishSettings(evaluation=EvaluationSettings(pairs=2, **how)))

    for dtype, sets in (("float32", 1), ("bfloat16", 2)):
        plans = [of(dtype=dtype, noise_floor=floor) for floor in (True, False)]
        measured = [next(step for step in plan.steps if step.name == "evaluate") for plan in plans]
        assert measured[0].identity != measured[1].identity
        work, without = (step.work() for step in measured)
        assert work.pictures - without.pictures == 2
        assert work.calls - without.calls == sets * without.calls // 7, (
            "one set of seven more, or what takes as long as two"
        )
        (more,), (less,) = (memory_of(SOURCE, plan.settings) for plan in plans)
        assert (more.least > less.least) == (dtype == "bfloat16")
