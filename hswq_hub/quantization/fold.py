"""Folding: powers of two moved between tensors so that small weights leave the subnormal range of plain FP8.

Below 2⁻⁶ the values of E4M3 lie 2⁻⁹ apart, however small they are, so a plain (V1) file rounds weights of a usual size,
σ ≈ 0.02, coarsely. If a norm's weight is divided by a number, the layers that read the norm can be multiplied by it.
With a power of two nothing is rounded: the function is equal bit for bit, and the weights use more of the grid. In V2
the scale does this.

A norm hands 2ᵏ to all its readers. One of them hands a part of it on to the layer after it:

    norm · 2⁻ᵏ    readers · 2ᵏ    through · 2ᵏ⁻ʲ    after · 2ʲ

A LoRA made for the original no longer fits the numbers, which is why the header records the moves: see `formats.py`.
"""

import math
from collections.abc import Iterable, Mapping

import torch

from hswq_runtime.architectures.row import Fold
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import HSWQError
from hswq_runtime.fold import Runs
from hswq_runtime.formats import WEIGHT, Format
from hswq_runtime.layers.fp8 import FP8_MAX
from hswq_runtime.loading import joined_rows

from ..settings import Recipe

_HEADROOM = 1
"""Powers of two left free below 448, as compensated rounding may make a weight larger."""


def moved(tensor: torch.Tensor, runs: Runs | None, *, back: bool = False) -> torch.Tensor:
    """`tensor` with its rows multiplied by their powers of two, or divided if `back`; unchanged without `runs`."""
    if not runs:
        return tensor
    factors = [torch.full((rows,), 2.0 ** (-exponent if back else exponent)) for rows, exponent in runs]
    factor = torch.cat(factors).to(tensor.device, tensor.dtype)
    return tensor * factor.reshape(-1, *[1] * (tensor.ndim - 1))


def check_fold(checkpoint: Checkpoint, formats: Iterable[Format], recipe: Recipe) -> None:
    """Check, before any weight is read, that a recipe's fold is possible.

    Raises:
        HSWQError: no format has a use for it, or no exact moves are known of the architecture.
    """
    if not recipe.fold:
        return
    if all(format.scaled for format in formats):
        raise HSWQError("folding is for V1, since V2's scales do the same; leave out --fold, or add --format both")
    if not checkpoint.architecture.folds:
        raise HSWQError(f"no exact moves are known of {checkpoint.architecture.title}; leave out --fold")


def find_moves(checkpoint: Checkpoint) -> dict[str, Runs]:
    """The powers of two of each stored tensor that changes, by key."""
    exponents: dict[str, int] = {}
    for fold in checkpoint.architecture.folds:
        suffix = fold.norm + WEIGHT
        for name in checkpoint.parameters:
            if name == suffix or name.endswith(f".{suffix}"):
                exponents |= _block_moves(checkpoint, fold, name.removesuffix(suffix))
    return {key: runs for key in checkpoint.tensors if (runs := _runs(checkpoint, key, exponents))}


def _block_moves(checkpoint: Checkpoint, fold: Fold, block: str) -> dict[str, int]:
    """Exponents by diffusers parameter of the block whose names begin with `block`."""
    names = {layer: f"{block}{layer}{WEIGHT}" for layer in (fold.norm, *fold.readers, fold.after) if layer}
    room = {layer: _room(checkpoint, names[layer]) for layer in names if layer != fold.norm}
    direct = [room[layer] for layer in fold.readers if layer != fold.through]
    through, after = fold.through, fold.after
    if through is not None and after is not None:
        direct.append(room[through] + room[after])
    whole = _exact(joined_rows(checkpoint, names[fold.norm]), max(min(direct), 0))
    found = {names[fold.norm]: -whole, **{names[layer]: whole for layer in fold.readers}}
    if through is not None and after is not None:
        handed_on = min(room[after], max(whole // 2, whole - room[through]))
        found |= {names[through]: whole - handed_on, names[after]: handed_on}
    return found


def _room(checkpoint: Checkpoint, name: str) -> int:
    """How many powers of two a parameter can take; 0 if it is too large already or nothing but zeros."""
    largest = joined_rows(checkpoint, name).abs().max().item()
    return max(math.floor(math.log2(FP8_MAX / largest)) - _HEADROOM, 0) if largest > 0 else 0


def _exact(norm: torch.Tensor, exponent: int) -> int:
    """The largest exponent up to `exponent` for which dividing `norm` in its dtype loses nothing."""
    while exponent and not torch.equal(norm * 2.0**-exponent * 2.0**exponent, norm):
        exponent -= 1
    return exponent


def _runs(checkpoint: Checkpoint, key: str, exponents: Mapping[str, int]) -> Runs:
    """The moves of one stored tensor, whose rows may belong to several parameters; () if there are none."""
    pieces = [
        (piece.start, piece.stop - piece.start, exponents.get(name, 0))
        for name in set(checkpoint.modules.get(key, ()))
        for piece in checkpoint.parameters[name]
        if piece.key == key
    ]
    runs: list[tuple[int, int]] = []
    for _, rows, exponent in sorted(pieces):
        if runs and runs[-1][1] == exponent:
            rows += runs.pop()[0]
        runs.append((rows, exponent))
    return tuple(runs) if any(exponent for _, exponent in runs) else ()
