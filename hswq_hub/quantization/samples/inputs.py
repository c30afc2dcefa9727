"""What it does to the output that inputs of linear layers are rounded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.formats import Format, Number, layer_of
from hswq_runtime.layers import fp8, int8

from ...settings import RoundingSettings
from ..moments import thinned
from ..plan import LINEAR, Plan
from .samples import Samples, rows_of

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


def roundings_of(plans: Mapping[Format, Plan], scales: Mapping[str, float]) -> dict[Number, dict[str, Rounded]]:
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


class InputSamples(Samples):
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
        for name, rows, _ in rows_of(self._checkpoint, key):
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
