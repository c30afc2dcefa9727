"""Writes a quantized file tensor by tensor, with one tensor in memory whatever the file's size.

A safetensors file is an eight-byte length, a JSON header of that length, and the tensors' bytes. All shapes are
known before the first weight is read, so the header is written first and each tensor's bytes go to their place.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hswq_runtime import formats
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.checkpoints.configuration import as_text
from hswq_runtime.checkpoints.header import DTYPE_BITS, TensorInfo
from hswq_runtime.errors import FormatError
from hswq_runtime.fold import fold_entry
from hswq_runtime.formats import Format, Metadata, Number, Reader
from hswq_runtime.layers.fp8 import quantize
from hswq_runtime.layers.numbers import quantize as fresh_codes
from hswq_runtime.text import several

from .. import __version__
from ..common.files import atomic_file
from ..common.prefetch import prefetched
from ..common.progress import progress
from .fold import moved
from .plan import LINEAR, Decision, Plan

_MODEL_SPEC = (
    "title",
    "author",
    "license",
    "description",
    "date",
    "tags",
    "usage_hint",
    "trigger_phrase",
    "architecture",
    "prediction_type",
    "predict_key",
)
_CARRIED = {f"modelspec.{name}" for name in _MODEL_SPEC}
"""Header strings of the source that stay true of the quantized file. Others are not carried over: hashes would be
wrong, and trainers and workflow editors leave paths and whole workflows there."""
_HEADER_ALIGNMENT = 8


Codes = Callable[[Decision], tuple[torch.Tensor, torch.Tensor]]
"""A decision -> its weight's codes, and their scale, which broadcasts against them."""


def write_quantized(
    checkpoint: Checkpoint,
    plan: Plan,
    path: Path,
    codes: Codes | None = None,
    *,
    source_sha256: str,
    base: str | None = None,
) -> None:
    """Write the file that `plan` describes: all tensors of the source under the same keys, the planned ones quantized
    with their scales beside them.

    Args:
        checkpoint: the full-precision source.
        plan: what to do with each of its weights.
        path: where to; it appears whole or not at all.
        codes: what its quantized weights become; None: all are rounded to nearest.
        source_sha256: digest of the source, for the header.
        base: Hub repo of the other components, for the header; None leaves it out.

    Raises:
        FormatError: the source holds a dtype that cannot be copied.
    """
    codes = codes or codes_of(checkpoint, plan.format)
    with quantized_file(checkpoint, plan, path, source_sha256=source_sha256, base=base) as file:
        file.copy_kept()
        todo = plan.quantized
        made = progress(prefetched(todo, codes), total=len(todo), desc=f"write {path.name}", unit="tensor")
        for decision, (weight, scale) in zip(todo, made, strict=True):
            file.put_weight(decision, weight, scale)


def codes_of(
    checkpoint: Checkpoint, format: Format, rounded: Path | None = None, device: torch.device | str = "cpu"
) -> Codes:
    """A function from a decision of a file of `format` to its weight's codes and scale.

    Args:
        rounded: a file of that format from which weights with another rounding than "nearest" are copied.
        device: where to round to nearest.
    """
    already = Checkpoint(rounded) if rounded is not None else None

    def codes(decision: Decision) -> tuple[torch.Tensor, torch.Tensor]:
        if decision.rounding == "nearest":
            weight = moved(checkpoint.tensor(decision.key).to(device), decision.fold)
            return round_to_nearest(weight, decision, format)
        if already is None:
            raise FormatError(f"{decision.key} is to be rounded by {decision.rounding}, but no file with that is given")
        made, scale = already.tensor(decision.key), already.scales[decision.key]
        if decision.number is Number.INT8 and scale is not None:
            return made, scale.reshape(-1, 1)
        return made, decision.scale_tensor(checkpoint.tensor(decision.key))

    return codes


