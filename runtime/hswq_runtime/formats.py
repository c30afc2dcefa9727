"""The on-disk formats: the one place that spells suffixes, format names and metadata keys.

A file is a safetensors file in the layout of its source: same keys, same prefix, same fused tensors. For each
quantized weight ``X.weight`` (F8_E4M3, or I8 in an INT8 file) it holds

======  ======================  ========================================================================
format  beside ``X.weight``     meaning
======  ======================  ========================================================================
V1      nothing needed          the value is the FP8 value: any FP8 loader reads it
V2      ``X.scale`` F32         the value is the FP8 value times the scale: [1], or [N] or [N, 1] for one
                                scale a row
INT8    ``X.weight_scale`` F32  ComfyUI's: the value is the INT8 value times the scale of its row, [N, 1]
======  ======================  ========================================================================

Linear layers also carry ``X.weight_scale`` (F32 scalar: 1 in V1, the scale in V2) and ``X.comfy_quant`` (U8,
UTF-8 JSON: the number format, and ``full_precision_matrix_mult`` if the layer is not to be multiplied in FP8). One that
is may carry ``X.input_scale`` (F32 scalar), the unit in which its input is rounded to FP8: see :class:`Product`. With
those stock ComfyUI reads both formats and leaves unquantized layers as they are; without them it drops V2's scale and,
on GPUs with FP8 arithmetic, casts the kept layers to FP8 as well. It has no scaled convolution and would ignore the
scale, so convolutions do not carry them. A V2 file that is written for ComfyUI says so in its metadata, and its
convolutions are as in V1.

Read, but never written: V2's early ``X.weight.scale``; ComfyUI's older ``X.scale_weight`` and ``X.scale_input`` (1 is
none) with a tensor ``scaled_fp8`` for the whole file, of two values if no layer is multiplied in FP8; its header entry
``_quantization_metadata``; FP8 without any of these.

In an INT8 file ``X.comfy_quant`` also says whether neighbouring inputs are rotated, in groups of how many: see
:mod:`.layers.int8`. Its convolutions are as in V1. "best" mixes such layers and FP8 ones with what V2 has for ComfyUI.
Read besides: one scale for a whole weight; descriptions without the number format, which ComfyUI refuses.

A V1 file may be folded, see :mod:`.fold`.

Writer and reader sit side by side: :func:`companions` says what to write, :func:`find_weights` reads it back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from .errors import FormatError
from .scales import agreed, check_scale, described
from .text import several, shown, written

if TYPE_CHECKING:
    import torch

WEIGHT = ".weight"
SCALE = ".scale"
EARLY_SCALE = ".weight.scale"
COMFY_SCALE = ".weight_scale"
COMFY_MARK = ".comfy_quant"
OLD_COMFY_SCALE = ".scale_weight"
INPUT_SCALE = ".input_scale"
OLD_INPUT_SCALE = ".scale_input"
_SCALES = (SCALE, EARLY_SCALE, COMFY_SCALE, OLD_COMFY_SCALE)
_COMPANIONS = (EARLY_SCALE, SCALE, COMFY_SCALE, OLD_COMFY_SCALE, COMFY_MARK, INPUT_SCALE, OLD_INPUT_SCALE)
_OLD_COMFY_MARK, _COMFY_METADATA = "scaled_fp8", "_quantization_metadata"
_COMFY_ROTATED, _COMFY_GROUP, _COMFY_PARAMETERS = "convrot", "convrot_groupsize", "params"
_COMFY_EXACT = "full_precision_matrix_mult"
_LONGEST_MARK = 4096
GROUPS, LARGEST_GROUP = (4, 16, 64, 256, 1024, 4096), 256
"""How many inputs ComfyUI can rotate together; what it takes if nothing is said, and the largest that is written."""
_OLD_COMFY_EXACT = 2  # values of `scaled_fp8` in a file whose layers are multiplied in full precision

DTYPE_FP8, DTYPE_INT8, DTYPE_U8 = "F8_E4M3", "I8", "U8"
FULL_PRECISION = frozenset({"F64", "F32", "F16", "BF16"})  # safetensors dtypes that a source may hold


class Format(StrEnum):
    """How a file stores its quantized weights. The value is what a user passes as `variant`."""

    V1 = "v1"
    V2 = "v2"
    INT8 = "int8"
    BEST = "best"

    @property
    def scaled(self) -> bool:
        """Whether a weight is its FP8 values times a scale of ours."""
        return self is Format.V2

    @property
    def label(self) -> str:
        """Name in reports: "V1", "V2", "INT8", "Best"."""
        return self.value.title() if self is Format.BEST else self.value.upper()

    @property
    def numbers(self) -> tuple[Number, ...]:
        """The number formats that its linear layers may have."""
        return {Format.INT8: (Number.INT8,), Format.BEST: tuple(Number)}.get(self, (Number.FP8,))


class Metadata(StrEnum):
    """Keys of the safetensors header's `__metadata__`; all values are strings."""

    FORMAT = "hswq_format"
    ARCHITECTURE = "hswq_architecture"
    BASE = "hswq_base"
    CONFIG = "hswq_config"
    FOLD = "hswq_fold"
    READER = "hswq_for"
    RECIPE = "hswq_recipe"
    SOURCE_SHA256 = "hswq_source_sha256"
    TOOL = "hswq_tool"


