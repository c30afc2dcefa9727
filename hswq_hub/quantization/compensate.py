"""Rounds all weights of a plan with compensation, and writes them to a file of the plan's format.

The published file copies its FP8 weights from this one, but for those that are kept in the end. Second moments are of
the original model's inputs, so layers are rounded independently, in any order.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import HSWQError
from hswq_runtime.formats import Format
from hswq_runtime.layers.fp8 import FP8
from hswq_runtime.loading import load_model

from ..calibration.calibrate import Calibration
from ..common.hardware import dtype_named
from ..common.progress import progress
from ..common.threads import Threads
from ..generation.generate import product_flops
from ..settings import CALIBRATION_MEMORY, GB, RoundingSettings
from .blocks import BlockReplays, replay_passes
from .fold import moved
from .gptq import compensated
from .kfac import compensated_both_ways
from .moments import Layer, Moments, layers_of, modules_of, second_moments
from .plan import Plan
from .writer import quantized_file


def write_compensated(
    checkpoint: Checkpoint,
    calibration: Calibration,
    plans: Mapping[Format, Plan],
    paths: Mapping[Format, Path],
    rounding: str,
    settings: RoundingSettings,
    *,
    source_sha256: str,
    memory: float = CALIBRATION_MEMORY,
    device: torch.device | str = "cpu",
    room: float | None = None,
) -> None:
    """Write the file of each plan to the path of its format.

    Args:
        checkpoint: the full-precision source.
        calibration: of this source, with recorded calls.
        plans: what to round; they quantize the same weights.
        rounding: "gptq" or "kfac", which also replays backwards.
        memory: GB that second moments may take at once. With a smaller bound more goes over the disk; what comes out is
            the same.
        device: where to replay and to round.
        room: bytes that the weights of the model's blocks may take on the device; None: the whole model is there.

    Raises:
        DeviceError: there is no room for one block.
        HSWQError: one layer's moments do not fit, or there are no recorded calls.
    """
    outputs = knows_outputs(rounding)
    passes_of_rounding(checkpoint, rounding, memory)  # whether it fits, before anything is read
    model: Any = load_model(
        checkpoint, dtype_named(calibration.made_by["dtype"]), device=device if room is None else "cpu"
    )
    size = calibration.made_by.get("generation", {}).get("size", 0)
    flops = product_flops(model, size)
    todo = {format: {d.key: d for d in plan.quantized} for format, plan in plans.items()}
    layers = layers_of(checkpoint, model, next(iter(todo.values())))
    with ExitStack() as stack:
        files = {
            format: stack.enter_context(quantized_file(checkpoint, plan, paths[format], source_sha256=source_sha256))
            for format, plan in plans.items()
        }
        for file in files.values():
            file.copy_kept()
        replays = stack.enter_context(
            BlockReplays.open(model, calibration.calls, device, next(iter(paths.values())).parent, room)
        )
        sizes = {key: layer.moment_bytes(outputs) for key, layer in layers.items()}
        with Threads(flops) as threads:
            parts = replays.parts(modules_of(layers), sizes, memory * GB, threads.adapt)
        for part in parts:
            of_part = {key: layers[key] for key in part.layers}
            with Threads(flops) as threads:
                moments = second_moments(
                    replays, of_part, settings.tokens, computed=part.computed, outputs=outputs, between=threads.adapt
                )
            for key in progress(of_part, desc="round", unit="layer"):
                weight = checkpoint.tensor(key).to(device)
                decisions = {format: todo[format][key] for format in files}
                scales = {format: decision.scale_tensor(weight) for format, decision in decisions.items()}
                # A fold scales inputs and outputs of each module by a power of two, and moments matter only up to a
                # positive factor.
                wanted = [
                    (moved(weight, decision.fold), scales[format] if format.scaled else None)
                    for format, decision in decisions.items()
                ]
                with Threads(2.0 * weight.numel(), steady=True):
                    found = compensated_layer(wanted, moments[key], settings)
                for (format, file), codes in zip(files.items(), found, strict=True):
                    file.put_weight(decisions[format], codes, scales[format])
                del moments[key]


def compensated_layer(
    wanted: Sequence[tuple[torch.Tensor, torch.Tensor | None]], moments: Moments, settings: RoundingSettings
) -> list[torch.Tensor]:
    """FP8 codes for each of `wanted`: forms of one stored weight [out, n] or [out, in / groups, kH, kW], and the scale
    of each; n is the number of inputs of one row.

    moments: of its layer; if they include outputs, rounding uses both. scale: None, one value, or one for each row in a
    shape that broadcasts against the weight.
    """
    found: list[list[torch.Tensor]] = [[] for _ in wanted]
    start = 0
    for place, (group, count) in enumerate(moments.rows):
        rows = slice(start, start := start + count)
        outputs = None if moments.outputs is None else moments.outputs[place]
        parts = [_rows(weight, scale, rows) for weight, scale in wanted]
        for codes, part in zip(found, _rounded(parts, moments.inputs[group], outputs, settings), strict=True):
            codes.append(part.view(torch.uint8))
    return [torch.cat(codes).view(FP8).reshape(weight.shape) for codes, (weight, _) in zip(found, wanted, strict=True)]


def _rows(weight: torch.Tensor, scale: torch.Tensor | None, rows: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Some rows of a weight, [rows, n], and of its scale, [1, 1] or [rows, 1]."""
    part = weight.reshape(len(weight), -1)[rows]
    if scale is None:
        return part, None
    column = scale.reshape(-1, 1)
    return part, column if len(column) == 1 else column[rows]


