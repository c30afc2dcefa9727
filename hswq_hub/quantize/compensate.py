"""All weights of a plan with compensated rounding, in a file of the plan's format.

The file is what the others are made of: whatever is not kept in the end is copied from it. Second moments are of the
original's inputs, so layers do not depend on each other or on the order in which they are done.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

from hswq_runtime.checkpoint import Checkpoint
from hswq_runtime.formats import Format, layer_of
from hswq_runtime.loading import load_model

from ..calibrate import Calibration
from ..progress import progress
from ..settings import CALIBRATION_MEMORY, RoundingSettings
from .fold import moved
from .gptq import compensated_layer
from .moments import in_groups, second_moments
from .plan import Plan
from .writer import quantized_file


def write_compensated(
    checkpoint: Checkpoint,
    calibration: Calibration,
    plans: Mapping[Format, Plan],
    paths: Mapping[Format, Path],
    settings: RoundingSettings,
    *,
    source_sha256: str,
    memory: float = CALIBRATION_MEMORY,
    device: torch.device | str = "cpu",
) -> None:
    """Write the file of each plan to the path of its format.

    Args:
        checkpoint: the full-precision source.
        calibration: of this source, with recorded calls.
        plans: what to round; they quantize the same weights.
        memory: GB that second moments may take at once. A smaller bound costs more replays, and changes nothing else.
        device: where to replay and to round.

    Raises:
        HSWQError: one layer's moments do not fit, or there are no recorded calls.
    """
    check_memory(checkpoint, memory)
    model = load_model(checkpoint, getattr(torch, calibration.made_by["dtype"])).to(device)
    todo = {version: {d.key: d for d in plan.quantized} for version, plan in plans.items()}
    keys = next(iter(todo.values()))
    modules = _modules(checkpoint, model, keys)
    with ExitStack() as stack:
        files = {
            version: stack.enter_context(quantized_file(checkpoint, plan, paths[version], source_sha256=source_sha256))
            for version, plan in plans.items()
        }
        for file in files.values():
            file.copy_kept()
        for group in in_groups(modules, memory):
            moments = second_moments(model, group, calibration.calls, device, settings.tokens)
            for key in progress(group, desc="round", unit="layer"):
                weight = checkpoint.tensor(key).to(device)
                for version, file in files.items():
                    decision = todo[version][key]
                    scale = decision.scale_tensor(weight)
                    # A fold divides the inputs by one power of two, and moments count up to a positive multiple.
                    codes = compensated_layer(
                        moved(weight, decision.fold),
                        moments[key],
                        scale if version.scaled else None,
                        damping=settings.damping,
                        sweeps=settings.sweeps,
                    )
                    file.put_weight(decision, codes, scale)
                del moments[key]


def check_memory(checkpoint: Checkpoint, memory: float) -> int:
    """Check that each layer's second moments fit; returns how often the recorded calls will be replayed.

    Known from shapes alone: no weight is read.

    Raises:
        HSWQError: one layer's moments alone take more than `memory` GB.
    """
    possible = [key for key in checkpoint.layers if checkpoint.why_never_quantized(key) is None]
    return sum(1 for _ in in_groups(_modules(checkpoint, checkpoint.empty_model(constants=False), possible), memory))


def _modules(checkpoint: Checkpoint, model: torch.nn.Module, keys: Iterable[str]) -> dict[str, torch.nn.Module]:
    """By key the module whose inputs count. All behind a fused tensor are given the same: the first speaks for them."""
    return {key: model.get_submodule(layer_of(checkpoint.modules[key][0])) for key in keys}
