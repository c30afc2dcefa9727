"""The plan: for every weight of the denoiser its number format, how it gets there, and why.

The unit is the stored tensor. A fused tensor such as Z-Image's `attention.qkv` is one layer here; its statistics
are put together from those of the diffusers modules that its rows become.

A plan is made in two steps: first every weight that can be FP8 gets its range (:func:`plan_everything`), then some are
kept in full precision after all (`keep.py`). In between the weights may be rounded and the error of each measured.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from types import NoneType
from typing import Any

import torch

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import FormatError
from hswq_runtime.fold import Runs
from hswq_runtime.formats import Format, Number, Reader, layer_of
from hswq_runtime.layers.fp8 import FP8_MAX, fresh_scale
from hswq_runtime.layers.int8 import group_of
from hswq_runtime.scales import LEAST_SCALE

from ..calibration.calibrate import Calibration, LayerStatistics
from ..common.prefetch import prefetched
from ..common.progress import progress
from ..settings import Recipe, SearchSettings
from .fold import check_fold, find_moves, moved
from .search import Histogram, largest, search_amax, weighted_histogram, weighted_values

KEPT, FP8, INT8 = "kept", "fp8_e4m3fn", "int8"
_NUMBERS = {FP8: Number.FP8, INT8: Number.INT8}
NAIVE = "naive"
LINEAR, CONVOLUTION = torch.nn.Linear.__name__, torch.nn.Conv2d.__name__
"""Kinds of layers."""


@dataclass(frozen=True)
class Decision:
    """What happens to one stored weight.

    number_format: KEPT, FP8 or INT8. rounding: one of `settings.ROUNDINGS`. sensitivity: the layer's output variance.
    error: mean squared change of the denoiser's output when this weight alone is quantized. maximum: max|w|. amax: Δ*,
    the clipping range. scale: the factor of the FP8 values, 1.0 in V1; with row_scales the largest of the rows'
    factors, and of INT8 weights None, since rounding chooses them. group: so many of its inputs are rotated together,
    INT8 only. fold: the powers of two that its rows are multiplied by first, whether it is kept or not, see `fold.py`;
    maximum, amax and scale describe the folded weight. unscaled: the file has scales, but none for this weight. exact:
    readers expand the weight and multiply in full precision. input_scale: they may multiply in FP8, and round the input
    at this scale. Neither: as the published formats have it, and of INT8 in INT8. input_error: mean squared change of
    the denoiser's output when the input of this layer alone is rounded. work: multiplications of this layer as a share
    of those of all linear layers that can be FP8. None: not measured.
    """

    key: str
    layer: str
    kind: str
    number_format: str
    reason: str
    rounding: str | None = None
    sensitivity: float | None = None
    error: float | None = None
    maximum: float | None = None
    amax: float | None = None
    scale: float | None = None
    row_scales: bool = False
    fold: Runs = ()
    unscaled: bool = False
    exact: bool = False
    input_scale: float | None = None
    input_error: float | None = None
    work: float | None = None
    group: int | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Decision":
        """The inverse of one row of :meth:`Plan.as_rows`, after JSON.

        Raises:
            FormatError: a key is unknown or missing, or its value has the wrong type.
        """
        if not isinstance(row, Mapping):
            raise FormatError(f"a decision has to be an object, not {type(row).__name__}")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(map(str, row.keys() - known)):
            raise FormatError(f"a decision has the unknown key {unknown[0]!r}")
        needed = [field.name for field in fields(cls) if field.default is MISSING]
        if missing := [name for name in needed if name not in row]:
            raise FormatError(f"a decision lacks the key {missing[0]!r}")
        for name, value in row.items():
            if not isinstance(value, _ROW_TYPES.get(name, _NUMBER)):
                raise FormatError(f"a decision's {name!r} cannot be {value!r:.40}")
        return cls(**{**row, "fold": _runs(row.get("fold", ()))})

    @property
    def quantized(self) -> bool:
        return self.number_format != KEPT

    @property
    def number(self) -> Number:
        """The number format of a quantized weight."""
        return _NUMBERS[self.number_format]

    @property
    def rounds_input(self) -> bool:
        """Whether it was chosen that readers multiply in the weight's number format."""
        chosen = self.quantized and self.work is not None and not self.exact
        return chosen and (self.number is Number.INT8 or self.input_scale is not None)

    @property
    def never(self) -> bool:
        """Whether it was kept because quantizing is impossible there, not by choice."""
        return not self.quantized and self.reason.startswith(_NEVER)

    def scale_tensor(self, weight: torch.Tensor) -> torch.Tensor:
        """Of an FP8 weight, float32: [1], or a scale for each row of `weight` that broadcasts against it."""
        if not self.row_scales:
            return torch.tensor([self.scale], dtype=torch.float32, device=weight.device)
        return fresh_scale(weight, len(weight)).reshape(-1, *[1] * (weight.ndim - 1))


