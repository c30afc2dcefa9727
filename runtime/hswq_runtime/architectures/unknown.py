"""Describe the keys of a file that no row matches."""

import re
from collections.abc import Collection, Iterable, Mapping

from ..text import several, shown
from .row import Architecture

_NAMES_OF_DIFFUSERS = ("single_transformer_blocks.", "joint_transformer_blocks.", "all_x_embedder.", "down_blocks.0.")
_SHOWN, _ALONE, _LONGEST = 2, 2, 40
"""Groups of blocks, and other tensors, that are listed at most, and characters of a name: a sentence has room for."""


def describe_unknown(tensors: Iterable[str], rows: Collection[Architecture], prefixes: Iterable[str]) -> str:
    """One sentence: the blocks and their number, the tensors outside of blocks, and the nearest rows.

    Args:
        tensors: the keys; a mapping from key to something with a `shape` also shows shapes.
        rows: the known architectures.
        prefixes: prefixes that a denoiser's keys may have.
    """
    keys = list(tensors)
    if any(re.search(r"lora_(A|B|up|down)\b|\.lora\.", key) for key in keys):
        return f"{len(keys)} tensors of a LoRA, which is no checkpoint; give the model that it is made for"
    known = f"{len(keys)} tensors{_groups(tensors)}"
    if any(key.startswith(_NAMES_OF_DIFFUSERS) for key in keys):
        return f"{known}; they have diffusers' own names: give the folder that its config.json is in"
    return f"{known}; {_nearest(set(keys), rows, prefixes)}"


def _groups(tensors: Iterable[str]) -> str:
    blocks: dict[str, set[str]] = {}
    alone = []
    for key in tensors:
        match = re.match(r"(.*?)\.(\d+)\.", key)
        if match:
            blocks.setdefault(match[1], set()).add(match[2])
        else:
            alone.append(key)
    parts = [
        f"{shown(name, _LONGEST)} x {len(numbers)}"
        for name, numbers in sorted(blocks.items(), key=lambda b: -len(b[1]))
    ]
    alone.sort(key=lambda key: (not key.endswith(".weight"), key))  # whose shapes tell most
    parts = parts[:_SHOWN] + [_with_shape(tensors, key) for key in alone[:_ALONE]]
    return f": {', '.join(parts)}" if parts else ""


def _with_shape(tensors: Iterable[str], key: str) -> str:
    shape = getattr(tensors[key], "shape", None) if isinstance(tensors, Mapping) else None
    name = shown(key, _LONGEST)
    return name if shape is None else f"{name} {shown(list(shape), _LONGEST)}"


def _nearest(keys: set[str], rows: Collection[Architecture], prefixes: Iterable[str]) -> str:
    found: dict[tuple[str, ...], tuple[str, list[str]]] = {}
    for row in rows:
        lacks = min(([key for key in row.signature if prefix + key not in keys] for prefix in prefixes), key=len)
        if len(lacks) < len(row.signature):
            found.setdefault(row.signature, (row.title, lacks))
    fewest = min((len(lacks) for _, lacks in found.values()), default=0)
    near = [(title, several(lacks, 1, _LONGEST)) for title, lacks in found.values() if len(lacks) == fewest]
    if near:
        (title, without), *others = near
        like = f"most like {title}, but without {without}" + (f", or {others[0][0]}" if others else "")
    else:
        like = f"like none of those known ({several(row.title for row in rows)})"
    return f"{like}; ARCHITECTURE.md says how a row makes it known"
