"""The error that each weight makes by itself, of all weights in one go.

If a weight changes by D, the denoiser's output changes by J D, as far as that is linear, J being the derivative of the
output by the weight. With v from a normal distribution, the gradient of Σ v · output by the weight is Jᵀv, and

    E⟨Jᵀv, D⟩² = ‖J D‖²

so one replay backwards of a recorded call is a sample of the squared error of every weight, for any number of D.
The mean over the calls is taken. Unlike what K-FAC's curvature predicts, tr(G D H Dᵀ), this knows that tokens see the
same D: errors that add up over a picture count as what they come to.

The same replay tells what happens if a layer y = W x multiplies in FP8 or INT8, which rounds x to x + d as well: with g
the gradient at y, the sum over all rows of ⟨Wᵀg, d⟩ is a sample of the change. It is not linear where x is far off, so
the scale is one at which nothing saturates.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import HSWQError
from hswq_runtime.formats import Format, Number, layer_of
from hswq_runtime.layers.numbers import dequantize
from hswq_runtime.loading import load_model

from ..calibration.calibrate import Calibration
from ..common.hardware import dtype_named
from ..common.pieces import Pieces
from ..common.progress import progress
from ..common.threads import Threads
from ..generation.generate import product_flops
from ..settings import CALIBRATION_MEMORY, GB, ErrorSettings
from .blocks import BlockReplays, replay_passes
from .fold import moved
from .pieces.replaying import ReplayPieces
from .plan import Decision, Plan
from .samples.inputs import INPUT_ROWS, InputRounding, InputSamples, roundings_of
from .samples.samples import sums_of
from .samples.weights import WeightSamples
from .writer import Codes


@dataclass(frozen=True)
class Errors:
    """weights: mean squared change of the denoiser's output when one weight alone is quantized, by format and key.
    inputs: when the input of one layer alone is rounded, by what it is rounded to and by key of its weight."""

    weights: dict[Format, dict[str, float]]
    inputs: dict[Number, dict[str, InputRounding]]

    @classmethod
    def load(cls, path: Path) -> "Errors":
        """From JSON of what :func:`dataclasses.asdict` makes of it."""
        document = json.loads(path.read_text(encoding="utf-8"))
        weights = {Format(name): dict(errors) for name, errors in document["weights"].items()}
        inputs = {Number(name): rows for name, rows in document["inputs"].items()}
        return cls(weights, {n: {key: InputRounding(**row) for key, row in rows.items()} for n, rows in inputs.items()})


def measure_errors(
    checkpoint: Checkpoint,
    calibration: Calibration,
    plans: Mapping[Format, Plan],
    codes: Mapping[Format, Codes],
    settings: ErrorSettings,
    *,
    scales: Mapping[str, float],
    place: Path,
    memory: float = CALIBRATION_MEMORY,
    device: torch.device | str = "cpu",
    room: float | None = None,
    pieces: Pieces | None = None,
) -> Errors:
    """The errors of all weights of `plans`, and of rounding the inputs of their linear layers.

    Args:
        checkpoint: the full-precision source.
        calibration: of this source, with recorded calls.
        plans: which weights are quantized; the same ones in each.
        codes: what they become.
        settings: how many of the calls are used, evenly spread.
        scales: at which inputs are rounded to FP8, by key; of others nothing is measured.
        place: folder for what does not fit into memory.
        memory: GB that differences of weights may take at once.
        device: where to replay.
        room: bytes that the weights of the model's blocks may take on the device; None: the whole model is there.
        pieces: where what is finished is kept and found; None: nowhere.

    Raises:
        DeviceError: there is no room for one block.
        HSWQError: nothing was recorded, or of a weight no finite gradient was seen.
    """
    recorded = calibration.calls
    if not recorded:
        raise HSWQError("the calibration holds no recorded calls; run `hswq-hub calibrate` again")
    wanted = min(settings.calls, len(recorded))
    calls = [recorded[i * len(recorded) // wanted] for i in range(wanted)]
    model: Any = load_model(
        checkpoint, dtype_named(calibration.made_by["dtype"]), device=device if room is None else "cpu"
    )
    todo = {format: {d.key: d for d in plan.quantized} for format, plan in plans.items()}
    keys = list(next(iter(todo.values())))
    layers, sizes = _layers(checkpoint, model, keys, len(plans), model.dtype.itemsize)
    found: dict[Format, dict[str, float]] = {format: {} for format in plans}
    how = roundings_of(plans, scales)
    rounded: dict[Number, dict[str, InputRounding]] = {number: {} for number in how}
    amplified = amplification(checkpoint, calibration)
    kept = ReplayPieces(pieces or Pieces(), len(keys), [format.value for format in plans], asdict(settings))
    for key, errors, rows in kept.found():
        for format, error in zip(plans, errors, strict=True):
            found[format][key] = error
        _take(rounded, key, rows)
    with (
        BlockReplays.open(model, calls, device, place, room, kept.scratch) as replays,
        Threads(product_flops(model, calibration.made_by.get("generation", {}).get("size", 0))) as threads,
    ):
        kept.go_on(replays)

        def between() -> None:
            threads.adapt()
            kept.prepared()

        for part in replays.parts(layers, sizes, memory * GB, between):
            weights, inputs = WeightSamples(checkpoint, model), InputSamples(checkpoint, model)
            of_part = [key for key in part.layers if key not in kept.done]
            if not of_part:
                continue
            with closing(weights), closing(inputs):
                for key in of_part:
                    weight = checkpoint.tensor(key).to(device)
                    each = [_difference(weight, todo[f][key], codes[f], f).to(model.dtype) for f in plans]
                    weights.listen(key, torch.stack(each))
                    inputs.listen(key, [of_number[key] for of_number in how.values() if key in of_number], device)
                first, count = 0, len(replays)
                if (begun := kept.begun(part, of_part)) is not None:
                    first, (of_weights, of_inputs) = begun
                    weights.go_on(of_weights)
                    inputs.go_on(of_inputs)
                for number in progress(range(first, count), total=count, initial=first, desc="errors", unit="call"):
                    threads.adapt()
                    values = replays.replay(number, part.computed, backwards=True)
                    weights.end_call(values)
                    inputs.end_call(values)
                    kept.replayed(part, of_part, number + 1, partial(sums_of, weights, inputs))
            for key in of_part:
                for format, error in zip(plans, weights.errors(key), strict=True):
                    found[format][key] = error
                rows = {one.number.value: asdict(result) for one, result in inputs.roundings(key, amplified)}
                _take(rounded, key, rows)
                kept.add(key, [found[format][key] for format in plans], rows)
    in_order = {format: {key: found[format][key] for key in keys} for format in plans}
    return Errors(in_order, {n: {key: rounded[n][key] for key in keys if key in rounded[n]} for n in rounded})


def _take(rounded: dict[Number, dict[str, InputRounding]], key: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """What was found of one layer's inputs, as it is kept on the disk."""
    for number, row in rows.items():
        rounded[Number(number)][key] = InputRounding(**row)