class Number(StrEnum):
    """How the values of a quantized weight are stored, by ComfyUI's name."""

    FP8 = "float8_e4m3fn"
    INT8 = "int8_tensorwise"

    @property
    def dtype(self) -> str:
        """safetensors dtype of the weight."""
        return DTYPE_INT8 if self is Number.INT8 else DTYPE_FP8


class Reader(StrEnum):
    """The loader that a V2 file is written for."""

    HSWQ = "hswq"
    """This project's runtime: every weight has a scale."""
    COMFYUI = "comfyui"
    """Stock ComfyUI as well: convolutions are plain FP8."""


@dataclass(frozen=True)
class Product:
    """How a file wants the input of a linear layer multiplied by its quantized weight.

    Attributes:
        exact: in full precision, with the expanded weight. If not, in the number format of the weight: what a file
            without marks says.
        input_scale: FP8 values of the input times this are the input, a float32 number; None: the file has none.
        number: the number format of the weight.
        group: so many neighbouring inputs were rotated together, see :mod:`hswq_runtime.layers.int8`; None: none were.
    """

    exact: bool = False
    input_scale: float | None = None
    number: Number = Number.FP8
    group: int | None = None


@dataclass(frozen=True)
class StoredWeight:
    """A quantized weight as a file holds it.

    Attributes:
        key: of the weight.
        scale_keys: of its scales, ours first; they have to agree.
        mark_key: of ComfyUI's description.
        format: the format that the file's metadata names.
        input_scale_keys: of the scales of its input, the current name first; they have to agree.
        old_mark_key: of ComfyUI's older description of the whole file.
        number: the number format that its dtype says.
    """

    key: str
    scale_keys: tuple[str, ...] = ()
    mark_key: str | None = None
    format: Format | None = None
    input_scale_keys: tuple[str, ...] = ()
    old_mark_key: str | None = None
    number: Number = Number.FP8


def layer_of(key: str) -> str:
    """`X.weight` -> `X`."""
    return key.removesuffix(WEIGHT)


def companions(
    key: str, scale: float | torch.Tensor, format: Format, *, comfyui: bool, product: Product | None = None
) -> dict[str, torch.Tensor]:
    """The tensors that go beside the quantized weight `key` in a file of `format`.

    Args:
        scale: factor of the FP8 values (1.0 in V1), or a tensor [rows, 1] of factors.
        comfyui: write ComfyUI's as well (for Linear layers; its convolutions read none).
        product: how to multiply by it, which ComfyUI's say. None: FP8, exactly in V2, and without an input scale in V1.
    """
    import torch  # here, because command-line help reads this module and must not wait for torch

    layer, product = layer_of(key), product or Product(exact=format.scaled)
    beside: dict[str, torch.Tensor] = {}
    if format.scaled:
        beside[layer + SCALE] = torch.atleast_1d(torch.as_tensor(scale, dtype=torch.float32))
    if comfyui:
        mark: dict[str, str | bool | int] = {"format": product.number.value}
        if product.group is not None:
            mark |= {_COMFY_ROTATED: True, _COMFY_GROUP: product.group}
        if product.exact:
            mark[_COMFY_EXACT] = True
        beside[layer + COMFY_SCALE] = torch.as_tensor(scale, dtype=torch.float32)
        beside[layer + COMFY_MARK] = torch.tensor(list(json.dumps(mark).encode()), dtype=torch.uint8)
        if product.input_scale is not None and not product.exact:
            beside[layer + INPUT_SCALE] = torch.tensor(product.input_scale, dtype=torch.float32)
    return beside