_NEVER = "never quantized: "
_NUMBER = (int, float, NoneType)
_ROW_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("key", "layer", "kind", "number_format", "reason"), str),
    **dict.fromkeys(("row_scales", "unscaled", "exact"), bool),
    "rounding": (str, NoneType),
    "fold": (list, tuple),
}
"""Types of a row's values in JSON; those not listed are numbers or null."""


def _runs(listed: Sequence[Any]) -> Runs:
    """Runs of a fold as JSON has them, [rows, exponent], as tuples."""
    try:
        return tuple((int(rows), int(exponent)) for rows, exponent in listed)
    except (TypeError, ValueError) as error:
        raise FormatError(f"a decision's 'fold' cannot be {listed!r:.40}") from error


@dataclass(frozen=True)
class Plan:
    """The decisions for every Linear and Conv2d weight, in file order, for a file of format `format`.

    moves: the powers of two of all folded tensors' rows, by key.
    """

    format: Format
    recipe: str
    decisions: tuple[Decision, ...]
    moves: Mapping[str, Runs] = field(default_factory=dict)
    reader: Reader = Reader.HSWQ

    @property
    def kept(self) -> list[Decision]:
        return [d for d in self.decisions if not d.quantized]

    @property
    def quantized(self) -> list[Decision]:
        return [d for d in self.decisions if d.quantized]

    def as_rows(self) -> list[dict[str, Any]]:
        """Plain dictionaries, for JSON."""
        return [asdict(decision) for decision in self.decisions]

    @classmethod
    def from_rows(
        cls,
        format: Format,
        recipe: str,
        rows: Iterable[Mapping[str, Any]],
        moves: Mapping[str, Sequence[Any]] | None = None,
        reader: Reader = Reader.HSWQ,
    ) -> "Plan":
        """The inverse of :meth:`as_rows`, after JSON.

        Raises:
            FormatError: a row or a move is no such thing.
        """
        decisions = tuple(map(Decision.from_row, rows))
        return cls(format, recipe, decisions, {key: _runs(runs) for key, runs in (moves or {}).items()}, reader)


