"""The baseline: a plain cast of every layer that can be FP8, without statistics, scales or anything kept."""

from pathlib import Path

import torch

from hswq_runtime.checkpoints.checkpoint import Checkpoint

from .plan import Plan, plan_naive
from .writer import codes_of, write_quantized


def write_naive(
    checkpoint: Checkpoint,
    path: Path,
    *,
    source_sha256: str,
    base: str | None = None,
    device: torch.device | str = "cpu",
) -> Plan:
    """Write the naive cast of `checkpoint` to `path`; returns what was decided for each weight.

    Args:
        source_sha256, base: see :func:`hswq_hub.quantization.writer.write_quantized`.
        device: where to round.

    Raises:
        FormatError: a weight holds NaN or infinity, or a dtype that cannot be copied.
    """
    plan = plan_naive(checkpoint)
    codes = codes_of(checkpoint, plan.format, device=device)
    write_quantized(checkpoint, plan, path, codes, source_sha256=source_sha256, base=base)
    return plan
