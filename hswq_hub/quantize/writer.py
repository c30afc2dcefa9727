"""Write a quantized file tensor by tensor, so that memory holds one tensor, whatever the file's size.

A safetensors file is an eight-byte length, a JSON header of that length, and the tensors' bytes. All shapes are
known before the first weight is read, so the header is written first and the bytes follow in its order.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from hswq_runtime import formats
from hswq_runtime.checkpoint import Checkpoint, TensorInfo
from hswq_runtime.errors import FormatError
from hswq_runtime.formats import Format, Metadata
from hswq_runtime.fp8 import quantize

from .. import __version__
from ..files import atomic_file
from ..progress import progress
from .plan import Decision, Plan

_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E5M2", formats.DTYPE_FP8), 1),
}
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
)
_CARRIED = {f"modelspec.{name}" for name in _MODEL_SPEC} | {Metadata.CONFIG.value}
"""Header strings of the source that stay true of the quantized file. Others are not carried over: hashes would be
wrong, and trainers and workflow editors leave paths and whole workflows there."""
_HEADER_ALIGNMENT = 8


def write_quantized(
    checkpoint: Checkpoint,
    plan: Plan,
    path: Path,
    *,
    source_sha256: str,
    base: str | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Write the file that `plan` describes: everything the source holds, under the same keys, with the planned
    weights in FP8 and their scales beside them.

    Args:
        checkpoint: the full-precision source.
        plan: what to do with each of its weights.
        path: where to; it appears whole or not at all.
        source_sha256: digest of the source, for the header.
        base: Hub repo of the other components, for the header; None leaves it out.
        device: where to round.

    Raises:
        FormatError: the source holds a dtype that cannot be copied.
    """
    decisions = {d.key: d for d in plan.decisions if d.quantized}
    layout: dict[str, TensorInfo] = {}
    produce: dict[str, Callable[[], torch.Tensor]] = {}
    for key, info in checkpoint.tensors.items():
        decision = decisions.get(key)
        if decision is None:
            layout[key], produce[key] = info, lambda key=key: checkpoint.tensor(key)
            continue
        layout[key] = TensorInfo(formats.DTYPE_FP8, info.shape)
        produce[key] = lambda decision=decision: _rounded(checkpoint, decision, plan.version, device)
        for name, tensor in formats.companions(
            key, decision.scale, plan.version, comfyui=decision.kind == "Linear"
        ).items():
            layout[name] = TensorInfo("U8" if tensor.dtype == torch.uint8 else "F32", tuple(tensor.shape))
            produce[name] = lambda tensor=tensor: tensor
    metadata = _metadata(checkpoint, plan, source_sha256, base)
    with atomic_file(path) as file:
        order, header = _header(layout, metadata)
        file.write(header)
        for name in progress(order, desc=f"write {path.name}", unit="tensor"):
            data = _raw(produce[name]())
            if len(data) != _size(layout[name]):
                raise FormatError(f"{name} has {len(data)} bytes, but {_size(layout[name])} by its dtype and shape")
            file.write(data)


def _rounded(checkpoint: Checkpoint, decision: Decision, version: Format, device) -> torch.Tensor:
    weight = checkpoint.tensor(decision.key).to(device, torch.float32)
    clipped = weight.clamp(-decision.amax, decision.amax)
    return quantize(clipped, torch.tensor(decision.scale, device=weight.device) if version.scaled else None).cpu()


def _metadata(checkpoint: Checkpoint, plan: Plan, source_sha256: str, base: str | None) -> dict[str, str]:
    ours = {
        Metadata.FORMAT: plan.version.value,
        Metadata.ARCHITECTURE: checkpoint.architecture.name,
        Metadata.RECIPE: plan.recipe,
        Metadata.SOURCE_SHA256: source_sha256,
        Metadata.TOOL: f"hswq-hub {__version__}",
    }
    if base is not None:
        ours[Metadata.BASE] = base
    carried = {key: value for key, value in checkpoint.metadata.items() if key in _CARRIED}
    return carried | {key.value: value for key, value in ours.items()}


def _header(layout: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> tuple[list[str], bytes]:
    """The order of the tensors, widest dtype first so that each is aligned to its own size, and the header."""
    unknown = sorted({info.dtype for info in layout.values()} - _BYTES.keys())
    if unknown:
        raise FormatError(f"the source holds tensors of type {', '.join(unknown)}, which this release cannot copy")
    order = sorted(layout, key=lambda name: (-_BYTES[layout[name].dtype], name))
    entries: dict = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in order:
        info = layout[name]
        size = _size(info)
        entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return order, len(text).to_bytes(8, "little") + text


def _size(info: TensorInfo) -> int:
    return torch.Size(info.shape).numel() * _BYTES[info.dtype]


def _raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a CPU tensor, without a copy if it is contiguous."""
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
