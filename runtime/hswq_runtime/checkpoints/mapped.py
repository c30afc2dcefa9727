"""A safetensors file whose tensors are memory-mapped, with a bound on the pages that stay in memory."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import FormatError
from ..text import several, shown
from .header import DTYPE_BITS, MOST_TENSORS, TensorInfo

MAPPED_BYTES = 1 << 29
"""Bytes that are read through one mapping of a file before it is mapped anew."""


class MappedFile:
    """A safetensors file that is open for reading.

    Pages that were read stay in memory as long as their mapping. A new mapping every `mapped_bytes` keeps a pass over
    a file at a few GB, if the caller keeps no tensor.

    Attributes:
        metadata: the header's strings, {} if it has none.
        tensors: `TensorInfo` of every tensor by key, in file order.

    Raises:
        FormatError: not a safetensors file, or a truncated or damaged one; it holds values of a kind that is not known,
            or more tensors than `MOST_TENSORS`.
    """

    def __init__(self, path: Path, mapped_bytes: int = MAPPED_BYTES):
        if not path.is_file():
            raise FormatError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
        try:
            # torch maps a file as memory of its own, which Linux refuses beyond what the machine has; numpy's does not.
            header = safe_open(str(path), framework="numpy")
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{path} is not a complete safetensors file ({shown(error, 120)})") from error
        self._path, self._mapped_bytes, self._read_bytes = path, mapped_bytes, 0
        self._file: Any = None
        self.metadata: dict[str, str] = header.metadata() or {}
        keys = header.offset_keys()
        if len(keys) > MOST_TENSORS:
            raise FormatError(f"{path} holds {len(keys)} tensors; no model has more than {MOST_TENSORS}")
        views = {key: header.get_slice(key) for key in keys}
        self.tensors = {key: TensorInfo(view.get_dtype(), tuple(view.get_shape())) for key, view in views.items()}
        if strange := sorted({info.dtype for info in self.tensors.values()} - DTYPE_BITS.keys()):
            raise FormatError(f"{path} holds values of a kind that this release does not know: {several(strange)}")

    def tensor(self, key: str) -> torch.Tensor:
        """The stored tensor `key`, on the CPU, in its stored dtype, memory-mapped."""
        self._read_bytes += self.tensors[key].nbytes
        if self._file is None or self._read_bytes > self._mapped_bytes:
            self._file, self._read_bytes = safe_open(str(self._path), framework="pt"), 0
        stored: torch.Tensor = self._file.get_tensor(key)
        return stored
