"""The error that each weight makes by itself, of all weights in one go.

If a weight changes by D, the denoiser's output changes by J D, as far as that is linear, J being the derivative of the
output by the weight. With v from a normal distribution, the gradient of Σ v · output by the weight is Jᵀv, and

    E⟨Jᵀv, D⟩² = ‖J D‖²

so one replay backwards of a recorded call is a sample of the squared error of every weight, for any number of D.
The mean over the calls is taken. Unlike what K-FAC's curvature predicts, tr(G D H Dᵀ), this knows that tokens see the
same D: errors that add up over a picture count as what they come to.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import HSWQError
from hswq_runtime.formats import Format, layer_of
from hswq_runtime.layers.fp8 import dequantize
from hswq_runtime.loading import load_model

from ..calibration.calibrate import Calibration
from ..common.hardware import dtype_named
from ..common.progress import progress
from ..common.threads import Threads
from ..generation.generate import product_flops
from ..settings import CALIBRATION_MEMORY, GB, ErrorSettings
from .blocks import BlockReplays, replay_passes
from .fold import moved
from .plan import Decision, Plan

Codes = Callable[[Decision], tuple[torch.Tensor, torch.Tensor]]
"""Decision -> FP8 codes and scale, see `writer.codes_of`."""


def measure_errors(
    checkpoint: Checkpoint,
    calibration: Calibration,
    plans: Mapping[Format, Plan],
    codes: Mapping[Format, Codes],
    settings: ErrorSettings,
    *,
    place: Path,
    memory: float = CALIBRATION_MEMORY,
    device: torch.device | str = "cpu",
) -> dict[Format, dict[str, float]]:
    """Mean squared change of the denoiser's output when one weight of `plans` alone is quantized, by format and key.

    Args:
        checkpoint: the full-precision source.
        calibration: of this source, with recorded calls.
        plans: which weights are quantized; the same ones in each.
        codes: what they become.
        settings: how many of the calls are used, evenly spread.
        place: folder for what does not fit into memory.
        memory: GB that differences of weights may take at once.
        device: where to replay.

    Raises:
        HSWQError: nothing was recorded, or of a weight no finite gradient was seen.
    """
    recorded = calibration.calls
    if not recorded:
        raise HSWQError("the calibration holds no recorded calls; run `hswq-hub calibrate` again")
    wanted = min(settings.calls, len(recorded))
    calls = [recorded[i * len(recorded) // wanted] for i in range(wanted)]
    model: Any = load_model(checkpoint, dtype_named(calibration.made_by["dtype"]), device=device)
    todo = {format: {d.key: d for d in plan.quantized} for format, plan in plans.items()}
    keys = list(next(iter(todo.values())))
    layers, sizes = _layers(checkpoint, model, keys, len(plans) * model.dtype.itemsize)
    found: dict[Format, dict[str, float]] = {format: {} for format in plans}
    with (
        BlockReplays.open(model, calls, device, place) as replays,
        Threads(product_flops(model, calibration.made_by.get("generation", {}).get("size", 0))) as threads,
    ):
        for part in replays.parts(layers, sizes, memory * GB, threads.adapt):
            gather = _Gather(checkpoint, model)
            for key in part.layers:
                weight = checkpoint.tensor(key).to(device)
                each = [_difference(weight, todo[f][key], codes[f], f).to(model.dtype) for f in plans]
                gather.listen(key, torch.stack(each))
            try:
                for number in progress(range(len(replays)), desc="errors", unit="call"):
                    threads.adapt()
                    gather.end_call(replays.replay(number, part.computed, backwards=True))
            finally:
                gather.close()
            for key in part.layers:
                for format, error in zip(plans, gather.errors(key), strict=True):
                    found[format][key] = error
    return {format: {key: found[format][key] for key in keys} for format in plans}


def passes_of_measuring(checkpoint: Checkpoint, formats: int, memory: float, word: int) -> float:
    """What measuring costs for each recorded call, in forward passes of the denoiser; see :func:`replay_passes`. word:
    bytes of a value in the denoiser's dtype."""
    model = checkpoint.empty_model(constants=False)
    keys = [key for key in checkpoint.layers if checkpoint.why_never_quantized(key) is None]
    return replay_passes(model, *_layers(checkpoint, model, keys, formats * word), memory * GB, backwards=True)


def _layers(
    checkpoint: Checkpoint, model: nn.Module, keys: Iterable[str], each: int
) -> tuple[dict[str, nn.Module], dict[str, int]]:
    """Of each weight a module that computes with it, and the bytes of its differences, `each` a value."""
    layers = {key: model.get_submodule(layer_of(next(iter(checkpoint.modules[key])))) for key in keys}
    return layers, {key: each * checkpoint.tensors[key].values for key in layers}


class _Gather:
    """Products of gradients and differences, of the weights of one part."""

    def __init__(self, checkpoint: Checkpoint, model: nn.Module):
        self._checkpoint, self._model = checkpoint, model
        self._behind: dict[nn.Parameter, list[tuple[str, slice, torch.Tensor]]] = {}
        self._now: dict[str, torch.Tensor] = {}
        self._squares: dict[str, torch.Tensor] = {}
        self._calls: dict[str, torch.Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def listen(self, key: str, differences: torch.Tensor) -> None:
        """differences: [k, ...], k different ones of the stored weight `key`."""
        for name in self._checkpoint.modules[key]:
            parameter, row = self._model.get_parameter(name), 0
            if parameter not in self._behind:
                parameter.requires_grad_(True)
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._add))
            for piece in self._checkpoint.parameters[name]:
                rows = slice(row, row + piece.stop - piece.start)
                if piece.key == key:
                    part = differences[:, piece.start : piece.stop]
                    self._behind.setdefault(parameter, []).append((key, rows, part))
                row = rows.stop
        zeros = torch.zeros(len(differences), device=differences.device)
        self._now[key], self._squares[key], self._calls[key] = zeros, zeros.double(), zeros.clone()

    def _add(self, parameter: torch.Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None, "the hook runs after the gradient was accumulated"
        assert isinstance(parameter, nn.Parameter)
        for key, rows, differences in self._behind[parameter]:
            products = gradient[rows].float() * differences
            self._now[key] = self._now[key] + products.flatten(1).sum(dim=1)

    def end_call(self, values: int) -> None:
        """What came since the last one is of one call, which gave `values`; what is not finite does not count."""
        for key, now in self._now.items():
            finite = now.isfinite()
            self._squares[key] += torch.where(finite, now, 0.0).double().square() / values
            self._calls[key] += finite
            self._now[key] = torch.zeros_like(now)

    def errors(self, key: str) -> list[float]:
        """The squared change of a value of the output, in the mean of values and calls, for each difference.

        Raises:
            HSWQError: none was finite.
        """
        if not self._calls[key].all():
            raise HSWQError(f"no finite gradient was seen of {key}; try --dtype float32")
        means: list[float] = (self._squares[key] / self._calls[key]).tolist()
        return means

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        for parameter in self._behind:
            parameter.requires_grad_(False)


def _difference(weight: torch.Tensor, decision: Decision, codes: Codes, format: Format) -> torch.Tensor:
    """Float32, in the shape of `weight`: by how much a reader's weight differs from it."""
    values, scale = (tensor.to(weight.device) for tensor in codes(decision))
    expanded = dequantize(values, scale if format.scaled else None, torch.float32)
    return moved(expanded, decision.fold, back=True) - weight.float()
