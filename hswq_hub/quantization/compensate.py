"""Rounds all weights of a plan with compensation, and writes them to a file of the plan's format.

The published file copies its quantized weights from this one, but for those that are kept in the end. Second moments
are of the original model's inputs, so layers are rounded independently, in any order.

INT8 weights are rounded where their inputs are rotated: with W R in place of W, and RᵀHR in place of H. There inputs
are rounded as well, in steps of s for one token, which adds s² / 12 to the second moment of each.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import HSWQError
from hswq_runtime.formats import Format, Number
from hswq_runtime.layers.int8 import rotate
from hswq_runtime.layers.numbers import NUMBERS
from hswq_runtime.loading import load_model

from ..calibration.calibrate import Calibration
from ..common.hardware import dtype_named
from ..common.pieces import Pieces
from ..common.progress import progress
from ..common.threads import Threads
from ..generation.generate import product_flops
from ..settings import CALIBRATION_MEMORY, COMPENSATED, GB, RoundingSettings
from .blocks import BlockReplays, blocks_of, replay_passes
from .choices.best import candidates
from .fold import moved
from .gptq import compensated, conditional_variances
from .kfac import BLOCK, Problem, compensated_both_ways
from .moments import Layer, Moments, layers_of, modules_of, second_moments
from .pieces.rounding import RoundingPieces
from .plan import Decision, Plan
from .search import cheapest_scales
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
    workspace: float | None = None,
    pieces: Pieces | None = None,
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
        workspace: bytes that rounding may work with on the device. As many layers as fit are rounded together, and one
            that does not fit is rounded on the CPU. None: what the largest layer takes.
        pieces: where what is finished is kept and found; None: nowhere.

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
    int8 = {d.key: d.group for plan in plans.values() for d in plan.quantized if d.number is Number.INT8}
    with ExitStack() as stack:
        files = {
            format: stack.enter_context(quantized_file(checkpoint, plan, paths[format], source_sha256=source_sha256))
            for format, plan in plans.items()
        }
        for file in files.values():
            file.copy_kept()
        kept = RoundingPieces(pieces or Pieces(), len(layers), rounding, asdict(settings), source_sha256)
        for key, forms in kept.found():
            for (format, file), (made, scale) in zip(files.items(), forms, strict=True):
                file.put_weight(todo[format][key], made, scale)
        place = next(iter(paths.values())).parent
        replays = stack.enter_context(BlockReplays.open(model, calibration.calls, device, place, room, kept.scratch))
        kept.go_on(replays)
        sizes = {key: layer.moment_bytes(outputs) for key, layer in layers.items()}
        with Threads(flops) as threads:

            def between() -> None:
                threads.adapt()
                kept.prepared()

            parts = replays.parts(modules_of(layers), sizes, memory * GB, between)
        for part in parts:
            of_part = {key: layers[key] for key in part.layers if key not in kept.done}
            if not of_part:
                continue
            moments = kept.moments(of_part)
            if moments is None:
                with Threads(flops) as threads:
                    moments = second_moments(
                        replays,
                        of_part,
                        settings.tokens,
                        computed=part.computed,
                        outputs=outputs,
                        int8={key: int8[key] for key in of_part if key in int8},
                        between=threads.adapt,
                        begun=kept.begun(part, of_part),
                        keep=partial(kept.replayed, part, of_part),
                    )
            with progress(total=len(layers), initial=len(kept.done), desc="round", unit="layer") as bar:
                for keys in _together(of_part, outputs, workspace):
                    fits = workspace is None or working_bytes(layers[keys[0]], outputs) <= workspace
                    where = device if fits else "cpu"
                    weights = {key: checkpoint.tensor(key).to(where) for key in keys}
                    wanted = [
                        _wanted(weights[key], {f: todo[f][key] for f in files}, moments.pop(key).to(where), settings)
                        for key in keys
                    ]
                    with Threads(2.0 * max(weight.numel() for weight in weights.values()), steady=True):
                        found = compensated_layers(wanted, settings)
                    for key, weight, codes in zip(keys, wanted, found, strict=True):
                        scales = [form.scale.cpu() for form in weight.forms]
                        for (format, file), made, scale in zip(files.items(), codes, scales, strict=True):
                            file.put_weight(todo[format][key], made, scale)
                        kept.add(key, [[made.cpu(), scale] for made, scale in zip(codes, scales, strict=True)])
                    kept.rounded(moments)
                    bar.update(len(keys))


@dataclass(frozen=True)
class Form:
    """A weight as it is rounded for one file.

    values: [out, n] or [out, in / groups, kH, kW]; n is the number of inputs of one row. scale: by which readers
    multiply the codes: one value, or one for each row in a shape that broadcasts against the weight. number: of the
    codes. inputs: second moments [groups, n, n] of the inputs that the values are multiplied with; None: those of the
    layer.
    """

    values: torch.Tensor
    scale: torch.Tensor
    number: Number = Number.FP8
    inputs: torch.Tensor | None = None


@dataclass(frozen=True)
class Wanted:
    """A stored weight that is rounded: its form for each file. moments: of its layer; if they include outputs, rounding
    uses both."""

    forms: Sequence[Form]
    moments: Moments


def _wanted(
    weight: torch.Tensor, decisions: Mapping[Format, Decision], moments: Moments, settings: RoundingSettings
) -> Wanted:
    # A fold scales inputs and outputs of each module by a power of two; moments matter only up to a positive factor.
    forms = [
        int8_form(weight, moments, decision.group, settings.damping)
        if decision.number is Number.INT8
        else Form(moved(weight, decision.fold), decision.scale_tensor(weight))
        for decision in decisions.values()
    ]
    return Wanted(forms, moments)


def int8_form(weight: torch.Tensor, moments: Moments, group: int | None, damping: float) -> Form:
    """A weight [out, n] as it is rounded to INT8, with the cheapest scale for each row.

    Args:
        group: inputs that are rotated together.
        damping: see :func:`.gptq.damped`.
    """
    values, (inputs,) = rotate(weight.double(), group), moments.inputs.double()
    turned = rotate(rotate(inputs, group).T, group)
    turned.diagonal().add_(moments.noise)
    scale = cheapest_scales(values, conditional_variances(turned, damping), NUMBERS[Number.INT8].largest).float()
    return Form(values, scale, Number.INT8, turned.unsqueeze(0))


def _together(layers: Mapping[str, Layer], outputs: bool, workspace: float | None = None) -> Iterator[list[str]]:
    """Consecutive layers that fit into the workspace, see `write_compensated`; one that does not is alone."""
    sizes = {key: working_bytes(layer, outputs) for key, layer in layers.items()}
    most = max(sizes.values()) if workspace is None else workspace
    batch: list[str] = []
    for key in layers:
        if batch and sum(sizes[other] for other in batch) + sizes[key] > most:
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch


def compensated_layers(wanted: Sequence[Wanted], settings: RoundingSettings) -> list[list[torch.Tensor]]:
    """Codes for each form of each of `wanted`."""
    found: list[list[list[torch.Tensor]]] = [[[] for _ in weight.forms] for weight in wanted]
    problems: list[Problem] = []
    places: list[list[list[torch.Tensor]]] = []
    for weight, codes in zip(wanted, found, strict=True):
        start = 0
        for place, (group, count) in enumerate(weight.moments.rows):
            rows = slice(start, start := start + count)
            parts, inputs = [_rows(form, rows) for form in weight.forms], weight.moments.inputs[group]
            if weight.moments.outputs is None:
                for target, part in zip(codes, parts, strict=True):
                    h = inputs if part.inputs is None else part.inputs[group]
                    damping, sweeps, number = settings.damping, settings.sweeps, part.number
                    made = compensated(part.values, h, part.scale, number=number, damping=damping, sweeps=sweeps)
                    target.append(made)
                continue
            for forms in _alike(parts):
                problems.append(_problem([parts[i] for i in forms], inputs, weight.moments.outputs[place]))
                places.append([codes[i] for i in forms])
    rounded = compensated_both_ways(problems, damping=settings.damping, output_damping=settings.output_damping)
    for targets, made in zip(places, rounded, strict=True):
        for target, one in zip(targets, made, strict=True):
            target.append(one)
    return [
        [_joined(parts).reshape(form.values.shape) for parts, form in zip(codes, weight.forms, strict=True)]
        for weight, codes in zip(wanted, found, strict=True)
    ]


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.view(torch.uint8) for part in parts]).view(parts[0].dtype)


def _rows(form: Form, rows: slice) -> Form:
    """Some rows of a form: values [rows, n], scale [1, 1] or [rows, 1]."""
    column = form.scale.reshape(-1, 1)
    scale = column if len(column) == 1 else column[rows]
    return replace(form, values=form.values.reshape(len(form.values), -1)[rows], scale=scale)


def _alike(parts: Sequence[Form]) -> list[list[int]]:
    """Which of `parts` have the moments' factors in common: those with the layer's inputs and without scales of their
    own for each row."""
    shared = [i for i, part in enumerate(parts) if part.scale.numel() == 1 and part.inputs is None]
    return [shared] * bool(shared) + [[i] for i in range(len(parts)) if i not in shared]


def _problem(parts: Sequence[Form], inputs: torch.Tensor, outputs: torch.Tensor) -> Problem:
    """Of parts that are alike."""
    first = parts[0]
    if first.scale.numel() > 1 or first.inputs is not None:
        inputs = inputs if first.inputs is None else first.inputs[0]
        return Problem(first.values.unsqueeze(0), inputs, outputs, first.scale, first.number)
    return Problem(torch.stack([part.values.double() / part.scale.double() for part in parts]), inputs, outputs)


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


def steps_of_rounding(checkpoint: Checkpoint, rounding: str, workspace: float | None = None) -> int:
    """Small steps that rounding takes one after the other: an anti-diagonal of what is rounded together, or, without
    outputs, a column."""
    outputs, model = knows_outputs(rounding), checkpoint.empty_model(constants=False)
    layers = _possible_layers(checkpoint, model)
    if not outputs:
        return sum(layer.inputs_shape[1] for layer in layers.values())
    each = {
        key: max(2 * (rows.count + layer.inputs_shape[1]) + 4 * BLOCK for rows in layer.rows)
        for key, layer in layers.items()
    }
    return sum(max(each[key] for key in keys) for keys in _together(layers, outputs, workspace))


@dataclass(frozen=True)
class ReplayMemory:
    """How the memory of a device is shared while calls are replayed and layers rounded.

    moments: GB that second moments, or differences of weights, may take at once. room: bytes for the weights of blocks;
    None: the whole model is there. workspace: see `write_compensated`. needed: bytes in use at once, at least.
    """

    moments: float
    room: float | None
    workspace: float | None
    needed: int

    def weights(self, word: int) -> float | None:
        """How many weights of `word` bytes there is room for."""
        return None if self.room is None else self.room / word


def replay_memory(
    checkpoint: Checkpoint, rounding: str, moments: float, usable: float, *, word: int, call: int
) -> ReplayMemory:
    """The shares, known from shapes. If the model and the moments do not fit together, both get half of what there is,
    but moments those of the largest layer at least, and weights the largest block. Rounding gets what is left, or a
    third, and larger layers are rounded on the CPU.

    moments: GB, the bound that was asked for. usable: bytes of the device; infinite on a CPU. word: bytes of a weight
    there. call: bytes that a replayed call takes besides.
    """
    outputs, model = knows_outputs(rounding), checkpoint.empty_model(constants=False)
    layers = _possible_layers(checkpoint, model).values()
    sizes = [layer.moment_bytes(outputs) for layer in layers] if rounding in COMPENSATED else []
    held = min(int(moments * GB), sum(sizes)) if sizes else int(moments * GB)
    workings = [working_bytes(layer, outputs) for layer in layers] if sizes else []
    working = max((taken for taken in workings if taken <= usable / 3), default=0)
    blocks = [word * sum(p.numel() for p in block.parameters()) for block in blocks_of(model).values()]
    denoiser = word * sum(info.values for info in checkpoint.denoiser_tensors.values())
    needed = denoiser + held + working + call
    if needed <= usable:
        return ReplayMemory(moments, None, None if usable == inf else usable - needed + working, needed)
    outside, largest = denoiser - sum(blocks), max(blocks, default=0)
    left = usable - outside - working - call
    share = int(min(held, max(left / 2, max(sizes, default=0))))
    room = max(left - share, largest)
    return ReplayMemory(share / GB, room, working, int(outside + working + call + share + min(room, sum(blocks))))


def working_bytes(layer: Layer, outputs: bool, forms: int = len(candidates(Format))) -> int:
    """The rounding workspace of one layer in float64: sorted moments, Cholesky temporaries, the weight, its codes and
    the rounding error, as many of each as are alive at once."""
    groups, n, _ = layer.inputs_shape
    together = max(rows.count for rows in layer.rows) if outputs else sum(r.count for r in layer.rows) // groups
    if outputs:  # counted, like the other: `tests/quantization/test_kfac.py`
        return 8 * (4 * n**2 + 4 * together**2 + 3 * forms * together * n)
    return 8 * (5 * n**2 + 3 * together * n)


def _possible_layers(checkpoint: Checkpoint, model: nn.Module) -> dict[str, Layer]:
    possible = [key for key in checkpoint.layers if checkpoint.why_never_quantized(key) is None]
    return layers_of(checkpoint, model, possible)
