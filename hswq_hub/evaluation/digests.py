"""A digest of each tensor and of each metadata entry of a file, and how a file differs from recorded ones."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hswq_runtime.checkpoints.mapped import MappedFile

from ..common.progress import progress

_DIGITS = 32
"""Hex digits of a digest, which are 128 bits: a model with a thousand tensors has a record of 100 kB."""
_PIECE = 1 << 24


@dataclass(frozen=True)
class FileDigests:
    """Of one safetensors file: `tensors` covers dtype, shape and bytes of each by its key, in file order; `metadata`
    the text of each entry by its name. SHA-256, in hex, the first 32 digits."""

    tensors: Mapping[str, str]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Difference:
    """One tensor or metadata entry that is not as recorded. kind: "tensor" or "metadata"."""

    kind: str
    name: str
    how: str


def digests_of(path: Path) -> FileDigests:
    """Read the whole file once, in pieces of 16 MiB.

    Raises:
        FormatError: it is no complete safetensors file.
    """
    header = MappedFile(path)  # which has checked that tensors follow each other without a gap, up to the end
    tensors = {}
    with path.open("rb") as file, progress(total=path.stat().st_size, desc=f"digest {path.name}", unit="B") as bar:
        file.seek(int.from_bytes(file.read(8), "little"), 1)
        bar.update(file.tell())
        for key, info in header.tensors.items():
            digest, left = hashlib.sha256(f"{info.dtype} {list(info.shape)}\n".encode()), info.nbytes
            while left:
                piece = file.read(min(left, _PIECE))
                digest.update(piece)
                bar.update(len(piece))
                left -= len(piece)
            tensors[key] = digest.hexdigest()[:_DIGITS]
    metadata = {name: hashlib.sha256(text.encode()).hexdigest()[:_DIGITS] for name, text in header.metadata.items()}
    return FileDigests(tensors, dict(sorted(metadata.items())))


def differences(recorded: FileDigests, found: FileDigests) -> list[Difference]:
    """What `found` lacks, has besides, or has with other contents; empty if the two are the same."""
    pairs = (("tensor", recorded.tensors, found.tensors), ("metadata", recorded.metadata, found.metadata))
    return [
        Difference(kind, name, _how(name, before, after))
        for kind, before, after in pairs
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _how(name: str, recorded: Mapping[str, str], found: Mapping[str, str]) -> str:
    if name not in found:
        return "missing"
    return "other contents" if name in recorded else "not in the record"
