"""What a checkpoint is, from its header alone."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from hswq_runtime.checkpoint import Checkpoint


@dataclass(frozen=True)
class Inspection:
    """Facts of one file.

    format: "V1", "V2", "FP8" (cast without our metadata) or "full precision". parameters: values in the
    denoiser. dtypes: values by safetensors dtype. never_quantized: layer -> why. bundled: the components that the file
    holds besides the denoiser. scheduler: what it says of its scheduler's configuration.
    """

    file: str
    file_bytes: int
    architecture: str
    prefix: str
    format: str
    parameters: int
    dtypes: dict[str, int]
    layers: int
    quantized_layers: int
    never_quantized: dict[str, str]
    config: dict
    bundled: list[str]
    scheduler: dict
    metadata: dict[str, str]


def inspect(path: Path) -> Inspection:
    """Read the header of `path`.

    Raises:
        FormatError: not a complete safetensors file, or it does not fit its architecture.
        UnknownArchitectureError: its keys match no architecture that we know.
    """
    checkpoint = Checkpoint(path)
    dtypes: Counter[str] = Counter()
    for key in checkpoint.modules:
        info = checkpoint.tensors[key]
        dtypes[info.dtype] += torch.Size(info.shape).numel()
    reasons = {checkpoint.layer(key): checkpoint.why_never_quantized(key) for key in checkpoint.layers}
    if checkpoint.format is not None:
        kind = checkpoint.format.label
    else:
        kind = "FP8" if checkpoint.quantized else "full precision"
    return Inspection(
        file=checkpoint.path.name,
        file_bytes=checkpoint.path.stat().st_size,
        architecture=checkpoint.architecture.title,
        prefix=checkpoint.prefix,
        format=kind,
        parameters=sum(dtypes.values()),
        dtypes=dict(dtypes),
        layers=len(checkpoint.layers),
        quantized_layers=len(checkpoint.quantized),
        never_quantized={layer: reason for layer, reason in reasons.items() if reason is not None},
        config=checkpoint.config,
        bundled=sorted(checkpoint.bundled),
        scheduler=checkpoint.scheduler,
        metadata=checkpoint.metadata,
    )
