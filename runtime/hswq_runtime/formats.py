"""The on-disk formats: the one place that spells suffixes, versions and metadata keys.

A file is a safetensors file in the layout of its source: same keys, same prefix, same fused tensors. For each
quantized weight ``X.weight`` (F8_E4M3) it holds

======  ======================  ========================================================================
format  beside ``X.weight``     meaning
======  ======================  ========================================================================
V1      nothing needed          the value is the FP8 value: any FP8 loader reads it
V2      ``X.scale`` F32 [1]     the value is the FP8 value times the scale
======  ======================  ========================================================================

Linear layers also carry ``X.weight_scale`` (F32 scalar: 1 in V1, the scale in V2) and ``X.comfy_quant`` (U8,
UTF-8 JSON). With those stock ComfyUI reads both formats and leaves unquantized layers as they are; without
them it drops V2's scale and, on GPUs with FP8 arithmetic, casts the kept layers to FP8 as well. It has no
scaled convolution, so convolutions do not carry them.

Writer and reader sit side by side: :func:`companions` says what to write, :func:`find_weights` reads it back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from .errors import FormatError

if TYPE_CHECKING:
    import torch

WEIGHT = ".weight"
SCALE = ".scale"
COMFY_SCALE = ".weight_scale"
COMFY_MARK = ".comfy_quant"
_COMPANIONS = (SCALE, COMFY_SCALE, COMFY_MARK)

DTYPE_FP8 = "F8_E4M3"
FULL_PRECISION = frozenset({"F64", "F32", "F16", "BF16"})
"""safetensors dtypes that a source may have."""


class Format(str, Enum):
    """How a file stores its quantized weights; the value is the `variant` users ask for."""

    V1 = "v1"
    V2 = "v2"

    @property
    def scaled(self) -> bool:
        """Whether its FP8 values have to be multiplied with a scale."""
        return self is Format.V2

    @property
    def label(self) -> str:
        """How reports call it: "V1", "V2"."""
        return self.value.upper()


class Metadata(str, Enum):
    """Keys of the safetensors header's `__metadata__`; all values are strings."""

    FORMAT = "hswq_format"
    ARCHITECTURE = "hswq_architecture"
    BASE = "hswq_base"
    RECIPE = "hswq_recipe"
    SOURCE_SHA256 = "hswq_source_sha256"
    TOOL = "hswq_tool"


@dataclass(frozen=True)
class StoredWeight:
    """A quantized weight as a file holds it.

    key: of the weight. scale_key: of its scale, None in V1. comfy_scale_key: of the scale that ComfyUI reads, None
    where there is none; :func:`check_agreement` compares the two.
    """

    key: str
    scale_key: str | None
    comfy_scale_key: str | None = None


def layer_of(key: str) -> str:
    """`X.weight` -> `X`."""
    return key.removesuffix(WEIGHT)


def companions(key: str, scale: float | torch.Tensor, version: Format, *, comfyui: bool) -> dict[str, torch.Tensor]:
    """The tensors that go beside the quantized weight `key` in a file of `version`.

    `scale` is what the FP8 values are multiplied with (1.0 in V1), or a tensor [rows, 1] of them. `comfyui`: write
    ComfyUI's two as well (for Linear layers; its convolutions read none).
    """
    import torch  # here, because command-line help reads this module and must not wait for torch

    layer = layer_of(key)
    beside = {}
    if version.scaled:
        beside[layer + SCALE] = torch.atleast_1d(torch.as_tensor(scale, dtype=torch.float32))
    if comfyui:
        mark = {"format": "float8_e4m3fn"}
        if version.scaled:
            # Without this ComfyUI would multiply in FP8 with activations it has no scale for.
            mark["full_precision_matrix_mult"] = True
        beside[layer + COMFY_SCALE] = torch.as_tensor(scale, dtype=torch.float32)
        beside[layer + COMFY_MARK] = torch.tensor(list(json.dumps(mark).encode()), dtype=torch.uint8)
    return beside


def find_weights(dtypes: Mapping[str, str], version: Format | None) -> tuple[dict[str, StoredWeight], set[str]]:
    """The quantized weights among the keys of a file, and the keys that only accompany them.

    `dtypes`: safetensors dtype by key. `version`: what the header's metadata says, None if nothing.

    Raises:
        FormatError: a scale beside a weight that is not FP8, or an FP8 weight without one in a V2 file.
    """
    weights, companion_keys = {}, set()
    for key in (k for k in dtypes if k.endswith(WEIGHT) and dtypes[k] == DTYPE_FP8):
        beside = {suffix: layer_of(key) + suffix for suffix in _COMPANIONS if layer_of(key) + suffix in dtypes}
        companion_keys.update(beside.values())
        scale_key = beside.get(SCALE) or beside.get(COMFY_SCALE)
        if version is Format.V2 and SCALE not in beside:
            raise FormatError(f"{key} has no scale ({layer_of(key)}{SCALE}) though the file says that it is V2")
        weights[key] = StoredWeight(key, None if version is Format.V1 else scale_key, beside.get(COMFY_SCALE))
    for key in dtypes.keys() - companion_keys:
        suffix = next((s for s in _COMPANIONS if key.endswith(s)), None)
        # Without any weight beside it the key may be a parameter of the model (Flux names its norms `.scale`);
        # if it is not, loading names it as unexpected.
        if suffix and key.removesuffix(suffix) + WEIGHT in dtypes:
            raise FormatError(f"{key} belongs to {key.removesuffix(suffix)}{WEIGHT}, which is not FP8")
    return weights, companion_keys


def check_scale(key: str, scale: torch.Tensor) -> torch.Tensor:
    """`scale` as float32 [1].

    Raises:
        FormatError: more than one value, or one that is not finite and positive.
    """
    if scale.numel() != 1:
        raise FormatError(f"{key} has shape {list(scale.shape)}; one scale for the whole weight is expected")
    value = scale.item()
    if not (math.isfinite(value) and value > 0):
        raise FormatError(f"{key} is {value}; a scale is finite and positive")
    return scale.reshape(1).float()


def check_agreement(weight: StoredWeight, scale: torch.Tensor | None, comfy_scale: torch.Tensor) -> None:
    """Check that ComfyUI would read the same weight as we do.

    `scale`: what `weight.scale_key` holds, None for 1. `comfy_scale`: what `weight.comfy_scale_key` holds.

    Raises:
        FormatError: they differ, so one of the two would show another picture.
    """
    ours, theirs = 1.0 if scale is None else scale.item(), comfy_scale.item()
    if ours != theirs:
        raise FormatError(f"{weight.comfy_scale_key} is {theirs:g}, but the scale of {weight.key} is {ours:g}")


def version_of(metadata: Mapping[str, str]) -> Format | None:
    """The format that a header's metadata names, None where it names none.

    Raises:
        FormatError: a version that this release does not know.
    """
    named = metadata.get(Metadata.FORMAT.value)
    if named is None:
        return None
    try:
        return Format(named)
    except ValueError:
        raise FormatError(
            f"the file says {Metadata.FORMAT.value}={named!r}, which this release does not know"
        ) from None