def find_weights(
    dtypes: Mapping[str, str], format: Format | None, unscaled: Collection[str] = ()
) -> tuple[dict[str, StoredWeight], set[str]]:
    """The quantized weights of a file by key, and the keys of their companion tensors.

    Args:
        dtypes: safetensors dtype by key.
        format: what the header's metadata says, None if nothing.
        unscaled: keys of weights that need no scale even where other weights have one.

    Raises:
        FormatError: a scale beside a weight that is not quantized; an FP8 weight without one in a V2 file, or where
            others have one; an INT8 weight without one; ComfyUI's description without its scale.
    """
    numbers = {key: number for key in dtypes if (number := _number_of(key, dtypes)) is not None}
    fp8 = [key for key, number in numbers.items() if number is Number.FP8]
    scaled = format is Format.V2 or any(_has_our_scale(key, dtypes) for key in fp8)
    weights = {}
    companion_keys = {key for key in dtypes if key.split(".")[-1] == _OLD_COMFY_MARK}
    old_mark = next(iter(companion_keys), None)
    for key, number in numbers.items():
        layer = layer_of(key)
        companion_keys.update(layer + suffix for suffix in _COMPANIONS if layer + suffix in dtypes)
        scale_keys = tuple(layer + suffix for suffix in _SCALES if layer + suffix in dtypes)
        if number is Number.INT8:
            if not scale_keys:
                raise FormatError(f"{shown(key)} is {number.name} and has no scale ({shown(layer + COMFY_SCALE)})")
        elif scaled and not _has_our_scale(key, dtypes) and (scale_keys or key not in unscaled):
            others = "the file says that it is V2" if format is Format.V2 else "other weights of the file have one"
            raise FormatError(f"{shown(key)} has no scale ({shown(layer + SCALE)}) though {others}")
        if (mark := layer + COMFY_MARK) in dtypes and (scale := layer + COMFY_SCALE) not in dtypes:
            raise FormatError(f"{shown(key)} has no scale ({shown(scale)}) though {shown(mark)} describes it")
        input_scale_keys = tuple(layer + name for name in (INPUT_SCALE, OLD_INPUT_SCALE) if layer + name in dtypes)
        mark_key = mark if mark in dtypes else None
        weights[key] = StoredWeight(key, scale_keys, mark_key, format, input_scale_keys, old_mark, number)
    for key in dtypes.keys() - companion_keys:
        suffix = next((s for s in _COMPANIONS if key.endswith(s)), None)
        # Without any weight beside it the key may be a parameter of the model (Flux names its norms `.scale`);
        # if it is not, loading names it as unexpected.
        if suffix and key.removesuffix(suffix) + WEIGHT in dtypes:
            weight = key.removesuffix(suffix) + WEIGHT
            raise FormatError(f"{shown(key)} belongs to {shown(weight)}, which is not quantized")
    return weights, companion_keys


def _has_our_scale(key: str, dtypes: Mapping[str, str]) -> bool:
    return not dtypes.keys().isdisjoint({layer_of(key) + SCALE, layer_of(key) + EARLY_SCALE})


def _number_of(key: str, dtypes: Mapping[str, str]) -> Number | None:
    """The number format of a quantized weight; None for any other tensor. ComfyUI may store FP8 bytes as U8; its mark
    is checked when they are read."""
    dtype = dtypes[key]
    if not key.endswith(WEIGHT):
        return None
    if dtype == DTYPE_U8 and layer_of(key) + COMFY_MARK in dtypes:
        return Number.FP8
    return next((number for number in Number if number.dtype == dtype), None)


def read_scale(weight: StoredWeight, rows: int, tensor: Callable[[str], torch.Tensor]) -> torch.Tensor | None:
    """The scale of a stored weight: float32 [1] or [rows]; None if the weight is its stored values.

    Args:
        rows: number of rows of the weight.
        tensor: reads the stored tensor of a key.

    Raises:
        FormatError: a scale of another shape, or one that is not finite and positive; two scales that differ; a scale
            other than 1 in a V1 file; ComfyUI's description names another number format.
    """
    if weight.mark_key is not None:
        _read_mark(weight.mark_key, tensor(weight.mark_key), weight.number)
    if not weight.scale_keys:
        return None
    first, scale = agreed({key: check_scale(key, tensor(key), rows) for key in weight.scale_keys})
    unscaled = bool((scale == 1).all())
    if weight.format is Format.V1 and not unscaled:
        raise FormatError(f"{first} is {described(scale)}, but the file says that it is V1, which has no scales")
    return None if unscaled and weight.format is not Format.V2 and weight.number is Number.FP8 else scale


