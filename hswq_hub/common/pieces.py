"""What a long work has done so far, kept on the disk, so that a run that was stopped goes on after it.

    FOLDER/<facts>/state     of the latest saving: how far it was, sums that go on, the number of the files below
    FOLDER/<facts>/0, 1, …   finished pieces, in the order in which they came; each is written once
    FOLDER/<facts>/scratch   what the work itself had to put on the disk

Every file appears whole or not at all, and what lies beyond the state is not trusted. `<facts>` is a digest of all that
decides the work: what was kept of another one is another folder.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hswq_runtime.errors import FormatError, is_out_of_memory

from .files import atomic_file
from .identity import fingerprint
from .targets import flush

INTERVAL = 60.0
"""Seconds from one saving to the next, at least: that much is lost at most."""
TIMES = 50
"""The same, in multiples of what the last one took: saving takes a fiftieth of the time at most."""
_STATE, _SCRATCH = "state", "scratch"


class Pieces:
    """The pieces of one work. Without a folder nothing is kept.

    Call :meth:`begin`, then :meth:`add` for each finished piece and :meth:`keep` wherever the work could go on, and
    :meth:`clear` once its product is on the disk. State and pieces are tensors, numbers and texts, in lists and
    dictionaries.

    facts: what decides the work besides what it knows itself, as JSON. log: is told how far an earlier run was. spent:
    seconds that it took for what was found.
    """

    def __init__(self, folder: Path | None = None, facts: object = None, log: Callable[[str], None] = lambda _: None):
        self.folder, self.log, self.spent = folder, log, 0.0
        self._facts = facts
        self._place: Path | None = None
        self._count, self._new = 0, list[object]()
        self._begun = self._next = 0.0

    def begin(self, *facts: object) -> Any:
        """The state that was kept of the same work; None if nothing was. facts: what decides it, as JSON.

        Raises:
            FormatError: the file is damaged.
        """
        self._count, self._new, self.spent = 0, [], 0.0
        self._begun = time.monotonic()
        self._next = self._begun + INTERVAL
        if self.folder is None:
            return None
        self._place = self.folder / fingerprint([self._facts, *facts])
        for half in [*self._place.rglob(".*")]:  # of a run that was killed while it wrote
            half.unlink()
        if not (self._place / _STATE).exists():
            if self._place.exists():
                shutil.rmtree(self._place)
            return None
        found = load_tensors(self._place / _STATE)
        self._count, self.spent = found["pieces"], found["seconds"]
        self.log(f"going on after {found['done']}")
        return found["state"]

    @property
    def scratch(self) -> Path | None:
        """A folder for what the work itself puts on the disk and finds again; None if nothing is kept."""
        if self._place is None:
            return None
        (self._place / _SCRATCH).mkdir(parents=True, exist_ok=True)
        return self._place / _SCRATCH

    def found(self) -> Iterator[Any]:
        """The pieces that belong to the state that :meth:`begin` returned, in order.

        Raises:
            FormatError: a file is damaged, or gone.
        """
        if self._place is not None:
            for number in range(self._count):
                yield from load_tensors(self._place / str(number))

    def add(self, piece: object) -> None:
        """A piece that will not change any more; it is written when the state is saved."""
        if self._place is not None:
            self._new.append(piece)

    def keep(self, done: str, state: Callable[[], object]) -> None:
        """Save the state and the pieces before it, if it is time for that; what is in `scratch` is then on the disk.
        done: how far it is, as "3 of 8 pictures". state: called if it is saved.

        Raises:
            OSError: they cannot be written.
        """
        if self._place is None or time.monotonic() < self._next:
            return
        start = time.monotonic()
        if self._new:
            save_tensors(self._place / str(self._count), self._new)
            self._count, self._new = self._count + 1, []
        seconds = self.spent + start - self._begun
        content: dict[str, object] = {"done": done, "pieces": self._count, "seconds": seconds, "state": state()}
        flush(self._place / _SCRATCH)
        save_tensors(self._place / _STATE, content)
        end = time.monotonic()
        self._next = end + max(INTERVAL, TIMES * (end - start))

    def clear(self) -> None:
        """Remove all that is kept in the folder, whatever it is of."""
        if self.folder is not None and self.folder.exists():
            shutil.rmtree(self.folder)


def save_tensors(path: Path, content: object) -> None:
    """Tensors, numbers and texts in lists and dictionaries, under the name `path`, whole or not at all."""
    with atomic_file(path) as file:
        write_tensors(file, content)


def write_tensors(file: BinaryIO, content: object) -> None:
    """The same, into an open file.

    Raises:
        OSError: there is no room.
    """
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch hides it behind one about its own bookkeeping
            raise error.__context__ from None
        raise


def load_tensors(path: Path) -> Any:
    """What :func:`save_tensors` wrote, on the CPU.

    Raises:
        FormatError: the file is damaged, or gone.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # by what is wrong, torch raises anything from EOFError to RuntimeError
        if is_out_of_memory(error) or isinstance(error, PermissionError):
            raise
        raise FormatError(f"{path} is damaged; remove {path.parent}, what it is of then begins anew") from error