def round_to_nearest(weight: torch.Tensor, decision: Decision, format: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scale of `weight`, which is folded already, clipped at the decision's amax."""
    if decision.number is Number.INT8:
        codes, scale = fresh_codes(weight, Number.INT8, len(weight), decision.group)
        return codes, scale.reshape(-1, 1)
    scale = decision.scale_tensor(weight)
    return quantize(weight, scale if format.scaled else None, decision.amax), scale


class QuantizedFile:
    """A file whose header is written; its tensors may follow in any order."""

    def __init__(self, file: BinaryIO, checkpoint: Checkpoint, plan: Plan, metadata: Mapping[str, str]):
        self._file, self._checkpoint, self._format, self._moves = file, checkpoint, plan.format, plan.moves
        self._layout = planned_layout(checkpoint, plan)
        order, header = _header(self._layout, metadata)
        file.write(header)
        self._offsets, offset = {}, len(header)
        for name in order:
            self._offsets[name] = offset
            offset += self._layout[name].nbytes

    def copy_kept(self) -> None:
        """Everything that stays in the source's precision, in the order of the source's bytes."""
        for key, info in self._checkpoint.tensors.items():
            if self._layout[key] is info:
                self._put(key, moved(self._checkpoint.tensor(key), self._moves.get(key)))

    def put_weight(self, decision: Decision, codes: torch.Tensor, scale: torch.Tensor) -> None:
        """A quantized weight and what goes beside it. `scale` broadcasts against `codes`."""
        self._put(decision.key, codes)
        for name, tensor in _companions(decision, scale, self._format).items():
            self._put(name, tensor)

    def _put(self, name: str, tensor: torch.Tensor) -> None:
        data = _raw(tensor.cpu())
        if len(data) != self._layout[name].nbytes:
            raise FormatError(f"{name} has {len(data)} bytes, but {self._layout[name].nbytes} by its dtype and shape")
        self._file.seek(self._offsets.pop(name))
        self._file.write(data)

    def require_all(self) -> None:
        """Check that nothing was left out."""
        if self._offsets:
            raise FormatError(f"{several(sorted(self._offsets))} was never written; the plan is of another file")


@contextmanager
def quantized_file(
    checkpoint: Checkpoint, plan: Plan, path: Path, *, source_sha256: str, base: str | None = None
) -> Iterator[QuantizedFile]:
    """A :class:`QuantizedFile` that takes the name `path` when the block ends well and the file is whole."""
    with atomic_file(path) as raw:
        file = QuantizedFile(raw, checkpoint, plan, _metadata(checkpoint, plan, source_sha256, base))
        yield file
        file.require_all()
    Checkpoint(path)  # what was written by hand has to open with the library


def planned_layout(checkpoint: Checkpoint, plan: Plan) -> dict[str, TensorInfo]:
    """What the file that `plan` describes will hold."""
    decisions = {d.key: d for d in plan.quantized}
    layout: dict[str, TensorInfo] = {}
    for key, info in checkpoint.tensors.items():
        decision = decisions.get(key)
        if decision is None:
            layout[key] = info
            continue
        layout[key] = TensorInfo(decision.number.dtype, info.shape)
        scale = torch.empty(info.shape[0] if decision.row_scales else 1)
        for name, tensor in _companions(decision, scale, plan.format).items():
            layout[name] = TensorInfo("U8" if tensor.dtype == torch.uint8 else "F32", tuple(tensor.shape))
    return layout


def planned_bytes(checkpoint: Checkpoint, plan: Plan) -> int:
    """Bytes of the file that `plan` describes, without the header's metadata."""
    layout = planned_layout(checkpoint, plan)
    _, header = _header(layout, {})
    return len(header) + sum(info.nbytes for info in layout.values())


def _companions(decision: Decision, scale: torch.Tensor, format: Format) -> dict[str, torch.Tensor]:
    if decision.unscaled:
        return {}
    value = scale.reshape(-1, 1) if decision.row_scales else scale.item()
    product = None
    if decision.exact or decision.input_scale is not None or decision.number is Number.INT8:
        product = formats.Product(decision.exact, decision.input_scale, decision.number, decision.group)
    return formats.companions(decision.key, value, format, comfyui=decision.kind == LINEAR, product=product)


def _metadata(checkpoint: Checkpoint, plan: Plan, source_sha256: str, base: str | None) -> dict[str, str]:
    ours = {
        Metadata.FORMAT: plan.format.value,
        Metadata.ARCHITECTURE: checkpoint.architecture.name,
        Metadata.RECIPE: plan.recipe,
        Metadata.SOURCE_SHA256: source_sha256,
        Metadata.TOOL: f"hswq-hub {__version__}",
    }
    if checkpoint.stated is not None:  # a guess stays a guess
        ours[Metadata.CONFIG] = as_text(checkpoint.architecture.model_class, checkpoint.whole_config)
    if base is not None:
        ours[Metadata.BASE] = base
    if plan.moves:
        ours[Metadata.FOLD] = fold_entry(plan.moves)
    if plan.format.scaled and plan.reader is not Reader.HSWQ:
        ours[Metadata.READER] = plan.reader.value
    carried = {key: value for key, value in checkpoint.metadata.items() if key in _CARRIED}
    return carried | {key.value: value for key, value in ours.items()}


def _header(layout: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> tuple[list[str], bytes]:
    """The order of the tensors, widest dtype first so that each is aligned to its own size, and the header."""
    unknown = sorted({info.dtype for info in layout.values()} - DTYPE_BITS.keys())
    if unknown:
        raise FormatError(f"the source holds tensors of type {several(unknown)}, which this release cannot copy")
    order = sorted(layout, key=lambda name: (-DTYPE_BITS[layout[name].dtype], name))
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in order:
        info = layout[name]
        size = info.nbytes
        entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return order, len(text).to_bytes(8, "little") + text


def _raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a CPU tensor, without a copy if it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
