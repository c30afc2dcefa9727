"""What the header of a safetensors file says: the dtype and shape of each tensor, and the architecture."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .. import formats
from ..architectures import Architecture, recognise, recognise_class
from ..errors import FormatError, UnknownArchitectureError

_FP8 = ("F8_E5M2", "F8_E8M0", "F8_E5M2FNUZ", formats.DTYPE_FP8, f"{formats.DTYPE_FP8}FNUZ")
DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", *_FP8), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of one value, by safetensors dtype name: every one that safetensors 0.8 knows."""
MOST_TENSORS = 100_000
"""Tensors of a file that is read; no model that is known has a tenth of them."""


@dataclass(frozen=True)
class TensorInfo:
    """The header's entry for one tensor: its safetensors dtype name and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        """Number of values."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Bytes that the values take in the file."""
        return (self.values * DTYPE_BITS[self.dtype] + 7) // 8


class Recognised(NamedTuple):
    """The row of a file's architecture, the prefix of its denoiser's keys, and whether these are diffusers' names of
    parameters instead of those of the original layout."""

    row: Architecture
    prefix: str
    diffusers_layout: bool


def recognise_header(keys: Iterable[str], metadata: Mapping[str, str]) -> Recognised:
    """What a file is by its keys or, where they are diffusers' own, by the configuration in `metadata`.

    Args:
        keys: see `tensors` of :func:`hswq_runtime.architectures.recognise`.

    Raises:
        FormatError: the configuration cannot be read.
        UnknownArchitectureError: no row matches.
    """
    config = config_of(metadata)
    try:
        return Recognised(*recognise(keys), False)
    except UnknownArchitectureError:
        if config is None:
            raise
    return Recognised(recognise_class(config), "", True)


def config_of(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """The configuration of the diffusers model in a header, None if it has none.

    Raises:
        FormatError: the entry is not a JSON object.
    """
    text = metadata.get(formats.Metadata.CONFIG.value)
    if text is None:
        return None
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the file's {formats.Metadata.CONFIG.value} is not JSON") from error
    if not isinstance(config, dict):
        raise FormatError(f"the file's {formats.Metadata.CONFIG.value} is no configuration of a model")
    return config