def _rounded(
    parts: list[tuple[torch.Tensor, torch.Tensor | None]],
    inputs: torch.Tensor,
    outputs: torch.Tensor | None,
    settings: RoundingSettings,
) -> list[torch.Tensor]:
    """Codes of each of `parts`. Those without scales of their own for each row have the moments' factors in common."""
    if outputs is None:
        return [
            compensated(weight, inputs, scale, damping=settings.damping, sweeps=settings.sweeps)
            for weight, scale in parts
        ]
    both_ways = partial(
        compensated_both_ways,
        inputs=inputs,
        outputs=outputs,
        damping=settings.damping,
        output_damping=settings.output_damping,
    )
    codes: dict[int, torch.Tensor] = {}
    alike = [i for i, (_, scale) in enumerate(parts) if scale is None or scale.numel() == 1]
    if alike:
        codes |= dict(zip(alike, both_ways(torch.stack([_unscaled(*parts[i]) for i in alike])), strict=True))
    for i, (weight, scale) in enumerate(parts):
        if i not in codes:
            codes[i] = both_ways(weight.unsqueeze(0), row_scale=scale)[0]
    return [codes[i] for i in range(len(parts))]


def _unscaled(weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return weight.double() if scale is None else weight.double() / scale.double()


def knows_outputs(rounding: str) -> bool:
    """Whether this rounding uses the second moments of outputs."""
    return rounding == "kfac"


def passes_of_rounding(checkpoint: Checkpoint, rounding: str, memory: float, room: float | None = None) -> float:
    """What replaying one recorded call costs, in forward passes of the denoiser, see :func:`replay_passes`; `room` in
    weights.

    Known from shapes alone: no weight is read.

    Raises:
        HSWQError: one layer's moments alone take more than `memory` GB.
    """
    outputs, model = knows_outputs(rounding), checkpoint.empty_model(constants=False)
    layers = _possible_layers(checkpoint, model)
    sizes = {key: layer.moment_bytes(outputs) for key, layer in layers.items()}
    for key, size in sizes.items():
        if size > memory * GB:
            raise HSWQError(
                f"the second moments of {key} alone take {size / GB:.2g} GB; raise --calibration-memory to that"
            )
    return replay_passes(model, modules_of(layers), sizes, memory * GB, room, backwards=outputs)


def rounding_bytes(checkpoint: Checkpoint, rounding: str, memory: float) -> int:
    """Bytes that compensated rounding needs beside the model: second moments, at most `memory` GB, and the
    workspace."""
    outputs = knows_outputs(rounding)
    layers = _possible_layers(checkpoint, checkpoint.empty_model(constants=False)).values()
    moments = min(int(memory * GB), sum(layer.moment_bytes(outputs) for layer in layers))
    return moments + max(working_bytes(layer, outputs) for layer in layers)


def working_bytes(layer: Layer, outputs: bool) -> int:
    """The rounding workspace of one layer in float64: sorted moments, Cholesky temporaries, the weight, its codes and
    the rounding error, as many of each as are alive at once."""
    groups, n, _ = layer.inputs_shape
    together = max(rows.count for rows in layer.rows) if outputs else sum(r.count for r in layer.rows) // groups
    if outputs:  # counted, like the other: `tests/quantization/test_kfac.py`
        return 8 * (4 * n**2 + 4 * together**2 + 3 * together * n)
    return 8 * (5 * n**2 + 3 * together * n)


def _possible_layers(checkpoint: Checkpoint, model: nn.Module) -> dict[str, Layer]:
    possible = [key for key in checkpoint.layers if checkpoint.why_never_quantized(key) is None]
    return layers_of(checkpoint, model, possible)
