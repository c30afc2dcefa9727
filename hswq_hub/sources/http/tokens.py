"""Whose tokens are used: this machine's, or within a block those of somebody for whom this process does something.

A page that serves many visitors must never speak with its own token for one of them, nor with that of another, nor show
one what it fetched for another.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory

from huggingface_hub import constants, get_token

from hswq_runtime.checkpoints.locate import HubOptions

from ...common.retry import in_a_hurry


@dataclass(frozen=True)
class Tokens:
    """Somebody's tokens, which are neither printed nor stored. None: he gave none."""

    hub: str | None = field(default=None, repr=False)
    civitai: str | None = field(default=None, repr=False)

    def hidden_in(self, text: str) -> str:
        """`text` without them."""
        for token in (self.hub, self.civitai):
            text = text.replace(token, "…") if token else text
        return text


_GIVEN: ContextVar[tuple[Tokens, str] | None] = ContextVar("tokens", default=None)
"""Somebody's tokens, and the folder for what is fetched with them."""


@contextmanager
def on_behalf_of(somebody: Tokens) -> Iterator[None]:
    """Within the block, in this thread, `somebody` speaks, and nothing of this machine's tokens is used.

    Small files that are fetched for him are gone when the block ends. He is not kept waiting: what fails for the moment
    is tried once more and no more.
    """
    with TemporaryDirectory(prefix="hswq-visitor-") as folder, in_a_hurry():
        before = _GIVEN.set((somebody, folder))
        try:
            yield
        finally:
            _GIVEN.reset(before)


def given_tokens() -> Tokens | None:
    """The tokens of the block that this is called in; None: it is in none, and this machine's count."""
    given = _GIVEN.get()
    return None if given is None else given[0]


def hub_token(*, asked: bool = True) -> str | None:
    """The Hub's token: the given one, else what huggingface_hub finds here; None: there is none.

    asked: whether it takes one. Otherwise HF_HUB_DISABLE_IMPLICIT_TOKEN may say that this machine's is not sent.
    """
    if (given := given_tokens()) is not None:
        return given.hub
    return get_token() if asked or not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else None


def client_token() -> str | bool | None:
    """The argument `token` of huggingface_hub's functions: None: what they find here; False: they are to use none."""
    given = given_tokens()
    return None if given is None else given.hub or False


def client_cache() -> str | None:
    """Their argument `cache_dir`: None: the cache of this machine."""
    given = _GIVEN.get()
    return None if given is None else given[1]


def hub_options() -> HubOptions:
    """How the runtime asks the Hub: with the same token, and the same cache."""
    return HubOptions(token=client_token(), cache_dir=client_cache())