def plan_everything(
    checkpoint: Checkpoint,
    calibration: Calibration,
    formats: Iterable[Format],
    recipe: Recipe,
    device: torch.device | str = "cpu",
) -> dict[Format, Plan]:
    """All that can be quantized is: the range of each FP8 weight is searched, on `device`, and nothing is kept by
    choice.

    Raises:
        FormatError: the calibration is of another model, or a weight is not finite.
        HSWQError: the recipe asks for a fold that is not possible.
    """
    formats = tuple(formats)
    check_fold(checkpoint, formats, recipe)
    found: dict[Format, list[Decision]] = {format: [] for format in formats}
    moves = find_moves(checkpoint) if recipe.fold else {}
    for decision, original in _start(checkpoint, "search"):
        decision = replace(decision, sensitivity=_output_variance(checkpoint, calibration, decision.key))
        histogram = None
        for format in formats:
            fold = moves.get(decision.key, ()) if format is Format.V1 else ()
            if original is None:
                found[format].append(replace(decision, fold=fold))
                continue
            weight = moved(original, fold)
            amax = maximum = largest(weight) if fold or decision.maximum is None else decision.maximum
            described = _format_of(checkpoint, decision, format, recipe)
            if described.number is Number.INT8:
                found[format].append(replace(described, rounding=recipe.rounding, maximum=maximum, amax=maximum))
                continue
            scaled = format.scaled and not described.unscaled
            if recipe.search is not None and not described.row_scales:
                if histogram is None or moves:
                    importance = _importance(checkpoint, calibration, decision.key)
                    histogram = _histogram(weight.to(device), importance, recipe.search)
                amax = search_amax(histogram, scaled, recipe.search)
            found[format].append(
                replace(
                    described,
                    rounding=recipe.rounding,
                    maximum=maximum,
                    amax=amax if scaled else min(amax, FP8_MAX),
                    scale=_scale(amax, short=recipe.chooses_products) if scaled else 1.0,
                    fold=fold,
                )
            )
    return {
        format: Plan(format, recipe.label, tuple(decisions), moves if format is Format.V1 else {}, recipe.reader)
        for format, decisions in found.items()
    }


def _format_of(checkpoint: Checkpoint, decision: Decision, format: Format, recipe: Recipe) -> Decision:
    """The decision with what the format and its reader say of numbers and scales."""
    shape = checkpoint.tensors[decision.key].shape
    if Number.INT8 in format.numbers:
        if decision.kind != LINEAR or len(shape) != 2:  # ComfyUI has no such convolution
            return replace(decision, unscaled=True)
        return replace(decision, number_format=INT8, row_scales=True, group=group_of(shape[1]))
    plain = format.scaled and recipe.reader is Reader.COMFYUI and decision.kind == CONVOLUTION
    return replace(decision, row_scales=recipe.row_scales and format.scaled, unscaled=plain)


def _histogram(weight: torch.Tensor, importance: torch.Tensor, search: SearchSettings) -> Histogram:
    if search.bins is None:
        return weighted_values(weight, importance)
    return weighted_histogram(weight, importance, search.bins)


def plan_naive(checkpoint: Checkpoint) -> Plan:
    """The baseline: a plain cast of every layer that can be FP8 at all. No calibration, nothing kept, no scale."""
    decisions = []
    for decision, weight in _start(checkpoint, NAIVE):
        if weight is not None and decision.maximum is not None:
            amax = min(decision.maximum, FP8_MAX)
            decision = replace(decision, reason="plain cast", rounding="nearest", amax=amax, scale=1.0)
        decisions.append(decision)
    return Plan(Format.V1, NAIVE, tuple(decisions))


def unread_plan(checkpoint: Checkpoint, format: Format, recipe: Recipe, calibration: Calibration | None = None) -> Plan:
    """All that can be FP8 is, as far as that is known without reading a weight: enough for the size of the file, and
    with a calibration for what is kept by variance. Where products are chosen, each is as if it were FP8."""
    decisions = [_format_of(checkpoint, d, format, recipe) if d.quantized else d for d in _undecided(checkpoint)]
    if recipe.chooses_products:
        decisions = [
            replace(d, input_scale=1.0) if d.number_format == FP8 and d.kind == LINEAR else d for d in decisions
        ]
    if calibration is not None:
        decisions = [replace(d, sensitivity=_output_variance(checkpoint, calibration, d.key)) for d in decisions]
    return Plan(format, recipe.label, tuple(decisions), reader=recipe.reader)


def _undecided(checkpoint: Checkpoint) -> Iterator[Decision]:
    """A decision for each weight as far as it needs no choice."""
    for key, kind in checkpoint.layers.items():
        why = checkpoint.why_never_quantized(key)
        number_format, reason = (FP8, "") if why is None else (KEPT, _NEVER + why)
        yield Decision(key, checkpoint.layer(key), kind.__name__, number_format, reason)


