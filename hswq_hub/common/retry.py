"""Retries after transient failures, with exponential backoff or the wait that a host asks for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import sleep
from typing import TypeVar

T = TypeVar("T")
_HURRY: ContextVar[bool] = ContextVar("hurry", default=False)
_TRIES, _MOST = 2, 5.0
"""Tries, and the longest wait in seconds, while somebody watches."""


@contextmanager
def in_a_hurry() -> Iterator[None]:
    """Within the block, in this thread, a failure is retried once, and nothing is waited for that takes long."""
    before = _HURRY.set(True)
    try:
        yield
    finally:
        _HURRY.reset(before)


@dataclass
class Patience:
    """How often to try, and how long to wait in between. Times are in seconds.

    tries: failures without progress before it gives up. first: the first wait; waits double, up to `longest`. most: the
    longest wait that a host may ask for. failed: failures since the last progress.
    """

    tries: int = 6
    first: float = 1.0
    longest: float = 30.0
    most: float = 300.0
    failed: int = 0

    def progress(self) -> None:
        """Reset the count of failures, since something arrived."""
        self.failed = 0

    def wait(self, asked: float | None = None) -> bool:
        """Sleep before the next try. Returns False at once if there is no further try.

        asked: seconds that the host asks to wait; None: it does not say.
        """
        self.failed += 1
        if self.asks_too_much(asked) or self.failed >= (min(self.tries, _TRIES) if _HURRY.get() else self.tries):
            return False
        sleep(min(self.first * 2 ** (self.failed - 1), self.longest) if asked is None else asked)
        return True

    def asks_too_much(self, asked: float | None) -> bool:
        """Whether the host asks for more than `most` seconds."""
        return asked is not None and asked > (min(self.most, _MOST) if _HURRY.get() else self.most)


@dataclass(frozen=True)
class Transient:
    """A failure after which a retry makes sense. asked: seconds that the host asks to wait; None: it does not say."""

    asked: float | None = None


def retried(call: Callable[[], T], judge: Callable[[Exception], Transient | None], patience: Patience) -> T:
    """Return `call()`, retried while `judge` finds its error transient. The last error is raised as it is."""
    while True:
        try:
            return call()
        except Exception as error:
            transient = judge(error)
            if transient is None or not patience.wait(transient.asked):
                raise
