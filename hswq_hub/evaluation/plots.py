"""Plots of a quantization as matplotlib figures. Nothing is measured here.

matplotlib is imported when something is drawn; no window is opened.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.formats import Format
from hswq_runtime.layers.fp8 import grid

from ..calibration.calibrate import Calibration
from ..quantization.choices.keep import keep
from ..quantization.fold import moved
from ..quantization.plan import Decision, Plan, unread_plan
from ..quantization.writer import planned_bytes
from ..settings import recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SENSITIVITY, WEIGHTS, SIZES = "sensitivity.png", "weights.png", "error-against-size.png"
ARITHMETIC = "error-against-arithmetic.png"
_LEAST_WORK = 1e-3
"""Layers that do less, such as those with one row of input, are not drawn: they are never multiplied in FP8 or INT8."""
_KEPT, _FP8, _LINE = "#c44e52", "#4c72b0", "#55a868"
_CURVES = (_FP8, _LINE, _KEPT, "#8172b3")
_WORST = 4

Curve = Sequence[tuple[float, float]]
"""Points: a share of the original's size, and an error."""


def save(figure: "Figure", path: Path) -> Path:
    """Write `figure` as a PNG whose bytes depend on nothing but what it shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path


def draw_plan(checkpoint: Checkpoint, plan: Plan, file: Path) -> list[Path]:
    """Sensitivity and weights of one quantized file, and if errors were measured what keeping more would give, drawn
    beside it; returns the paths."""
    drawn = [save(sensitivity(plan), file.with_name(f"{file.stem}-{SENSITIVITY}"))]
    if plan.quantized:
        drawn.append(save(weights(checkpoint, plan), file.with_name(f"{file.stem}-{WEIGHTS}")))
    if any(d.error is not None for d in plan.decisions):
        drawn.append(save(keeping(checkpoint, plan), file.with_name(f"{file.stem}-{SIZES}")))
    return drawn


def draw_calibration(checkpoint: Checkpoint, calibration: Calibration, file: Path) -> Path:
    """Sensitivity as calibration found it, drawn beside its file, with what the published method would keep."""
    published = recipe("hswq")
    plan = keep(unread_plan(checkpoint, Format.V1, published, calibration), checkpoint, published)
    figure = sensitivity(plan, "red: what the method as published keeps in full precision")
    return save(figure, file.with_name(f"{file.stem}-{SENSITIVITY}"))


def by_sensitivity(plan: Plan) -> tuple[list[tuple[Decision, float]], str]:
    """Every layer that can be FP8, the most sensitive first, with a figure; and what that figure is.

    It is the measured error where there is one, otherwise the output variance.
    """
    shown = [d for d in plan.decisions if not d.never]
    measured = all(d.error is not None for d in shown)
    found = ((d, d.error if measured else d.sensitivity) for d in shown)
    ranked = [(d, value) for d, value in found if value is not None]
    ranked.sort(key=lambda pair: pair[1], reverse=True)
    return (
        ranked,
        "squared error of the model's output by this layer alone" if measured else "variance of the layer's output",
    )


def sensitivity(plan: Plan, title: str | None = None) -> "Figure":
    """:func:`by_sensitivity` as bars, those of kept layers in another colour."""
    shown, meaning = by_sensitivity(plan)
    figure, axes = _axes(7, 1.2 + 0.16 * len(shown))
    places = range(len(shown))
    axes.barh(places, [value for _, value in shown], color=[_FP8 if d.quantized else _KEPT for d, _ in shown])
    axes.set_yticks(places, [d.layer for d, _ in shown], fontsize=6)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(meaning)
    axes.set_title(title or f"{plan.format.label}: red layers stay in full precision", fontsize=9)
    return figure


def weights(checkpoint: Checkpoint, plan: Plan) -> "Figure":
    """How the weights of the worst quantized layers lie on the FP8 grid: in V1 as they are, in V2 scaled."""
    worst = _worst(plan)
    figure, rows = _rows_of_axes(7, 1.6 * len(worst) + 0.4, len(worst))
    values = grid()
    values = values[values > 0]
    for axes, decision in zip(rows, worst, strict=True):
        weight = moved(checkpoint.tensor(decision.key).float(), decision.fold)
        magnitude = (weight / decision.scale_tensor(weight)).abs().flatten()
        magnitude = magnitude[magnitude > 0]
        edges = torch.logspace(-12, 9, 127, base=2)
        counts = torch.histogram(magnitude.clamp(edges[0], edges[-1]), edges).hist
        axes.stairs((counts / counts.sum()).tolist(), edges.tolist(), fill=True, color=_FP8, alpha=0.7)
        axes.vlines(values.tolist(), 0, 0.1, transform=axes.get_xaxis_transform(), color=_KEPT, linewidth=0.5)
        axes.axvline(torch.finfo(torch.float8_e4m3fn).smallest_normal, color=_LINE, linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_yticks([])
        axes.set_title(decision.layer, fontsize=7, loc="left")
    rows[-1].set_xlabel("|w| on the grid (red: its values; left of the green line their distance no longer shrinks)")
    return figure


def error_against_size(
    points: Mapping[str, tuple[float, float]],
    floor: tuple[str, float] | None = None,
    curves: Mapping[str, Curve] = MappingProxyType({}),
) -> "Figure":
    """Label -> share of the original's size, latent MSE; both lower is better.

    floor: what the noise floor is called, and its latent MSE, drawn as a line. curves: by label, what can be expected
    of other budgets, see :func:`curve`; each is drawn through the point of its file, where the error is measured.
    """
    figure, axes = _axes(8, 5)
    for (label, expected), colour in zip(curves.items(), _CURVES, strict=False):
        sizes, errors = zip(*expected, strict=True)
        measured = [points[label][1] * error for error in errors]
        axes.plot([100 * size for size in sizes], measured, color=colour, linewidth=1, label=f"{label}, expected")
    if curves:
        axes.legend(frameon=False, fontsize=6)
    for number, (label, (size, error)) in enumerate(points.items()):
        axes.scatter(100 * size, error, s=18, color=_FP8)
        above = 4 if number % 2 else -8
        axes.annotate(label, (100 * size, error), fontsize=6, xytext=(4, above), textcoords="offset points")
    if floor is not None:
        label, error = floor
        axes.axhline(error, color=_LINE, linewidth=1, linestyle="--")
        axes.annotate(label, (0.01, error), fontsize=6, xycoords=("axes fraction", "data"), va="bottom")
    axes.set_yscale("log")
    axes.margins(x=0.25)
    axes.set_xlabel("size of the file, % of the original")
    axes.set_ylabel("latent MSE against the original")
    return figure


def curve(checkpoint: Checkpoint, plan: Plan) -> Curve:
    """What can be expected of other budgets, over the error of this plan's file; nothing, if no error was measured or
    none is left."""
    left = _left(plan)
    return [(size, error / left) for size, error in _expected(checkpoint, plan)] if left else []


def _expected(checkpoint: Checkpoint, plan: Plan) -> Curve:
    """The sum of the errors that quantized weights make alone, as more are kept, those with the largest error per byte
    first: errors of single weights very nearly add up."""
    error = {d.key: d.error for d in plan.decisions if d.error is not None}
    cost = {key: checkpoint.tensors[key].nbytes - checkpoint.tensors[key].values for key in error}
    whole = sum(info.nbytes for info in checkpoint.tensors.values())
    size = planned_bytes(checkpoint, plan) - sum(cost[d.key] for d in plan.kept if d.key in error)
    rest = sum(error.values())
    found = [(size / whole, rest)]
    for key in sorted(error, key=lambda key: error[key] / cost[key], reverse=True)[:-1]:
        size, rest = size + cost[key], rest - error[key]
        found.append((size / whole, rest))
    return found


def _left(plan: Plan) -> float:
    return sum(d.error or 0.0 for d in plan.quantized)


def keeping(checkpoint: Checkpoint, plan: Plan) -> "Figure":
    """Expected error against file size as more weights are kept, and where `plan` stopped. The expected error is the
    sum of the errors that the quantized weights make alone."""
    whole = sum(info.nbytes for info in checkpoint.tensors.values())
    sizes, errors = zip(*_expected(checkpoint, plan), strict=True)
    figure, axes = _axes(7, 4)
    axes.plot([100 * size for size in sizes], errors, color=_FP8, linewidth=1)
    axes.scatter(100 * planned_bytes(checkpoint, plan) / whole, _left(plan), color=_KEPT, s=18, zorder=2)
    axes.set_yscale("log")
    axes.set_xlabel("size of the file, % of the original")
    axes.set_ylabel("sum of the errors of single layers")
    axes.set_title(f"{plan.format.label}: what keeping more layers would give; red: this file", fontsize=9)
    return figure


def arithmetic(plans: Sequence[Plan], measured: Mapping[str, float]) -> "Figure":
    """Expected error over that with exact products, against the share of the linear layers' work that is in FP8, or
    INT8, as more layers are, those with the least error for their work first. A dot is where a plan stopped; a cross is
    what was `measured` there, by label. Of a plan without errors nothing is drawn."""
    figure, axes = _axes(7, 4)
    for plan, colour in zip(plans, (_FP8, _LINE, _KEPT), strict=False):
        exact = sum(d.error or 0.0 for d in plan.quantized)
        if not exact:
            continue
        ranked = _by_cost_of_rounding(plan)
        shares, errors = [0.0], [1.0]
        for decision in ranked:
            shares.append(shares[-1] + 100 * (decision.work or 0.0))
            errors.append(errors[-1] + (decision.input_error or 0.0) / exact)
        axes.plot(shares, errors, color=colour, linewidth=1, label=plan.format.label)
        chosen = [d for d in ranked if d.rounds_input]
        here = 100 * sum(d.work or 0.0 for d in chosen)
        axes.scatter(here, 1 + sum(d.input_error or 0.0 for d in chosen) / exact, color=colour, s=24, zorder=2)
        if plan.format.label in measured:
            axes.scatter(here, measured[plan.format.label], color=colour, marker="x", s=36, zorder=2)
    axes.set_yscale("log")
    axes.set_xlabel("share of the linear layers' work in FP8 or INT8, %")
    axes.set_ylabel("error over that with exact products")
    axes.set_title(
        "What more arithmetic with rounded inputs would cost; dots: these files; crosses: measured", fontsize=9
    )
    axes.legend(frameon=False, fontsize=7)
    return figure


def _by_cost_of_rounding(plan: Plan) -> list[Decision]:
    """The quantized layers whose rounded inputs were measured, those with the least error for their work first."""
    known = [d for d in plan.quantized if d.input_error is not None and (d.work or 0.0) > _LEAST_WORK]
    return sorted(known, key=lambda d: (d.input_error or 0.0) / (d.work or 1.0))


def _worst(plan: Plan) -> Sequence[Decision]:
    def how_bad(decision: Decision) -> float:
        return decision.error if decision.error is not None else decision.sensitivity or 0.0

    return sorted(plan.quantized, key=how_bad, reverse=True)[:_WORST]


def _axes(width: float, height: float) -> tuple["Figure", "Axes"]:
    figure, (axes,) = _rows_of_axes(width, height, 1)
    return figure, axes


def _rows_of_axes(width: float, height: float, rows: int) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    made: list[Axes] = list(figure.subplots(rows, squeeze=False)[:, 0])
    for axes in made:
        axes.tick_params(labelsize=6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, made
