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
from hswq_runtime.formats import Format, Metadata
from hswq_runtime.fp8 import quantize

from .. import __version__
from ..files import atomic_file
from ..progress import progress
from .plan import Decision, Plan

_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
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
            file.write(_raw(produce[name]()))


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
    return {**checkpoint.metadata, **{key.value: value for key, value in ours.items()}}


def _header(layout: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> tuple[list[str], bytes]:
    """The order of the tensors, widest dtype first so that each is aligned to its own size, and the header."""
    order = sorted(layout, key=lambda name: (-_BYTES.get(layout[name].dtype, 1), name))
    entries: dict = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in order:
        info = layout[name]
        size = torch.Size(info.shape).numel() * _BYTES.get(info.dtype, 1)
        entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return order, len(text).to_bytes(8, "little") + text


def _raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a CPU tensor, without a copy if it is contiguous."""
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
