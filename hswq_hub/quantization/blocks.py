"""Recorded calls replayed a few blocks at a time, forwards and backwards: what those need is all that is in memory.

The derivative of the output by something in a block needs every block after it, and second moments of all layers at
once take several times the memory of the model. So the calls go through the model once, forwards, and what each block
is given is put on disk. Then the blocks are replayed from the last to the first, each for all calls before the next
one: with the inputs that it was given, and with the gradients that blocks after it left, which were replayed before.
What lies between the blocks is the model's own `forward`, in which every other block is left out. So a call costs one
forward pass, and one forwards and backwards, in however many parts.

Of a list of blocks, one that is left out gives zeros. That is exact as long as the derivatives of what lies between by
the outputs of one do not depend on those of another, which holds for sums, slices, concatenations and whatever comes
after a single one. Parts of a model that are in no list, such as what all blocks are modulated by, give what they gave;
and so does everything while the layers outside of all blocks are replayed, the last part.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import ModelMixin
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..common.pieces import write_tensors
from ..common.progress import progress
from ..generation.recording import RecordedCall, map_tensors, tensors_of
from ..generation.residents import Residents

OUTSIDE = ""
"""Stands for the layers outside of all blocks."""
_SHARE = 0.02
"""Of a model's weights: a part of it that holds more is a block as well."""


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a denoiser by name, in the order of its definition: the items of its lists of modules, and other
    parts of it that hold more than a fiftieth of its weights."""
    whole = sum(parameter.numel() for parameter in model.parameters())
    found: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList):
            found |= {f"{name}.{i}": item for i, item in enumerate(child) if any(True for _ in item.parameters())}
        elif sum(parameter.numel() for parameter in child.parameters()) > _SHARE * whole:
            found[name] = child
    return found


@dataclass(frozen=True)
class Part:
    """Layers of which something is in memory together, and the blocks that these are in; `computed` None: the whole
    model is replayed."""

    layers: tuple[str, ...]
    computed: frozenset[str] | None


def in_parts(
    blocks: Mapping[str, nn.Module],
    layers: Mapping[str, nn.Module],
    sizes: Mapping[str, int],
    bound: float,
    room: float | None = None,
) -> list[Part]:
    """Parts of `layers` that take at most `bound` bytes, in the order in which they can be replayed backwards: from the
    last block to the first, and then what is outside. A block is in several parts only if it does not fit into one.

    blocks: in the order of their calls. layers: at least one. sizes: bytes of each, none above the bound. room: how
    many weights the blocks of a part may have, none of which has more.
    """
    weights = {name: sum(p.numel() for p in block.parameters()) for name, block in blocks.items()}
    if sum(sizes.values()) <= bound and (room is None or sum(weights.values()) <= room):
        return [Part(tuple(layers), None)]
    place = {module: name for name, block in blocks.items() for module in block.modules()}
    parts: list[list[str]] = [[]]
    most = float("inf") if room is None else room
    left, of_weights = bound, most
    for block in (*reversed(list(blocks)), OUTSIDE):
        inside = [key for key, module in layers.items() if place.get(module, OUTSIDE) == block]
        whole = sum(sizes[key] for key in inside)
        if left < whole <= bound or of_weights < weights.get(block, 0):
            parts, left, of_weights = [*parts, []], bound, most
        of_weights -= weights.get(block, 0)
        for key in inside:
            if sizes[key] > left:
                parts, left, of_weights = [*parts, []], bound, most - weights.get(block, 0)
            parts[-1].append(key)
            left -= sizes[key]
    return [Part(tuple(p), frozenset(place.get(layers[key], OUTSIDE) for key in p)) for p in parts if p]


def replay_passes(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    sizes: Mapping[str, int],
    bound: float,
    room: float | None = None,
    *,
    backwards: bool,
) -> float:
    """What replaying one call in parts costs, in forward passes of `model`, which may be empty.

    Backwards it is four: gradient checkpointing computes everything twice, and a backward pass takes as long as two. If
    it takes several parts, one comes first that prepares them. Other arguments: see :func:`in_parts`.
    """
    blocks = blocks_of(model)
    found, each = in_parts(blocks, layers, sizes, bound, room), 4.0 if backwards else 1.0
    if found[0].computed is None:
        return each
    weights = {name: float(sum(p.numel() for p in block.parameters())) for name, block in blocks.items()}
    whole = float(sum(p.numel() for p in model.parameters()))
    weights[OUTSIDE] = whole - sum(weights.values())
    return 1 + each * sum(weights[name] for part in found for name in part.computed or ()) / whole


@dataclass(frozen=True)
class _Kept:
    """A tensor on disk: the `number`-th in `file`."""

    file: str
    number: int
    shape: torch.Size
    dtype: torch.dtype


@dataclass(frozen=True)
class _Seen:
    """What a block was given in one call, one after the other, and what it gave."""

    inputs: list[_Kept]
    outputs: object


@dataclass
class _Part:
    """A replay that is under way. given: inputs of the blocks that are computed. seeds: tensors that go into blocks
    that are left out, and the gradients at them."""

    number: int
    computed: Collection[str]
    given: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    seeds: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


class _Notes:
    """What the blocks are given and give in one call, on its way to the disk; a tensor that several of them see is kept
    once."""

    def __init__(self, folder: Path, number: int):
        self._folder, self._number = folder, number
        self._kept: dict[int, tuple[torch.Tensor, int, _Kept]] = {}
        self._inputs: dict[str, list[_Kept]] = {}
        self._outputs: dict[str, object] = {}
        self._twice: set[str] = set()

    def before(self, name: str, inputs: object) -> None:
        if name in self._inputs:
            self._twice.add(name)
        self._inputs[name] = self._keep(f"{self._number}-{name}-inputs", list(tensors_of(inputs)))

    def after(self, name: str, outputs: object) -> None:
        kept = iter(self._keep(f"{self._number}-{name}-outputs", list(tensors_of(outputs))))
        self._outputs[name] = map_tensors(lambda _: next(kept), outputs)

    @property
    def seen(self) -> dict[str, _Seen]:
        """Of those that were called once, in the order of the calls."""
        return {
            name: _Seen(inputs, self._outputs[name]) for name, inputs in self._inputs.items() if name not in self._twice
        }

    def _keep(self, file: str, tensors: list[torch.Tensor]) -> list[_Kept]:
        kept: list[_Kept] = []
        new: list[torch.Tensor] = []
        for tensor in tensors:
            known = self._kept.get(id(tensor))
            if known is None or known[1] != tensor._version:  # written over since
                one = _Kept(file, len(new), tensor.shape, tensor.dtype)
                known = self._kept[id(tensor)] = tensor, tensor._version, one
                new.append(tensor.to("cpu", copy=True))
            kept.append(known[2])
        if new:
            _write(self._folder / file, new)
        return kept


def _write(path: Path, tensors: Sequence[torch.Tensor | None]) -> None:
    with path.open("wb") as file:
        write_tensors(file, tensors)


torch.serialization.add_safe_globals([_Kept, _Seen])


class BlockReplays:
    """Recorded calls of a model of which parts can be replayed; :meth:`open` makes one. seen: of each call that was
    prepared, what is on the disk of it."""

    def __init__(
        self,
        model: nn.Module,
        calls: Sequence[RecordedCall],
        device: torch.device | str,
        folder: Path,
        room: float | None,
    ):
        self.device = torch.device(device)
        self._model, self._calls, self._folder = model, calls, folder
        self._blocks = blocks_of(model)
        self._room = None if room is None else room / next(model.parameters()).itemsize
        self._weights = None if room is None else Residents(model, self._blocks, self.device, room)
        self._checkpointed = {
            name
            for name, block in self._blocks.items()
            if any(getattr(module, "gradient_checkpointing", False) for module in block.modules())
        }
        self._alone = {name for name, _ in model.named_children()}
        self.seen: list[dict[str, _Seen]] = []
        self._noting: _Notes | None = None
        self._part: _Part | None = None

    @classmethod
    @contextmanager
    def open(
        cls,
        model: nn.Module,
        calls: Sequence[RecordedCall],
        device: torch.device | str,
        place: Path,
        room: float | None = None,
        scratch: Path | None = None,
    ) -> Iterator["BlockReplays"]:
        """The replays of `calls`, recorded ones of `model`, which is not trained any more.

        place: a folder; what has to be on disk is in one inside of it, which is gone in the end. room: bytes that the
        weights of blocks may take on `device`, from which the model comes and to which it goes as it is needed; None:
        it is there. scratch: a folder that is used instead and stays, for :meth:`go_on`.

        Raises:
            DeviceError: there is no room for one block.
        """
        model.requires_grad_(False)
        if isinstance(model, ModelMixin) and model._supports_gradient_checkpointing:
            # That of a UNet's blocks is finer than ours; that of a model itself may leave out arguments of its blocks.
            model.enable_gradient_checkpointing()
            model.gradient_checkpointing = False
        with nullcontext(scratch) if scratch else TemporaryDirectory(dir=place, prefix="blocks-") as folder:
            replays = cls(model, calls, device, Path(folder), room)
            for name, block in replays._blocks.items():
                block.forward = partial(replays._through, name, block.forward)
            try:
                yield replays
            finally:
                for block in blocks_of(model).values():
                    del block.forward  # the class has one
                if replays._weights is not None:
                    replays._weights.close()

    def __len__(self) -> int:
        return len(self._calls)

    def go_on(self, seen: list[dict[str, _Seen]]) -> None:
        """Go on with `seen` of an earlier run that had the same calls and the same `scratch`."""
        self.seen = list(seen)
        if seen:
            self._blocks = {name: self._blocks[name] for name in seen[0]}

    def parts(
        self,
        layers: Mapping[str, nn.Module],
        sizes: Mapping[str, int],
        bound: float,
        between: Callable[[], None] = lambda: None,
    ) -> list[Part]:
        """`layers` in parts that are ready to be replayed one after the other, see :func:`in_parts`. `between` is
        called before each call that this takes."""
        found = in_parts(self._blocks, layers, sizes, bound, self._room)
        if found[0].computed is None:
            return found
        self._prepare(between)
        return in_parts(self._blocks, layers, sizes, bound, self._room)

    def _prepare(self, between: Callable[[], None] = lambda: None) -> None:
        """Send all calls through the model and keep what the blocks are given."""
        ready, count = len(self.seen), len(self._calls)
        for number in progress(range(ready, count), total=count, initial=ready, desc="inputs of blocks", unit="call"):
            between()
            self._noting = _Notes(self._folder, number)
            try:
                self._calls[number].replay(self._model, self.device)
                seen = self._noting.seen
            finally:
                self._noting = None
            if number == 0:  # those that are called twice, or never, are outside
                self._blocks = {name: self._blocks[name] for name in seen}
            self.seen.append({name: seen[name] for name in self._blocks})

    def replay(self, number: int, computed: Collection[str] | None = None, *, backwards: bool = False) -> int:
        """Replay call `number`; forward hooks on layers see what they compute. Returns how many values the model gives.

        computed: of a part; what is in other parts is left out. backwards: tensor hooks see the gradients of
        Σ v · output, with v from a normal distribution, drawn anew for each call and always the same for one. The parts
        before have to have been replayed so.
        """
        self._part = part = None if computed is None else _Part(number, computed)
        try:
            ends = self._calls[number].replay(self._model, self.device, derivable=backwards)
            values = sum(end.numel() for end in ends)
            if not backwards:
                return values
            generator = torch.Generator().manual_seed(number)
            probes = [torch.randn(end.shape, generator=generator) for end in ends]
            roots: list[tuple[torch.Tensor, torch.Tensor | None]] = [
                ((end.float() * probe.to(end.device)).sum(), None)
                for end, probe in zip(ends, probes, strict=True)
                if end.requires_grad
            ]
            if part is not None:
                roots += part.seeds
            if roots:
                tensors, gradients = zip(*roots, strict=True)
                torch.autograd.backward(tensors, gradients)
            if part is not None:
                for name, given in part.given.items():
                    _write(self._left_by(number, name), [t.grad if t.requires_grad else None for t in given])
            return values
        finally:
            self._part = None

    def _left_by(self, number: int, name: str) -> Path:
        return self._folder / f"{number}-{name}-gradients"

    def _through(self, name: str, forward: Callable[..., object], *args: object, **kwargs: object) -> object:
        """What a block does when it is called."""
        if self._weights is not None and not self._is_left_out(name):
            self._weights.bring(name, () if self._part is None else self._part.computed)
        if self._noting is not None:
            self._noting.before(name, (args, kwargs))
            outputs = forward(*args, **kwargs)
            self._noting.after(name, outputs)
            return outputs
        if self._part is None or name not in self._blocks:
            return self._computed(name, forward, args, kwargs)
        if self._is_left_out(name):
            return self._left_out(self._part, name, (args, kwargs))
        given = iter(self._given(self._part, name, list(tensors_of((args, kwargs)))))
        args = tuple(map_tensors(lambda _: next(given), value) for value in args)
        kwargs = {key: map_tensors(lambda _: next(given), value) for key, value in kwargs.items()}
        return self._computed(name, forward, args, kwargs)

    def _is_left_out(self, name: str) -> bool:
        return self._part is not None and name in self._blocks and name not in self._part.computed

    def _computed(
        self, name: str, forward: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """What a block computes: with gradient checkpointing, unless it does that by itself."""
        if name in self._checkpointed or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        outputs: object = checkpoint(partial(forward, *args, **kwargs), use_reentrant=False)
        return outputs

    def _left_out(self, part: _Part, name: str, inputs: object) -> object:
        tensors = list(tensors_of(inputs))
        if any(t.requires_grad for t in tensors):
            left = torch.load(self._left_by(part.number, name), weights_only=True)
            part.seeds += [
                (tensor, gradient.to(tensor.device))
                for tensor, gradient in zip(tensors, left, strict=True)
                if tensor.requires_grad and gradient is not None
            ]
        shown = self._load if OUTSIDE in part.computed or name in self._alone else self._zeros
        return map_tensors(shown, self.seen[part.number][name].outputs, _Kept)

    def _given(self, part: _Part, name: str, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """The inputs of a block that is computed, as it had them in the recorded call. Gradients at them are kept, and
        go on to what else is computed."""
        found = []
        for tensor, kept in zip(tensors, self.seen[part.number][name].inputs, strict=True):
            one = self._load(kept)
            if tensor.requires_grad:  # of what led here, the gradients; its values may lack what was left out
                one = one + (tensor - tensor.detach())
                one.retain_grad()
            else:
                one.requires_grad_(torch.is_grad_enabled() and one.is_floating_point())
            found.append(one)
        part.given[name] = found
        return found

    def _load(self, kept: _Kept) -> torch.Tensor:
        tensors: list[torch.Tensor] = torch.load(self._folder / kept.file, weights_only=True, mmap=True)
        return tensors[kept.number].to(self.device, copy=True)

    def _zeros(self, kept: _Kept) -> torch.Tensor:
        return torch.zeros(kept.shape, dtype=kept.dtype, device=self.device)
