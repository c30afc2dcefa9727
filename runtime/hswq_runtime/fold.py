"""The folds of a V1 file: powers of two were moved between its tensors, which changes the weights but not the function.

Its header then says in `Metadata.FOLD` by which powers each tensor was multiplied: a JSON object, key -> [[rows,
exponent], ...] over all of its rows. A loader that ignores the entry computes the same function; but a LoRA, trained
on the original weights, does not fit the folded ones.

Writer and reader sit side by side: :func:`fold_entry` says what to write, :func:`fold_of` reads it back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .errors import FormatError
from .formats import Metadata
from .text import shown

if TYPE_CHECKING:
    import torch

_LARGEST_MOVE = 32

Runs = tuple[tuple[int, int], ...]
"""(rows, exponent), ...: consecutive runs of rows, each multiplied by 2 to the exponent."""


def fold_entry(moves: Mapping[str, Runs]) -> str:
    """The header entry of a folded file, from the runs of each moved tensor by key."""
    return json.dumps({key: [list(run) for run in runs] for key, runs in sorted(moves.items())}, separators=(",", ":"))


def fold_of(metadata: Mapping[str, str], rows: Mapping[str, int]) -> dict[str, Runs]:
    """The inverse of :func:`fold_entry`; {} for a file that is not folded. `rows`: number of rows by key.

    Raises:
        FormatError: the entry cannot be read, or does not fit the tensors.
    """
    text = metadata.get(Metadata.FOLD.value)
    if text is None:
        return {}
    try:
        moves = {key: tuple((count, exponent) for count, exponent in runs) for key, runs in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"the file's {Metadata.FOLD.value} cannot be read") from error
    for key, runs in moves.items():
        numbers = [number for run in runs for number in run]
        whole = all(type(number) is int for number in numbers) and all(count > 0 for count, _ in runs)
        if not whole or sum(count for count, _ in runs) != rows.get(key):
            raise FormatError(f"the file's {Metadata.FOLD.value} does not fit {shown(key)}")
        if any(abs(exponent) > _LARGEST_MOVE for _, exponent in runs):
            raise FormatError(f"the file's {Metadata.FOLD.value} moves {shown(key)} by more than 2^{_LARGEST_MOVE}")
    return moves


def unfold_factors(moves: Mapping[str, Runs]) -> dict[str, torch.Tensor]:
    """Powers of two that take the `moves` of a folded file back, by key: float32 [1] or [rows]."""
    import torch

    factors = {key: torch.tensor([2.0**-exponent for _, exponent in runs]) for key, runs in moves.items()}
    return {
        key: factor if len(factor) == 1 else factor.repeat_interleave(torch.tensor([n for n, _ in moves[key]]))
        for key, factor in factors.items()
    }
