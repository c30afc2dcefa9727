"""What the keys of a file look like, for those that no row matches."""

import re
from collections.abc import Collection, Iterable

from .row import Architecture

_SHOWN = 6
"""Groups of blocks and other tensors that a sentence may hold."""


def look(tensors: Iterable[str], rows: Collection[Architecture], prefixes: Iterable[str]) -> str:
    """One sentence: the blocks and how many of each, tensors that stand alone, and the row that comes nearest.

    Args:
        tensors: the keys, or what a header says of each (something with a `shape`), by key.
        rows: those known.
        prefixes: what the keys of a denoiser may begin with.
    """
    keys = list(tensors)
    if any(re.search(r"lora_(A|B|up|down)\b|\.lora\.", key) for key in keys):
        return f"{len(keys)} tensors of a LoRA, which is no checkpoint; give the model that it is made for"
    return f"{len(keys)} tensors{_groups(tensors)}; {_nearest(set(keys), rows, prefixes)}"


def _groups(tensors) -> str:
    blocks: dict[str, set[str]] = {}
    alone = []
    for key in tensors:
        match = re.match(r"(.*?)\.(\d+)\.", key)
        if match:
            blocks.setdefault(match[1], set()).add(match[2])
        else:
            alone.append(key)
    parts = [f"{name} x {len(numbers)}" for name, numbers in sorted(blocks.items(), key=lambda b: -len(b[1]))]
    parts = parts[:_SHOWN] + [_with_shape(tensors, key) for key in sorted(alone)[:_SHOWN]]
    return f": {', '.join(parts)}" if parts else ""


def _with_shape(tensors, key: str) -> str:
    shape = getattr(tensors[key], "shape", None) if hasattr(tensors, "keys") else None
    return key if shape is None else f"{key} {list(shape)}"


def _nearest(keys: set[str], rows: Collection[Architecture], prefixes: Iterable[str]) -> str:
    def missing(row: Architecture) -> list[str]:
        return min(([key for key in row.signature if prefix + key not in keys] for prefix in prefixes), key=len)

    nearest = min(rows, key=lambda row: len(missing(row)) / len(row.signature))
    lacks = missing(nearest)
    if len(lacks) == len(nearest.signature):
        like = f"that is like none of those known ({', '.join(row.title for row in rows)})"
    else:
        like = f"that is most like {nearest.title}, but without {', '.join(lacks)}"
    return f"{like}; a row in hswq_runtime/architectures would make it known, as ARCHITECTURE.md says"
