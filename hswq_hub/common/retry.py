"""The one way to try again: waits that double, or the wait that a host asks for, until it makes no sense any more."""

from collections.abc import Callable
from dataclasses import dataclass
from time import sleep
from typing import TypeVar

T = TypeVar("T")


@dataclass
class Patience:
    """Waits before each new try. Times are in seconds.

    tries: without progress, before it gives up. first: the first wait; each further one is twice as long, `longest` at
    most. most: a host that asks for a longer wait than this is not waited for.
    """

    tries: int = 6
    first: float = 1.0
    longest: float = 30.0
    most: float = 300.0
    failed: int = 0

    def progress(self) -> None:
        """Something arrived: count from the beginning again."""
        self.failed = 0

    def wait(self, asked: float | None = None) -> bool:
        """Sleep before the next try; at once False if there is to be none.

        asked: seconds that the host asks to wait, None if it does not say.
        """
        self.failed += 1
        if self.asks_too_much(asked) or self.failed >= self.tries:
            return False
        sleep(min(self.first * 2 ** (self.failed - 1), self.longest) if asked is None else asked)
        return True

    def asks_too_much(self, asked: float | None) -> bool:
        """Whether a host asks for a wait that is not worth it."""
        return asked is not None and asked > self.most


@dataclass(frozen=True)
class Transient:
    """A failure after which another try makes sense. asked: seconds that the host asks to wait, None if none."""

    asked: float | None = None


def retried(call: Callable[[], T], judge: Callable[[Exception], Transient | None], patience: Patience) -> T:
    """What `call` returns, called again while `judge` finds its error transient; the last error comes through."""
    while True:
        try:
            return call()
        except Exception as error:
            transient = judge(error)
            if transient is None or not patience.wait(transient.asked):
                raise
