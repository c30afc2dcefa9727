"""A safetensors file whose tensors are memory-mapped, with a bound on the pages that stay in memory."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..errors import FormatError
from .header import TensorInfo

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
        FormatError: not a safetensors file, or a truncated or damaged one.
    """

    def __init__(self, path: Path, mapped_bytes: int = MAPPED_BYTES):
        if not path.is_file():
            raise FormatError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
        try:
            self._file = safe_open(str(path), framework="pt")
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{path} is not a complete safetensors file ({error})") from error
        self._path, self._mapped_bytes, self._read_bytes = path, mapped_bytes, 0
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self.tensors = {key: self._info(key) for key in self._file.offset_keys()}

    def _info(self, key: str) -> TensorInfo:
        view = self._file.get_slice(key)
        return TensorInfo(view.get_dtype(), tuple(view.get_shape()))

    def tensor(self, key: str) -> torch.Tensor:
        """The stored tensor `key`, on the CPU, in its stored dtype, memory-mapped."""
        self._read_bytes += self.tensors[key].nbytes
        if self._read_bytes > self._mapped_bytes:
            self._file, self._read_bytes = safe_open(str(self._path), framework="pt"), 0
        stored: torch.Tensor = self._file.get_tensor(key)
        return stored
