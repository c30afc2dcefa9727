"""Decides which quantized layers readers multiply with rounded inputs.

FP8 or INT8 arithmetic, which rounds inputs as well, is best spent on the layers that lose least by it for what they
multiply.
"""

from collections.abc import Mapping
from dataclasses import replace

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.formats import Format, Number, layer_of
from hswq_runtime.layers.fp8 import MULTIPLE

from ...settings import ALLOWED, INT8_SPEED, Recipe
from ..plan import LINEAR, Decision, Plan
from ..samples.inputs import InputRounding

_EXPECTED = 0.7
"""Of the error that rounded inputs may add, so much is spent on the sum of those of single layers: of whole files it is
up to 1.4 times as large."""


def with_products(
    plan: Plan, checkpoint: Checkpoint, recipe: Recipe, roundings: Mapping[Number, Mapping[str, InputRounding]]
) -> Plan:
    """`plan`, in which kept layers and errors are decided, with the products of its linear layers.

    Layers are taken in the order of the error of rounding their inputs, for the work that is in FP8 then: so many
    that the share `recipe.speed` of the work is; if that is None, `INT8_SPEED` of an INT8 file, and of others each
    with which the error can be expected to stay within `ALLOWED` times that of the weights. All others are exact:
    also those that a reader's hardware cannot multiply in FP8 or gains nothing by, that feed everything else, or
    that have a scale a row; and all of a folded file, which has other inputs.

    Args:
        roundings: by what inputs are rounded to and by key, of the layers whose inputs can be rounded.
    """
    inputs = _of_layers(plan, roundings)
    linear = [d for d in plan.decisions if d.key in inputs]
    whole = sum(inputs[d.key].work for d in linear)
    possible = [d.key for d in linear if not plan.moves and can_multiply(d, checkpoint, inputs[d.key])]
    ranked = sorted(possible, key=lambda key: inputs[key].error / inputs[key].work)
    speed = INT8_SPEED if recipe.speed is None and plan.format is Format.INT8 else recipe.speed
    chosen, work, error = set(), 0.0, 0.0
    allowed = _EXPECTED * (ALLOWED - 1) * sum(d.error or 0.0 for d in plan.quantized)
    for key in ranked:
        fits = error + inputs[key].error <= allowed if speed is None else work < speed * whole
        if fits:
            chosen.add(key)
            work, error = work + inputs[key].work, error + inputs[key].error

    def decide(decision: Decision) -> Decision:
        if decision.kind != LINEAR or not decision.quantized:
            return decision
        found = inputs.get(decision.key)
        if found is None:
            return replace(decision, exact=True)
        fast, share = decision.key in chosen, found.work / whole if whole else 0.0
        scale = found.scale if fast else None  # of INT8 there is none
        return replace(decision, exact=not fast, input_scale=scale, input_error=found.error, work=share)

    return replace(plan, decisions=tuple(map(decide, plan.decisions)))


def _of_layers(plan: Plan, roundings: Mapping[Number, Mapping[str, InputRounding]]) -> dict[str, InputRounding]:
    """Of each linear layer, what rounding its input to the number format of its weight does. Of one that is kept, only
    the work is of interest, which is the same in each."""
    found: dict[str, InputRounding] = {}
    for decision in plan.decisions:
        for number in (decision.number,) if decision.quantized else plan.format.numbers:
            if decision.kind == LINEAR and decision.key in roundings.get(number, {}):
                found[decision.key] = roundings[number][decision.key]
    return found


def can_multiply(decision: Decision, checkpoint: Checkpoint, inputs: InputRounding) -> bool:
    """Whether FP8 or INT8 arithmetic can be chosen for a layer, and saves something."""
    rows, columns = checkpoint.tensors[decision.key].shape
    names = [layer_of(name) for name in checkpoint.modules[decision.key]]
    return (
        decision.quantized
        and (decision.number is Number.INT8 or not decision.row_scales)
        and rows % MULTIPLE == 0
        and columns % MULTIPLE == 0
        and inputs.rows >= MULTIPLE
        and inputs.work > 0
        and not any(map(checkpoint.architecture.is_sensitive, names))
    )
