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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import HSWQError
from hswq_runtime.formats import Format, Number, layer_of
from hswq_runtime.layers import fp8, int8
from hswq_runtime.layers.numbers import dequantize
from hswq_runtime.loading import load_model

from ..calibration.calibrate import Calibration
from ..common.hardware import dtype_named
from ..common.pieces import Pieces
from ..common.progress import progress
from ..common.threads import Threads
from ..generation.generate import product_flops
from ..settings import CALIBRATION_MEMORY, GB, ErrorSettings, RoundingSettings
from .blocks import BlockReplays, replay_passes
from .fold import moved
from .moments import thinned
from .pieces.replaying import ReplayPieces
from .plan import LINEAR, Decision, Plan

Codes = Callable[[Decision], tuple[torch.Tensor, torch.Tensor]]
"""Decision -> codes and scale, see `writer.codes_of`."""
INPUT_ROWS = RoundingSettings().tokens


@dataclass(frozen=True)
class Rounded:
    """How the input of a linear layer is rounded: to FP8 at a scale, or to INT8 with so many inputs rotated
    together."""

    number: Number
    scale: float | None = None
    group: int | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """What becomes of `x` [..., n], float32."""
        if self.scale is not None:
            return fp8.saturating_cast(x / self.scale).float() * self.scale
        codes, steps = int8.quantize_rows(x.float(), self.group)
        return int8.dequantize(codes.reshape(-1, x.shape[-1]), steps, torch.float32, self.group).reshape(x.shape)


@dataclass(frozen=True)
class InputRounding:
    """What it does that a linear layer's input is rounded.

    scale: of the input, in FP8; None in INT8. error: mean squared change of the denoiser's output if this layer's input
    alone is rounded; with guidance, of what a step makes of its two calls, see `amplification`. work: multiplications
    that a call of the denoiser spends in the layer. rows: vectors that it multiplies then.
    """

    scale: float | None
    error: float
    work: float
    rows: float


@dataclass(frozen=True)
class Errors:
    """weights: mean squared change of the denoiser's output when one weight alone is quantized, by format and key.
    inputs: when the input of one layer alone is rounded, by what it is rounded to and by key of its weight."""

    weights: dict[Format, dict[str, float]]
    inputs: dict[Number, dict[str, InputRounding]]


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
    how = _roundings(plans, scales)
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
            weights, inputs = _Weights(checkpoint, model), _Inputs(checkpoint, model)
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
                    kept.replayed(part, of_part, number + 1, partial(_sums_of, weights, inputs))
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


def _roundings(plans: Mapping[Format, Plan], scales: Mapping[str, float]) -> dict[Number, dict[str, Rounded]]:
    """How inputs may be rounded by readers of one of the files, by number format and by key of the weight."""
    linear = [d for plan in plans.values() for d in plan.quantized if d.kind == LINEAR]
    found: dict[Number, dict[str, Rounded]] = {
        number: {} for number in Number if any(d.number is number for d in linear)
    }
    for d in linear:
        if d.number is Number.INT8:
            found[d.number][d.key] = Rounded(d.number, group=d.group)
        elif d.key in scales:
            found[d.number][d.key] = Rounded(d.number, scale=scales[d.key])
    return found


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


class _Samples:
    """Sums over one recorded call, squared when it ends, and their mean over the calls."""

    def __init__(self) -> None:
        self._now: dict[str, torch.Tensor] = {}
        self._squares: dict[str, torch.Tensor] = {}
        self._calls: dict[str, torch.Tensor] = {}

    def start(self, key: str, zeros: torch.Tensor) -> None:
        """`zeros`: [k], of k sums that belong to the stored weight `key`."""
        self._now[key], self._squares[key], self._calls[key] = zeros, zeros.double(), zeros.clone()

    def add(self, key: str, part: torch.Tensor) -> None:
        """`part`: [k], of the call that is replayed."""
        self._now[key] = self._now[key] + part

    def end_call(self, values: int) -> None:
        """What came since the last one is of one call, which gave `values`; what is not finite does not count."""
        for key, now in self._now.items():
            finite = now.isfinite()
            self._squares[key] += torch.where(finite, now, 0.0).double().square() / values
            self._calls[key] += finite
            self._now[key] = torch.zeros_like(now)

    def sums(self) -> dict[str, Any]:
        """Everything that a later call adds to."""
        return {"squares": self._squares, "calls": self._calls}

    def go_on(self, sums: Mapping[str, Any]) -> None:
        """Add to `sums` from now on, which an earlier run returned."""
        for key, total in self._squares.items():
            total.copy_(sums["squares"][key])
            self._calls[key].copy_(sums["calls"][key])

    def errors(self, key: str) -> list[float]:
        """The squared change of a value of the output, in the mean of values and calls, for each sum.

        Raises:
            HSWQError: none was finite.
        """
        if not self._calls[key].all():
            raise HSWQError(f"no finite gradient was seen of {key}; try --dtype float32")
        means: list[float] = (self._squares[key] / self._calls[key]).tolist()
        return means


def _sums_of(*samples: _Samples) -> list[dict[str, Any]]:
    return [each.sums() for each in samples]


