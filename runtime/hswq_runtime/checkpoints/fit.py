"""The empty model of a configuration, and whether the shapes that a file holds are those that it needs."""

import re
import threading
from collections.abc import Iterable
from contextlib import nullcontext

import torch

from ..architectures import Config, Shapes

NOT_TO_BUILD = (
    AssertionError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What diffusers' classes raise for values that they cannot be built with."""
BUILDING = threading.RLock()
"""Held while models are built or loaded: diffusers and accelerate then replace functions of torch for all threads, and
two that do so at once leave them replaced for good."""


def empty_model(model_class: str, config: Config, *, constants: bool) -> torch.nn.Module:
    """The diffusers model on the meta device; entries that its class does not know are ignored with a warning.

    Args:
        constants: with the buffers that it computes at creation, such as frequencies. Without them it cannot be called.

    Raises:
        one of `NOT_TO_BUILD`: its class cannot be so configured.
    """
    import accelerate
    import diffusers
    from diffusers.models.modeling_utils import no_init_weights

    where = nullcontext() if constants else torch.device("meta")
    with BUILDING, no_init_weights(), accelerate.init_empty_weights(), where:
        model: torch.nn.Module = getattr(diffusers, model_class).from_config(config)
        return model


def misfits(wanted: Shapes, found: Shapes, may_be_left_over: Iterable[str] = ()) -> list[str]:
    """A phrase for every missing, unexpected and wrongly shaped parameter, sorted; [] if there is none.

    A shape may have more or fewer leading ones: pad tokens are stored as [dim] and as [1, dim].

    Args:
        wanted, found: shapes by parameter name.
        may_be_left_over: regular expressions on names that may be found though not wanted.
    """
    problems = [f"missing {name}" for name in wanted.keys() - found.keys()]
    problems += [
        f"unexpected {name}"
        for name in found.keys() - wanted.keys()
        if not any(re.search(pattern, name) for pattern in may_be_left_over)
    ]
    problems += [
        f"{name} has shape {list(found[name])} instead of {list(wanted[name])}"
        for name in wanted.keys() & found.keys()
        if not _same_but_for_leading_ones(found[name], wanted[name])
    ]
    return sorted(problems)


def _same_but_for_leading_ones(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    longer, shorter = sorted((one, other), key=len, reverse=True)
    extra = len(longer) - len(shorter)
    return longer[:extra] == (1,) * extra and longer[extra:] == shorter