def read_product(
    weight: StoredWeight,
    columns: int,
    tensor: Callable[[str], torch.Tensor],
    header: Mapping[str, Product] | None = None,
) -> Product:
    """How the file wants the layer of a stored weight multiplied.

    Args:
        columns: number of inputs of a row of the weight.
        tensor: reads the stored tensor of a key.
        header: what :func:`check_metadata` returned of the header.

    Raises:
        FormatError: an input scale that is not one finite and positive value; two that differ; ComfyUI's description
            names another number format, groups that do not divide the inputs, or something else than whether to
            multiply in full precision.
    """
    said = (header or {}).get(layer_of(weight.key), Product(number=weight.number))
    if said.number is not weight.number:
        raise FormatError(f"{shown(weight.key)} is {weight.number.name}, but the header says {said.number.value}")
    if weight.mark_key is not None:
        marked = _read_mark(weight.mark_key, tensor(weight.mark_key), weight.number)
        said = replace(marked, exact=marked.exact or said.exact)
    elif weight.old_mark_key is not None:
        said = replace(said, exact=said.exact or tensor(weight.old_mark_key).numel() == _OLD_COMFY_EXACT)
    if said.group is not None and columns % said.group:
        raise FormatError(f"{shown(weight.key)} has {columns} inputs, which are no groups of {said.group}")
    scales = {key: check_scale(key, tensor(key), 1) for key in weight.input_scale_keys}
    # Converters to the older names wrote 1 where nothing had been measured; ComfyUI drops it.
    scales = {key: scale for key, scale in scales.items() if not (key.endswith(OLD_INPUT_SCALE) and scale.item() == 1)}
    return replace(said, input_scale=agreed(scales)[1].item() if scales else None)


def _read_mark(key: str, mark: torch.Tensor, number: Number) -> Product:
    """ComfyUI's description of a layer whose weight has the dtype of `number`."""
    try:
        if mark.numel() > _LONGEST_MARK:
            raise ValueError
        found = json.loads(bytes(mark.reshape(-1).tolist()))
        if number is Number.INT8:
            found = {"format": number.value, **found}
        product = _described(key, found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FormatError(f"{key} is no description of a number format") from None
    if product.number is not number:
        raise FormatError(f"{key} says {product.number.value}, but the weight is {number.name}")
    return product


def _described(where: str, layer: Mapping[str, Any]) -> Product:
    """What ComfyUI's description of a layer says, without an input scale.

    Raises:
        FormatError: a value that cannot be.
        KeyError, TypeError, AttributeError: it is no description.
    """
    named, more = layer["format"], layer.get(_COMFY_PARAMETERS, {})
    if named not in list(Number):
        raise FormatError(f"{where} says {written(named)}; this release reads {' and '.join(Number)}")
    more = more if isinstance(more, dict) else {}
    rotated, group = (layer.get(name, more.get(name)) for name in (_COMFY_ROTATED, _COMFY_GROUP))
    exact = _truth(where, _COMFY_EXACT, layer.get(_COMFY_EXACT, False))
    if Number(named) is not Number.INT8 or not _truth(where, _COMFY_ROTATED, rotated or False):
        return Product(exact, number=Number(named))
    group = LARGEST_GROUP if group is None else group
    if not isinstance(group, int) or group not in GROUPS:
        raise FormatError(f"{where} says {_COMFY_GROUP}: {written(group)}; groups of {several(GROUPS)} are read")
    return Product(exact, number=Number(named), group=group)


def _truth(where: str, name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise FormatError(f"{where} says {name}: {written(value)}, which is neither true nor false")
    return value


def check_metadata(metadata: Mapping[str, str]) -> dict[str, Product]:
    """What ComfyUI's header entry, if there is one, says of layers: by name, as `X` of `X.weight`.

    Raises:
        FormatError: a number format that this release does not read, or an entry that cannot be read.
    """
    if (text := metadata.get(_COMFY_METADATA)) is None:
        return {}
    try:
        layers = json.loads(text)["layers"]
        return {layer: _described(f"the header of {shown(layer)}", found) for layer, found in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FormatError(f"the header's {_COMFY_METADATA} cannot be read") from None


def has_plain_convolutions(metadata: Mapping[str, str]) -> bool:
    """Whether a header says that the file's convolutions have no scale, even in V2."""
    return metadata.get(Metadata.READER.value) == Reader.COMFYUI.value


def format_of(metadata: Mapping[str, str]) -> Format | None:
    """The format that a header's metadata names, None if it names none.

    Raises:
        FormatError: a format that this release does not know.
    """
    named = metadata.get(Metadata.FORMAT.value)
    if named is None:
        return None
    try:
        return Format(named)
    except ValueError:
        raise FormatError(
            f"the file says {Metadata.FORMAT.value}={written(named)}, which this release does not know"
        ) from None
