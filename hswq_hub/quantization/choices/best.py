"""One file in which each linear layer has the number format that costs the output least.

An FP8 and an INT8 weight take a byte a value. INT8 has the finer steps where the weights of a row, rotated, are of one
size; FP8 where a few are much larger than the others even then. What is rounded and measured for V2 and for INT8
decides, layer by layer. Convolutions are plain FP8, as in INT8 files.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import HSWQError
from hswq_runtime.formats import Format, Number

from ...settings import Recipe
from ..measure import Errors
from ..plan import Decision, Plan
from ..writer import Codes, codes_of
from .keep import keep
from .products import can_multiply

_MADE_OF = (Format.V2, Format.INT8)


def candidates(formats: Iterable[Format]) -> tuple[Format, ...]:
    """The formats whose weights have to be rounded and measured for files of `formats`, in a fixed order."""
    wanted = set(formats)
    if Format.BEST in wanted:
        wanted |= set(_MADE_OF)
    return tuple(format for format in Format if format in wanted and format is not Format.BEST)


def check_best(formats: Iterable[Format], recipe: Recipe) -> None:
    """Check, before anything is read, that a file that is to have the best number format of each layer can be made.

    Raises:
        HSWQError: the recipe measures no errors to choose by, or its FP8 weights have scales that ComfyUI cannot
            read.
    """
    if Format.BEST not in formats:
        return
    if recipe.keep_by != "error":
        raise HSWQError(
            f"the recipe {recipe.label} measures no errors, by which the best number format of a layer is chosen; "
            "leave it out, or choose --format all"
        )
    if recipe.row_scales:
        raise HSWQError("ComfyUI reads no FP8 weight with a scale a row; leave out --row-scales, or --format best")


def plan_best(
    plans: Mapping[Format, Plan],
    checkpoint: Checkpoint,
    recipe: Recipe,
    errors: Errors,
) -> Plan:
    """The plan whose linear layers are FP8 or INT8, whichever changes the output less, and some of them kept.

    Of a layer that readers multiply with rounded inputs, what that does counts as well. Which these are depends on the
    choice and the choice on them, so it is made twice: as if all were that can be, unless none is to be; then with
    those that were chosen.

    Args:
        plans: of V2 and INT8 at least, which keep nothing by choice.
        errors: of single weights in these formats, and of rounding inputs.

    Raises:
        HSWQError: not even the file with nothing kept is within the budget.
    """
    possible = {key for rows in errors.inputs.values() for key in rows} if recipe.speed != 0 else set()
    chosen = _kept(plans, checkpoint, recipe, errors, possible)
    return _kept(plans, checkpoint, recipe, errors, {d.key for d in chosen.quantized if d.rounds_input})


def _kept(
    plans: Mapping[Format, Plan],
    checkpoint: Checkpoint,
    recipe: Recipe,
    errors: Errors,
    multiplied: Collection[str],
) -> Plan:
    """The choice, if readers multiply the layers with the weights `multiplied` with rounded inputs."""

    def total(format: Format, decision: Decision) -> float:
        error = errors.weights[format][decision.key]
        found = errors.inputs.get(decision.number, {}).get(decision.key)
        if found is None or decision.key not in multiplied or not can_multiply(decision, checkpoint, found):
            return error
        return error + found.error

    decisions, of_weights = [], {}
    for pair in zip(*(plans[format].decisions for format in _MADE_OF), strict=True):
        fp8, int8 = pair
        format = Format.INT8
        if int8.quantized and int8.number is Number.INT8 and total(Format.V2, fp8) < total(Format.INT8, int8):
            format = Format.V2
        decisions.append(pair[_MADE_OF.index(format)])
        if int8.quantized:
            of_weights[int8.key] = errors.weights[format][int8.key]
    mixed = replace(plans[Format.INT8], format=Format.BEST, decisions=tuple(decisions))
    return keep(mixed, checkpoint, recipe, of_weights, errors.inputs)


def codes_of_best(
    checkpoint: Checkpoint, rounded: Mapping[Format, Path | None], device: torch.device | str = "cpu"
) -> Codes:
    """A function from a decision of :func:`plan_best` to its weight's codes and scale.

    Args:
        rounded: by format, see :func:`..writer.codes_of`.
        device: where to round to nearest.
    """
    made = {format: codes_of(checkpoint, format, rounded[format], device) for format in _MADE_OF}

    def codes(decision: Decision) -> tuple[torch.Tensor, torch.Tensor]:
        scaled = decision.number is Number.FP8 and not decision.unscaled
        return made[Format.V2 if scaled else Format.INT8](decision)

    return codes