def amplification(checkpoint: Checkpoint, calibration: Calibration) -> float:
    """By how much guidance amplifies the square of what is independent in the two calls of a step, of which it makes
    g · with − (g − 1) · without: g² + (g − 1)². 1 for a model without. What rounding inputs loses is independent there;
    a weight is the same in both, so that most of its error is not amplified."""
    architecture = checkpoint.architecture
    scale, above = calibration.made_by.get("generation", {}).get("guidance"), architecture.guided_above
    if scale is None or above is None or architecture.passes(scale) == 1:
        return 1.0
    g = scale - above + 1  # a scale that guides from 0 on is one less
    return float(g**2 + (g - 1) ** 2)


def passes_of_measuring(
    checkpoint: Checkpoint, formats: int, memory: float, word: int, room: float | None = None
) -> float:
    """What measuring costs for each recorded call, in forward passes of the denoiser; see :func:`replay_passes`. word:
    bytes of a value in the denoiser's dtype. room: in weights."""
    model = checkpoint.empty_model(constants=False)
    keys = [key for key in checkpoint.layers if checkpoint.why_never_quantized(key) is None]
    return replay_passes(model, *_layers(checkpoint, model, keys, formats, word), memory * GB, room, backwards=True)


def _layers(
    checkpoint: Checkpoint, model: nn.Module, keys: Iterable[str], formats: int, word: int
) -> tuple[dict[str, nn.Module], dict[str, int]]:
    """Of each weight a module that computes with it, and the bytes of its differences and of the inputs that wait for
    their gradients."""
    layers = {key: model.get_submodule(layer_of(next(iter(checkpoint.modules[key])))) for key in keys}
    return layers, {
        key: word * (formats * checkpoint.tensors[key].values + _waiting(module)) for key, module in layers.items()
    }


def _waiting(module: nn.Module) -> int:
    return INPUT_ROWS * module.in_features if isinstance(module, nn.Linear) else 0


def _difference(weight: torch.Tensor, decision: Decision, codes: Codes, format: Format) -> torch.Tensor:
    """Float32, in the shape of `weight`: by how much a reader's weight differs from it."""
    values, scale = (tensor.to(weight.device) for tensor in codes(decision))
    scaled = format.scaled or decision.number is Number.INT8
    expanded = dequantize(values, scale if scaled else None, torch.float32, decision.group)
    return moved(expanded, decision.fold, back=True) - weight.float()
