"""One folder a model, in which the steps keep their products, and the note of which model it is.

    work/<name>-<digest>/source.json          what was resolved, so that it need not be looked up again
    work/<name>-<digest>/<step>-<identity>/   a product, see `steps.py`

One process at a time works in it; others wait.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from ..common.files import write_atomically
from ..common.home import home
from ..common.targets import clear_away

_WORK, _NOTE, _LOCK = "work", "source.json", ".lock"


class Workspace:
    """The products of one source."""

    def __init__(self, name: str, source_sha256: str):
        self.name = name
        self.folder = home() / _WORK / f"{name}-{source_sha256[:12]}"

    @contextmanager
    def locked(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Only one process works here; `tell` is told when this one has to wait. What a dead one left is removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell(f"another hswq-hub is at work on {self.name}; waiting for it to end")
            lock.acquire()
        try:
            clear_away(self.folder)
            yield
        finally:
            lock.release()

    def note(self, facts: dict) -> None:
        """Write down what the source is."""
        write_atomically(self.folder / _NOTE, (json.dumps(facts, indent=2) + "\n").encode())


def notes() -> list[dict]:
    """What was written down of every source, the latest first."""
    paths = sorted((home() / _WORK).glob(f"*/{_NOTE}"), key=lambda path: -path.stat().st_mtime)
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]