def _start(checkpoint: Checkpoint, what: str) -> Iterator[tuple[Decision, torch.Tensor | None]]:
    """A decision for each weight as far as it needs no choice, and the weight if it can be FP8, with its maximum.

    Raises:
        FormatError: a weight holds NaN or infinity, which no FP8 file can stand for.
    """

    def read(decision: Decision) -> tuple[Decision, torch.Tensor | None]:
        if not decision.quantized:
            return decision, None
        weight = checkpoint.tensor(decision.key)
        maximum = largest(weight)
        if not math.isfinite(maximum):
            raise FormatError(f"{decision.key} of {checkpoint.path} holds NaN or infinity; the checkpoint is damaged")
        return replace(decision, maximum=maximum), weight

    undecided = list(_undecided(checkpoint))
    yield from progress(prefetched(undecided, read), total=len(undecided), desc=what, unit="layer")


def _statistics(checkpoint: Checkpoint, calibration: Calibration, key: str) -> list[LayerStatistics]:
    try:
        return [calibration.layers[layer_of(name)] for name in checkpoint.modules[key]]
    except KeyError as error:
        raise FormatError(f"the calibration knows no layer {error}; it was made from another model") from error


def _output_variance(checkpoint: Checkpoint, calibration: Calibration, key: str) -> float:
    """Variance of the outputs of all modules behind `key`, weighted by how many rows each has."""
    rows = [_rows(checkpoint, name) for name in checkpoint.modules[key]]
    statistics = _statistics(checkpoint, calibration, key)
    mean = sum(n * s.output_mean for n, s in zip(rows, statistics, strict=True)) / sum(rows)
    square = sum(n * s.output_square for n, s in zip(rows, statistics, strict=True)) / sum(rows)
    return max(square - mean**2, 0.0)


def _rows(checkpoint: Checkpoint, parameter: str) -> int:
    """First dimension of a diffusers parameter."""
    return sum(piece.stop - piece.start for piece in checkpoint.parameters[parameter])


def _importance(checkpoint: Checkpoint, calibration: Calibration, key: str) -> torch.Tensor:
    """I_c of the input that the modules behind `key` share: their mean, should they be called with different ones."""
    return torch.stack([s.importance for s in _statistics(checkpoint, calibration, key)]).mean(dim=0)


def input_scales(checkpoint: Checkpoint, calibration: Calibration, plan: Plan) -> dict[str, float]:
    """The scale at which the input of each linear layer of `plan` that is not kept is rounded to FP8, by key; of those
    that saw nothing but zeros there is none.

    A power of two, so that dividing by it rounds nothing in any dtype; the smallest at which twice the largest input
    of the calibration is within FP8's range, since others may be larger. Within that range the relative error of a
    value does not depend on the scale.

    Raises:
        FormatError: the calibration is of another model.
    """
    keys = [d.key for d in plan.quantized if d.kind == LINEAR]
    largest = {key: max(s.largest_input for s in _statistics(checkpoint, calibration, key)) for key in keys}
    return {key: max(2.0 ** math.ceil(math.log2(2 * x / FP8_MAX)), LEAST_SCALE) for key, x in largest.items() if x}


def _scale(amax: float, short: bool) -> float:
    """Δ*/448 as the float32 that is stored; 1 for a weight of zeros. short: the next larger one with the eight bits of
    bfloat16, in which ComfyUI takes the product, so that it loses nothing by that."""
    if not amax:
        return 1.0
    scale = torch.tensor(max(amax / FP8_MAX, LEAST_SCALE), dtype=torch.float32)
    if short:
        scale = ((scale.view(torch.int32) + 0xFFFF) & ~0xFFFF).view(torch.float32)
    return scale.item()
