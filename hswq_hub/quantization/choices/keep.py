"""Decides which weights stay in full precision although they could be quantized.

The errors of single weights very nearly add up: their sum over all quantized weights predicts the error of the whole
file. So a byte is best spent on the weight with the largest error per byte.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import HSWQError
from hswq_runtime.formats import Format, Number

from ...settings import Recipe
from ..plan import KEPT, Decision, Plan, unread_plan
from ..samples.inputs import InputRounding
from ..writer import planned_bytes
from .products import with_products

_BYTES_16_BIT = 2
_DIGITS = 10_000
"""A budget is given in ten-thousandths."""


def keep(
    plan: Plan,
    checkpoint: Checkpoint,
    recipe: Recipe,
    errors: Mapping[str, float] | None = None,
    inputs: Mapping[Number, Mapping[str, InputRounding]] | None = None,
) -> Plan:
    """`plan`, which keeps nothing by choice, with some of its weights kept in full precision.

    Weights are ranked by output variance, as published, or by error per byte that keeping costs. With a keep ratio the
    first `round(keep_ratio · n)` of n layers are kept; with a budget each weight that still fits, in that order.

    A recipe that keeps by error also says of each linear layer that is left how readers multiply, see
    :func:`.products.with_products`.

    Args:
        errors: by key, for a recipe that keeps by error.
        inputs: by what they are rounded to and by key, of the layers whose inputs can be rounded.

    Raises:
        HSWQError: not even the file with nothing kept is within the budget.
    """
    cost = _cost(plan, checkpoint)
    if recipe.keep_by == "error":
        if errors is None:
            raise ValueError("a recipe that keeps by error needs the errors")
        measure, worth = "error per byte", {key: errors[key] / cost[key] for key in cost}
    else:
        measure, worth = "sensitivity", {d.key: d.sensitivity or 0.0 for d in plan.quantized}
    ranked = sorted(worth, key=lambda key: worth[key], reverse=True)
    if recipe.budget is None:
        share = keep_ratio(checkpoint, recipe)
        kept, limit = set(ranked[: round(share * len(ranked))]), f"the keep ratio {share:g}"
    else:
        room = _room(plan, checkpoint, recipe)
        kept, limit = _what_fits(ranked, cost, room.bytes), f"the budget {room.budget:g}"
    rank = {key: place for place, key in enumerate(ranked, start=1)}

    def decide(decision: Decision) -> Decision:
        if decision.key not in rank:
            return decision
        reason = f"{measure} rank {rank[decision.key]} of {len(ranked)}"
        if decision.unscaled:
            reason += "; without a scale, since ComfyUI reads none of a convolution"
        decision = replace(decision, reason=reason, error=errors[decision.key] if errors else None)
        if decision.key not in kept:
            return decision
        return replace(
            decision,
            number_format=KEPT,
            reason=f"{measure} rank {rank[decision.key]} of {len(ranked)}, within {limit}",
            rounding=None,
            maximum=None,
            amax=None,
            scale=None,
            row_scales=False,
            unscaled=False,
            group=None,
        )

    decided = replace(plan, decisions=tuple(map(decide, plan.decisions)))
    return with_products(decided, checkpoint, recipe, inputs or {}) if recipe.chooses_products else decided


def size_range(checkpoint: Checkpoint, format: Format, recipe: Recipe) -> tuple[int, int]:
    """Bytes that a file of `format` has at least and at most, whichever layers are kept; no weight is read.

    Counted without the header's metadata, and as if kept layers and exact ones had scales too: the bounds are too high
    by up to 450 bytes for each.

    Raises:
        HSWQError: not even the file with nothing kept is within the recipe's budget.
    """
    plan = unread_plan(checkpoint, format, recipe)
    smallest, cost = planned_bytes(checkpoint, plan), sorted(_cost(plan, checkpoint).values())
    if recipe.budget is None:
        count = round(keep_ratio(checkpoint, recipe) * len(cost))
        return smallest + sum(cost[:count]), smallest + sum(cost[len(cost) - count :])
    return smallest, smallest + min(_room(plan, checkpoint, recipe).bytes, sum(cost))


def _cost(plan: Plan, checkpoint: Checkpoint) -> dict[str, int]:
    """The bytes that keeping each weight costs over quantizing it."""
    return {d.key: checkpoint.tensors[d.key].nbytes - checkpoint.tensors[d.key].values for d in plan.quantized}


def keep_ratio(checkpoint: Checkpoint, recipe: Recipe) -> float:
    """The share of layers that a recipe without a budget keeps: its own, or the architecture's."""
    return checkpoint.architecture.keep_ratio if recipe.keep_ratio is None else recipe.keep_ratio


def check_budget(checkpoint: Checkpoint, format: Format, recipe: Recipe) -> None:
    """Check, before anything is read, that the recipe's budget can be met.

    Raises:
        HSWQError: it cannot.
    """
    if recipe.budget is not None:
        _room(unread_plan(checkpoint, format, recipe), checkpoint, recipe)


def settled(recipe: Recipe, checkpoint: Checkpoint, formats: Iterable[Format]) -> Recipe:
    """`recipe` with what it leaves open decided for this checkpoint, as it is recorded.

    Without keep ratio and budget it takes the architecture's ratio. A budget that does not leave `least_room` becomes
    the smallest that does, for the largest of the files.
    """
    if recipe.budget is None:
        return replace(recipe, keep_ratio=keep_ratio(checkpoint, recipe))
    if recipe.least_room is None:
        return recipe
    rooms = [_room(unread_plan(checkpoint, format, recipe), checkpoint, recipe) for format in formats]
    return replace(recipe, budget=max(room.budget for room in rooms))


@dataclass(frozen=True)
class _Room:
    """What keeping may cost in bytes, and the budget that says so, as a share of the denoiser's size in 16 bits."""

    bytes: int
    budget: float


def _what_fits(ranked: list[str], cost: Mapping[str, int], room: int) -> set[str]:
    fits = set()
    for key in ranked:
        if cost[key] <= room:
            fits.add(key)
            room -= cost[key]
    return fits


def _room(plan: Plan, checkpoint: Checkpoint, recipe: Recipe) -> _Room:
    """The denoiser's tensors may take `budget` times their size in 16 bits; `least_room` is there anyway.

    Scales, marks and the header do not count. A real model has next to none of them; of a small one they would take
    from V2 what V1 may keep, and V2 would be the worse file.
    """
    if recipe.budget is None:
        raise HSWQError(f"the recipe {recipe.name} has a keep ratio, and no budget")
    denoiser = checkpoint.denoiser_tensors
    whole = _BYTES_16_BIT * sum(info.values for info in denoiser.values())
    smallest = sum(info.nbytes for info in denoiser.values()) - sum(_cost(plan, checkpoint).values())
    room = int(recipe.budget * whole) - smallest
    if recipe.least_room is not None:
        least = int(recipe.least_room * sum(_cost(plan, checkpoint).values()))
        if room < least:
            return _Room(least, ceil((smallest + least) / whole * _DIGITS) / _DIGITS)
    if room < 0:
        raise HSWQError(
            f"the budget {recipe.budget:g} cannot be met: with nothing kept the weights take {smallest / whole:.4f}; "
            "raise --budget"
        )
    return _Room(room, recipe.budget)
