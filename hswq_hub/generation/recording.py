"""Recorded calls of a denoiser: what went in, kept so that it can be run again without text encoder and sampler.

Whatever is measured after the first pass over the prompts (second moments, the error that one weight makes) is
measured by replaying these. Arguments are taken as they come, lists and dictionaries of tensors included, so that
no architecture needs a line here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import torch
from torch import nn

from hswq_runtime.errors import HSWQError

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Call:
    """Arguments of one call of the denoiser; tensors are on the CPU."""

    args: tuple
    kwargs: dict

    def replay(
        self, denoiser: nn.Module, device: torch.device | str = "cpu", *, derivable: bool = False
    ) -> list[torch.Tensor]:
        """Call `denoiser` with them on `device`: all tensors of its output, in order. derivable: by autograd."""
        args, kwargs = _map(lambda t: t.to(device), (self.args, self.kwargs))
        with torch.set_grad_enabled(derivable):
            return list(_tensors(denoiser(*args, **kwargs)))

    def flatten(self) -> tuple[object, list[torch.Tensor]]:
        """Something that JSON can hold, and the tensors that it refers to by number."""
        tensors: list[torch.Tensor] = []
        return _describe([self.args, self.kwargs], tensors), tensors

    @classmethod
    def unflatten(cls, description, tensors: Sequence[torch.Tensor]) -> "Call":
        """The inverse of :meth:`flatten`."""
        args, kwargs = _restore(description, tensors)
        return cls(tuple(args), kwargs)


@contextmanager
def record_calls(
    denoiser: nn.Module, wanted: range | set[int], number: Callable[[], int] | None = None
) -> Iterator[list[Call]]:
    """While open, keep a call of `denoiser` for each number in `wanted`.

    number: tells that of the call under way; None: they are counted, from 0. Several calls may have the same, as those
    with and without the prompt that make up one step: an even number has the first of them and an odd one the last.
    """
    calls, places = [], {}
    number = number or count().__next__

    def before(_module, args, kwargs):
        current = number()
        if current not in wanted or (current in places and current % 2 == 0):
            return
        call = Call(*_map(lambda t: t.detach().to("cpu", copy=True), (args, kwargs)))
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
    """Numbers of `wanted` steps (all, if there are no more) of `samples` pictures with `steps` each.

    Every picture has its share. Steps follow the golden ratio, which fills them evenly however few there are: a
    fixed stride may fall on the same few steps again and again, and layers that see nothing but the timestep then
    know nothing of the others.
    """
    if wanted >= samples * steps:
        return set(range(samples * steps))
    return {i * samples // wanted * steps + int(i * _GOLDEN % 1 * steps) for i in range(wanted)}


def _map(function, value):
    """`value` with `function` applied to each tensor in its tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_map(function, item) for item in value)
    if isinstance(value, dict):
        return {name: _map(function, item) for name, item in value.items()}
    return value


def _tensors(value) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):  # diffusers' outputs are ordered dictionaries as well
        yield from _tensors(list(value.values()))


def _describe(value, tensors: list[torch.Tensor]):
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


def _restore(description, tensors: Sequence[torch.Tensor]):
    if isinstance(description, list):
        return [_restore(item, tensors) for item in description]
    if "tensor" in description:
        return tensors[description["tensor"]]
    if "dict" in description:
        return {name: _restore(item, tensors) for name, item in description["dict"].items()}
    return description["value"]
