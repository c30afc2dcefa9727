"""Recorded calls of a denoiser: their arguments, kept to be replayed without text encoder and sampler.

Second moments and the error of single weights are measured by replaying them. Arguments may be nested lists and
dictionaries of tensors, so no architecture needs code here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import nn

from hswq_runtime.errors import FormatError, HSWQError

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class RecordedCall:
    """Arguments of one call of the denoiser; tensors are on the CPU."""

    args: tuple[object, ...]
    kwargs: dict[str, object]

    def replay(
        self, denoiser: nn.Module, device: torch.device | str = "cpu", *, derivable: bool = False
    ) -> list[torch.Tensor]:
        """Call `denoiser` on `device`; returns all tensors of its output, in order. derivable: with autograd."""
        args, kwargs = _moved(lambda t: t.to(device), self)
        with torch.set_grad_enabled(derivable):
            return list(tensors_of(denoiser(*args, **kwargs)))

    @property
    def is_finite(self) -> bool:
        """Whether all of its tensors are."""
        return all(bool(tensor.isfinite().all()) for tensor in tensors_of([self.args, self.kwargs]))

    def flatten(self) -> tuple[object, list[torch.Tensor]]:
        """A description for JSON, and the tensors that it refers to by number."""
        tensors: list[torch.Tensor] = []
        return _describe([self.args, self.kwargs], tensors), tensors

    @classmethod
    def unflatten(cls, description: object, tensors: Sequence[torch.Tensor]) -> "RecordedCall":
        """The inverse of :meth:`flatten`."""
        match _restore(description, tensors):
            case [list() as args, dict() as kwargs]:
                return cls(tuple(args), kwargs)
        raise FormatError("this describes no recorded call")


@contextmanager
def record_calls(
    denoiser: nn.Module, wanted: range | set[int], number: Callable[[], int] | None = None
) -> Iterator[list[RecordedCall]]:
    """Inside the block, record one call of `denoiser` for each step index in `wanted`.

    number: returns the current step index; None: calls are counted from 0. One step may make several calls, as those
    with and without the prompt: the first is kept of an even step, the last of an odd one.
    """
    calls: list[RecordedCall] = []
    places: dict[int, int] = {}
    number = number or count().__next__

    def before(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        current = number()
        if current not in wanted or (current in places and current % 2 == 0):
            return
        call = RecordedCall(*_moved(lambda t: t.detach().to("cpu", copy=True), RecordedCall(args, kwargs)))
        if current not in places:
            places[current] = len(calls)
            calls.append(call)
        calls[places[current]] = call

    handle = denoiser.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def spread(wanted: int, samples: int, steps: int) -> set[int]:
    """Indices of `wanted` steps, at most all, of `samples` pictures with `steps` each.

    Every picture has an equal share. Steps follow the golden ratio, which covers them evenly at any count. A fixed
    stride may repeat the same few steps, and layers that see only the timestep would never see the others.
    """
    if wanted >= samples * steps:
        return set(range(samples * steps))
    return {i * samples // wanted * steps + int(i * _GOLDEN % 1 * steps) for i in range(wanted)}


def _moved(
    function: Callable[[torch.Tensor], torch.Tensor], call: RecordedCall
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Arguments of `call` with `function` applied to each tensor."""
    args = tuple(map_tensors(function, value) for value in call.args)
    return args, {name: map_tensors(function, value) for name, value in call.kwargs.items()}


def map_tensors(function: Callable[[Any], object], value: object, kind: type = torch.Tensor) -> object:
    """`value` with `function` applied to each tensor in its tuples, lists and dictionaries. kind: what stands for a
    tensor there."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(function, item, kind) for item in value)
    if isinstance(value, dict):
        return {name: map_tensors(function, item, kind) for name, item in value.items()}
    return value


def tensors_of(value: object) -> Iterator[torch.Tensor]:
    """The tensors in tuples, lists and dictionaries of `value`, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(value, dict):  # diffusers' outputs are ordered dictionaries as well
        yield from tensors_of(list(value.values()))


def _describe(value: object, tensors: list[torch.Tensor]) -> object:
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, (tuple, list)):
        return [_describe(item, tensors) for item in value]
    if isinstance(value, dict):
        return {"dict": {name: _describe(item, tensors) for name, item in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise HSWQError(f"the denoiser is called with a {type(value).__name__}, which cannot be recorded")


def _restore(description: object, tensors: Sequence[torch.Tensor]) -> object:
    match description:
        case list():
            return [_restore(item, tensors) for item in description]
        case {"tensor": int(number)}:
            return tensors[number]
        case {"dict": dict(items)}:
            return {name: _restore(item, tensors) for name, item in items.items()}
        case {"value": value}:
            return value
    raise FormatError("this describes no recorded call")
