"""Second moments of layers' inputs and of gradients at their outputs, gathered by replaying recorded calls.

For y = W x and g = ∂L/∂y, L a scalar function of the model's output, a change D of W changes L by Σ_t gₜᵀ D xₜ over all
tokens t. Rounding minimises the expected square of that (see `kfac.py`), which takes

    inputs   E[xxᵀ], or with outputs E[|g|² xxᵀ]: tokens are weighted by their influence
    outputs  E[ggᵀ], where g is that of Σ v · output with v drawn from a normal distribution, for each call anew:
             then E[ggᵀ] is JᵀJ, J the derivative of the model's output (Hutchinson's estimator)

A layer with n inputs and m outputs has n² + m² of them, which for a model of 6 billion parameters is more than the
model itself. So layers are processed in groups that fit a bound on memory, and only the blocks that these are in are
replayed, see `blocks.py`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import HSWQError
from hswq_runtime.formats import layer_of
from hswq_runtime.layers.int8 import rotate, row_scale

from ..common.progress import progress
from ..settings import RoundingSettings
from .blocks import BlockReplays

_WORD = torch.float32.itemsize
TOGETHER = 4096
"""Rows of a weight that share second moments of outputs; a larger weight is cut."""


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a stored weight: `count` outputs of `module`, from `start` on in one group (of a
    convolution)."""

    module: nn.Module
    group: int
    start: int
    count: int


@dataclass(frozen=True)
class Layer:
    """A stored weight and the modules that compute with it, which share their input.

    rows: all rows of the weight, in order.
    """

    rows: tuple[Rows, ...]

    @property
    def inputs_shape(self) -> tuple[int, int, int]:
        """[groups, n, n], n being the length of an unfolded row of the weight."""
        module = self.rows[0].module
        n = _weight(module)[0].numel()
        return _groups(module), n, n

    def moment_bytes(self, outputs: bool) -> int:
        """Bytes of its second moments; with those of outputs also of its inputs, which are held until the gradient."""
        values = torch.Size(self.inputs_shape).numel()
        if outputs:
            waiting = RoundingSettings().tokens * self.inputs_shape[0] * self.inputs_shape[1]
            values += waiting + sum(rows.count**2 for rows in self.rows)
        return _WORD * values


@dataclass(frozen=True)
class Moments:
    """Second moments of one layer, each up to a positive factor.

    inputs: float32 [groups, n, n]. rows: the layer's rows, as runs of (group, count). outputs: float32 [count, count]
    for each run; None: rows are rounded independently. noise: what rounding an input to INT8 adds to the second moment
    of each, in the unit of `inputs`.
    """

    inputs: torch.Tensor
    rows: tuple[tuple[int, int], ...]
    outputs: tuple[torch.Tensor, ...] | None = None
    noise: float = 0.0

    def to(self, device: torch.device | str) -> "Moments":
        """The same on `device`."""
        outputs = None if self.outputs is None else tuple(output.to(device) for output in self.outputs)
        return Moments(self.inputs.to(device), self.rows, outputs, self.noise)


def layers_of(
    checkpoint: Checkpoint, model: nn.Module, keys: Iterable[str], *, together: int = TOGETHER
) -> dict[str, Layer]:
    """The modules of `model`, a denoiser made from `checkpoint`, that compute with each stored weight, by key.

    together: at most so many rows share second moments of outputs.

    Raises:
        HSWQError: some of a weight's rows are used twice.
    """
    layers = {key: Layer(tuple(_rows_of(checkpoint, model, key, together))) for key in keys}
    for key, layer in layers.items():
        if sum(rows.count for rows in layer.rows) != checkpoint.tensors[key].shape[0]:
            raise HSWQError(
                f"rows of {key} are used more than once, which compensated rounding cannot; --rounding nearest"
            )
    return layers


def modules_of(layers: Mapping[str, Layer]) -> dict[str, nn.Module]:
    """Of each layer a module that computes with it; the others are in the same block."""
    return {name: layer.rows[0].module for name, layer in layers.items()}