class _Weights(_Samples):
    """Products of gradients and differences, of the weights of one part."""

    def __init__(self, checkpoint: Checkpoint, model: nn.Module):
        super().__init__()
        self._checkpoint, self._model = checkpoint, model
        self._behind: dict[nn.Parameter, list[tuple[str, slice, torch.Tensor]]] = {}
        self._handles: list[RemovableHandle] = []

    def listen(self, key: str, differences: torch.Tensor) -> None:
        """differences: [k, ...], k different ones of the stored weight `key`."""
        for name, rows, stored in _rows_of(self._checkpoint, key):
            parameter = self._model.get_parameter(name)
            if parameter not in self._behind:
                parameter.requires_grad_(True)
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._hear))
            self._behind.setdefault(parameter, []).append((key, rows, differences[:, stored]))
        self.start(key, torch.zeros(len(differences), device=differences.device))

    def _hear(self, parameter: torch.Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None, "the hook runs after the gradient was accumulated"
        assert isinstance(parameter, nn.Parameter)
        for key, rows, differences in self._behind[parameter]:
            products = gradient[rows].float() * differences
            self.add(key, products.flatten(1).sum(dim=1))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        for parameter in self._behind:
            parameter.requires_grad_(False)


class _Inputs(_Samples):
    """Products of what rounding their inputs loses with the gradients there, of the linear layers of one part.

    At most `INPUT_ROWS` rows of a call count, as for second moments. Losses of rows are independent, so that the square
    of their sum grows with their number.
    """

    def __init__(self, checkpoint: Checkpoint, model: nn.Module):
        super().__init__()
        self._checkpoint, self._model = checkpoint, model
        self._behind: dict[nn.Module, list[tuple[str, slice]]] = {}
        self._how: dict[str, Sequence[Rounded]] = {}
        self._work: dict[str, float] = {}
        self._seen: dict[str, int] = {}
        self._ended = 0
        self._handles: list[RemovableHandle] = []

    def listen(self, key: str, how: Sequence[Rounded], device: torch.device | str) -> None:
        """how: in which ways the input of the layer with the stored weight `key` is rounded."""
        if not how:
            return
        for name, rows, _ in _rows_of(self._checkpoint, key):
            module = self._model.get_submodule(layer_of(name))
            if module not in self._behind:
                self._handles.append(module.register_forward_hook(self._after))
            self._behind.setdefault(module, []).append((key, rows))
        self._how[key], self._work[key], self._seen[key] = how, 0.0, 0
        self.start(key, torch.zeros(len(how), device=device))

    def _after(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        if not (torch.is_grad_enabled() and output.requires_grad):
            return None
        x, rows = inputs[0].detach(), inputs[0].numel() // inputs[0].shape[-1]
        kept = thinned(x.reshape(1, rows, -1), INPUT_ROWS)[0]
        if kept.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
            kept = kept.clone()  # what comes next may be written over it
        output.register_hook(lambda gradients: self._hear(module, kept, rows, gradients))
        return None

    def _hear(self, module: nn.Module, x: torch.Tensor, rows: int, gradients: torch.Tensor) -> None:
        g = thinned(gradients.reshape(1, rows, -1), INPUT_ROWS)[0]
        weight = module.get_parameter("weight").detach()
        lost: dict[Rounded, torch.Tensor] = {}
        for key, piece in self._behind[module]:
            for how in self._how[key]:
                if how not in lost:
                    lost[how] = (how(x) - x.float()) * (rows / len(x)) ** 0.5
            changed = (g[:, piece] @ weight[piece]).float()
            self.add(key, torch.stack([(lost[how] * changed).sum() for how in self._how[key]]))
            self._work[key] += rows * float(weight[piece].numel())
            self._seen[key] += rows

    def end_call(self, values: int) -> None:
        super().end_call(values)
        self._ended += 1

    def sums(self) -> dict[str, Any]:
        return super().sums() | {"work": self._work, "seen": self._seen, "ended": self._ended}

    def go_on(self, sums: Mapping[str, Any]) -> None:
        super().go_on(sums)
        self._work, self._seen, self._ended = sums["work"], sums["seen"], sums["ended"]

    def roundings(self, key: str, amplified: float) -> Iterator[tuple[Rounded, InputRounding]]:
        """What was found of one layer, for each way of rounding. amplified: see :func:`amplification`.

        Raises:
            HSWQError: nothing finite.
        """
        if key not in self._how:
            return
        rows = self._seen[key] / len(self._checkpoint.modules[key]) / self._ended
        for how, error in zip(self._how[key], self.errors(key), strict=True):
            yield how, InputRounding(how.scale, amplified * error, self._work[key] / self._ended, rows)

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def _rows_of(checkpoint: Checkpoint, key: str) -> Iterator[tuple[str, slice, slice]]:
    """The parameters that the stored weight `key` becomes: name, rows there, rows of the stored one."""
    for name in checkpoint.modules[key]:
        row = 0
        for piece in checkpoint.parameters[name]:
            rows = slice(row, row + piece.stop - piece.start)
            if piece.key == key:
                yield name, rows, slice(piece.start, piece.stop)
            row = rows.stop


def _difference(weight: torch.Tensor, decision: Decision, codes: Codes, format: Format) -> torch.Tensor:
    """Float32, in the shape of `weight`: by how much a reader's weight differs from it."""
    values, scale = (tensor.to(weight.device) for tensor in codes(decision))
    scaled = format.scaled or decision.number is Number.INT8
    expanded = dequantize(values, scale if scaled else None, torch.float32, decision.group)
    return moved(expanded, decision.fold, back=True) - weight.float()