def _rows_of(checkpoint: Checkpoint, model: nn.Module, key: str, together: int) -> Iterable[Rows]:
    runs = []
    for name in checkpoint.modules[key]:
        start = 0
        for piece in checkpoint.parameters[name]:
            count = piece.stop - piece.start
            if piece.key == key:
                runs.append((piece.start, model.get_submodule(layer_of(name)), start, count))
            start += count
    for _, module, start, count in sorted(runs, key=lambda run: run[0]):
        in_group = len(_weight(module)) // _groups(module)
        while count:
            taken = min(count, in_group - start % in_group, together)
            yield Rows(module, start // in_group, start % in_group, taken)
            start, count = start + taken, count - taken


def _weight(module: nn.Module) -> torch.Tensor:
    return module.get_parameter("weight")


def _groups(module: nn.Module) -> int:
    return module.groups if isinstance(module, nn.Conv2d) else 1


def layer_rows(module: nn.Module, inputs: torch.Tensor, tokens: int) -> torch.Tensor:
    """The input vectors that a layer multiplies its rows with, at most `tokens` of them: float32 [groups, tokens, n].

    `inputs`: [..., n] of a linear layer; [B, C, H, W] of a convolution, whose patches become rows.
    """
    if not isinstance(module, nn.Conv2d):
        return thinned(inputs.reshape(1, -1, inputs.shape[-1]), tokens).float()
    if isinstance(module.padding, str):  # "same" or "valid", which torch has worked out already
        worked_out = module._reversed_padding_repeated_twice[2::-2]
        padding = (worked_out[0], worked_out[1]) if module.padding == "same" else (0, 0)
    else:
        padding = (module.padding[0], module.padding[1])
    if module.padding_mode != "zeros":
        inputs, padding = F.pad(inputs, module._reversed_padding_repeated_twice, mode=module.padding_mode), (0, 0)
    patches = F.unfold(inputs, module.kernel_size, module.dilation, padding, module.stride)
    batch, _, places = patches.shape
    grouped = patches.reshape(batch, module.groups, -1, places)
    return thinned(grouped.permute(1, 0, 3, 2).reshape(module.groups, batch * places, -1), tokens).float()


def gradient_rows(module: nn.Module, gradients: torch.Tensor, tokens: int) -> torch.Tensor:
    """Gradients at the outputs, in the order of :func:`layer_rows`: float32 [groups, tokens, outputs of a group].

    `gradients`: [..., m] of a linear layer; [B, C, H, W] of a convolution.
    """
    if not isinstance(module, nn.Conv2d):
        return thinned(gradients.reshape(1, -1, gradients.shape[-1]), tokens).float()
    batch = len(gradients)
    grouped = gradients.reshape(batch, module.groups, len(module.weight) // module.groups, -1)
    return thinned(grouped.permute(1, 0, 3, 2).flatten(1, 2), tokens).float()


def thinned(rows: torch.Tensor, wanted: int) -> torch.Tensor:
    """[groups, tokens, n] -> at most `wanted` of the tokens, evenly spread."""
    count = rows.shape[1]
    if count <= wanted:
        return rows
    return rows[:, torch.arange(wanted, device=rows.device) * count // wanted]


def second_moments(
    replays: BlockReplays,
    layers: Mapping[str, Layer],
    tokens: int = RoundingSettings().tokens,
    *,
    computed: Collection[str] | None = None,
    outputs: bool = False,
    int8: Mapping[str, int | None] | None = None,
    between: Callable[[], None] = lambda: None,
    begun: tuple[int, Any] | None = None,
    keep: Callable[[int, Callable[[], object]], None] = lambda *_: None,
) -> dict[str, Moments]:
    """The second moments of each of `layers` (of the model of `replays`, by any name), on the model's device.

    At most `tokens` input vectors of one call of a layer are used, and none of a call with non-finite values. computed:
    see :meth:`BlockReplays.replay`. outputs: gather those of outputs as well, which takes a backward pass for every
    replay. int8: of layers whose inputs are rounded to INT8 how many are rotated together. between: called before each
    replay. begun: how many calls an earlier run replayed, and its sums. keep: told the same after each replay.

    Raises:
        HSWQError: nothing was recorded, or a layer saw nothing finite.
    """
    if not len(replays):
        raise HSWQError("the calibration holds no recorded calls; run `hswq-hub calibrate` again")
    gather = (_Both if outputs else _Inputs)(layers, replays.device, tokens, int8 or {})
    handles = [module.register_forward_hook(gather.after) for module in gather.modules]
    first, count = 0, len(replays)
    if begun is not None:
        first = begun[0]
        gather.go_on(begun[1])
    try:
        for number in progress(range(first, count), total=count, initial=first, desc="second moments", unit="call"):
            between()
            replays.replay(number, computed, backwards=outputs)
            keep(number + 1, gather.sums)
    finally:
        for handle in handles:
            handle.remove()
    if silent := gather.silent():
        raise HSWQError(f"nothing finite was seen of {', '.join(silent)}; try --dtype float32")
    return {name: gather.moments(name) for name in layers}


class _Inputs:
    """Sums over the inputs of layers."""

    def __init__(
        self,
        layers: Mapping[str, Layer],
        device: torch.device | str,
        tokens: int,
        int8: Mapping[str, int | None],
    ):
        self._layers, self._tokens, self._int8 = layers, tokens, int8
        self._noise = {name: torch.zeros((), dtype=torch.float64, device=device) for name in int8}
        self._sums = {
            name: torch.zeros(layer.inputs_shape, dtype=torch.float32, device=device) for name, layer in layers.items()
        }
        self._count = dict.fromkeys(layers, 0)
        self._behind: dict[nn.Module, list[str]] = {}
        for name, layer in layers.items():
            for module in self._speakers(layer):
                self._behind.setdefault(module, []).append(name)

    @property
    def modules(self) -> Iterable[nn.Module]:
        return self._behind

    def _speakers(self, layer: Layer) -> list[nn.Module]:
        return [layer.rows[0].module]

    def after(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        """What the forward hook of a module does; what it returns takes the output's place."""
        x = layer_rows(module, inputs[0].detach(), self._tokens)
        if x.isfinite().all():
            for name in self._behind[module]:
                self._sums[name].baddbmm_(x.transpose(1, 2), x)
                self._add_noise(name, x, 1.0)
                self._count[name] += x.shape[1]
        return None

    def _add_noise(self, name: str, x: torch.Tensor, weight: torch.Tensor | float) -> None:
        """`x`: [1, tokens, n]. `weight`: of each token."""
        if name in self._int8:
            steps = row_scale(rotate(x[0], self._int8[name]))
            self._noise[name] += (steps.flatten().double().square() * weight).sum() / 12

    def sums(self) -> dict[str, Any]:
        """Everything that a later call adds to."""
        return {"inputs": self._sums, "noise": self._noise, "count": self._count}

    def go_on(self, sums: Mapping[str, Any]) -> None:
        """Add to `sums` from now on, which an earlier run returned."""
        for name, total in self._sums.items():
            total.copy_(sums["inputs"][name])
        for name, noise in self._noise.items():
            noise.copy_(sums["noise"][name])
        self._count = dict(sums["count"])

    def silent(self) -> list[str]:
        return [name for name, count in self._count.items() if count == 0]

    def moments(self, name: str) -> Moments:
        inputs = self._sums[name] / max(self._count[name], 1)
        groups, in_group = len(inputs), sum(rows.count for rows in self._layers[name].rows) // len(inputs)
        return Moments(inputs, tuple((group, in_group) for group in range(groups)), noise=self._noise_of(name))

    def _noise_of(self, name: str) -> float:
        return self._noise[name].item() / max(self._count[name], 1) if name in self._int8 else 0.0


class _Both(_Inputs):
    """Sums over the inputs of layers and over the gradients at their outputs.

    A layer that does not influence the model's output has sums of zero.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        device: torch.device | str,
        tokens: int,
        int8: Mapping[str, int | None],
    ):
        super().__init__(layers, device, tokens, int8)
        self._outputs = {
            name: tuple(torch.zeros(r.count, r.count, dtype=torch.float32, device=device) for r in layer.rows)
            for name, layer in layers.items()
        }
        self._finite: set[nn.Module] = set()
        self._spoilt: set[nn.Module] = set()
        self._heard: set[nn.Module] = set()
        self._start = torch.zeros((), device=device, requires_grad=True)

    def _speakers(self, layer: Layer) -> list[nn.Module]:
        return list(dict.fromkeys(rows.module for rows in layer.rows))

    def after(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x = layer_rows(module, inputs[0].detach(), self._tokens)
        if not x.isfinite().all() or not torch.is_grad_enabled():
            return output
        if x.untyped_storage().data_ptr() == inputs[0].untyped_storage().data_ptr():
            x = x.clone()  # what comes next may be written over it
        self._finite.add(module)
        if not output.requires_grad:  # nothing that needs a derivative led here
            output = output + self._start.to(output.dtype)
        output.register_hook(lambda gradients: self._add(module, x, gradients))
        return output

    def _add(self, module: nn.Module, x: torch.Tensor, gradients: torch.Tensor) -> None:
        g = gradient_rows(module, gradients, self._tokens)
        if not g.isfinite().all():
            self._spoilt.add(module)
            return
        self._heard.add(module)
        for name in self._behind[module]:
            weight = torch.zeros(x.shape[:2], device=x.device)
            for rows, total in zip(self._layers[name].rows, self._outputs[name], strict=True):
                if rows.module is module:
                    part = g[rows.group, :, rows.start : rows.start + rows.count]
                    total.addmm_(part.T, part)
                    weight[rows.group] += part.square().sum(dim=1)
            self._sums[name].baddbmm_((x * weight.unsqueeze(2)).transpose(1, 2), x)
            self._add_noise(name, x, weight[0])
            self._count[name] += x.shape[1]

    def sums(self) -> dict[str, Any]:
        heard = (self._finite, self._spoilt, self._heard)
        places = [[place for place, module in enumerate(self.modules) if module in some] for some in heard]
        return super().sums() | {"outputs": self._outputs, "heard": places}

    def go_on(self, sums: Mapping[str, Any]) -> None:
        super().go_on(sums)
        for name, totals in self._outputs.items():
            for total, saved in zip(totals, sums["outputs"][name], strict=True):
                total.copy_(saved)
        modules = list(self.modules)
        self._finite, self._spoilt, self._heard = ({modules[place] for place in some} for some in sums["heard"])

    def silent(self) -> list[str]:
        known = self._finite - (self._spoilt - self._heard)
        return [name for name, layer in self._layers.items() if not known.issuperset(self._speakers(layer))]

    def moments(self, name: str) -> Moments:
        count = max(self._count[name], 1)
        rows = tuple((rows.group, rows.count) for rows in self._layers[name].rows)
        outputs = tuple(total / count for total in self._outputs[name])
        return Moments(self._sums[name] / count, rows, outputs, self._noise_of(name))
