"""One folder a source, in which the steps keep their products.

    work/<name>-<digest>/source.json          what was resolved, so that it need not be looked up again
    work/<name>-<digest>/needs.json           which products each run needed that began here, and when
    work/<name>-<digest>/weights.json         that its weights were read and are finite, and which are all zeros
    work/<name>-<digest>/<step>-<identity>/   a product, see `steps.py`
    work/<name>-<digest>/<step>-<identity>.pieces/   what a run that was stopped had finished of it

One process at a time works in it; others wait.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hswq_runtime.errors import FormatError

from ..common.files import held, write_atomically
from ..common.home import home
from ..common.identity import fingerprint
from ..common.pieces import Pieces
from ..common.targets import clear_away
from .steps import PIECES, PRODUCT_RECORD, Log, Made, Step, bytes_of, discard, names_of

_WORK, _NOTE, _NEEDS, _WEIGHTS, _LOCK = "work", "source.json", "needs.json", "weights.json", ".lock"
_DAY = 86_400


@dataclass(frozen=True)
class Product:
    """What a step left in a workspace: its product, or pieces of one.

    used: seconds since the epoch, when it was made or a run that needs it began. needed: whether the last run for some
    target needs it. bytes: on disk.
    """

    workspace: str
    name: str
    bytes: int
    used: float
    needed: bool

    @property
    def days(self) -> float:
        """Days since the last use."""
        return max(time.time() - self.used, 0) / _DAY


class Workspace:
    """The products of one source."""

    def __init__(self, name: str, source_sha256: str):
        self.name = name
        self.folder = home() / _WORK / f"{name}-{source_sha256[:12]}"

    @classmethod
    def existing(cls) -> list["Workspace"]:
        """Those that are there, in the order of their names."""
        found = []
        for folder in sorted((home() / _WORK).glob("*/")):
            name, _, digest = folder.name.rpartition("-")
            found.append(cls(name, digest))
        return found

    @contextmanager
    def locked(self, log: Log) -> Iterator[None]:
        """Only one process works here; `log` is told when this one has to wait. What a killed run left is removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        said = f"another hswq-hub is at work on {self.name}; waiting for it to end"
        with held(self.folder / _LOCK, lambda: log(said)):
            clear_away(self.folder)
            yield

    @contextmanager
    def locked_if_free(self) -> Iterator[bool]:
        """The same without waiting: whether it could be had, and is held for the length of the block."""
        lock = FileLock(self.folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            clear_away(self.folder)
            yield True
        finally:
            lock.release()

    def write_note(self, facts: dict[str, object]) -> None:
        """Write down what the source is."""
        write_atomically(self.folder / _NOTE, (json.dumps(facts, indent=2) + "\n").encode())

    def note(self) -> dict[str, Any] | None:
        """What was written down; None if nothing was."""
        path = self.folder / _NOTE
        return _read(path) if path.is_file() else None

    def note_need(self, target: str, steps: Iterable[Step]) -> None:
        """Write down that a run for `target` needs the products of `steps`, in place of what one needed before."""
        self._note_need(target, [step.folder.name for step in steps])

    def _note_need(self, target: str, products: list[str]) -> None:
        needs = self._needs() | {target: {"time": time.time(), "products": products}}
        write_atomically(self.folder / _NEEDS, (json.dumps(needs, indent=2) + "\n").encode())

    @contextmanager
    def pieces(self, name: str, target: Path, log: Log, *, first: bool = True) -> Iterator[Pieces]:
        """What is finished of the file `target`, which is made by the command `name` and is no product here. It is
        there already when the block ends well, and the pieces go.

        first: of the processes that share the work, the one that has the workspace and says something.
        """
        product = f"{name}-{fingerprint(str(target.resolve()))}"
        folder = self.folder / f"{product}{PIECES}"
        if not first:
            yield Pieces(folder)
            return
        with self.locked(log):
            self._note_need(str(target.resolve()), [product])
            pieces = Pieces(folder, log=lambda line: log(f"{name}: {line}"))
            yield pieces
            pieces.clear()

    def note_weights(self, empty: Iterable[str]) -> None:
        """Write down that all weights are finite, and the keys of those that are all zeros."""
        write_atomically(self.folder / _WEIGHTS, (json.dumps({"zeros": list(empty)}, indent=2) + "\n").encode())

    def empty_weights(self) -> list[str] | None:
        """The keys that were written down; None if nothing was."""
        path = self.folder / _WEIGHTS
        return list(map(str, _read(path).get("zeros", []))) if path.is_file() else None

    def products(self) -> list[Product]:
        """Everything that steps left here, the largest first."""
        uses: dict[str, float] = {}
        for need in self._needs().values():
            for name in need["products"]:
                uses[name] = max(uses.get(name, 0.0), need["time"])
        found = []
        for record in self.folder.glob(f"*/{PRODUCT_RECORD}"):
            place = record.parent
            made = Made.read(place)
            finished = made.finished if made is not None else record.stat().st_mtime
            used = max(finished, uses.get(place.name, 0.0))
            found.append(Product(self.folder.name, place.name, bytes_of(place), used, place.name in uses))
        for place in self.folder.glob(f"*{PIECES}"):
            product = place.name.removesuffix(PIECES)
            files = _files_now(place)
            used = max([uses.get(product, 0.0), *(file.st_mtime for file in files)])
            size = sum(file.st_size for file in files)
            found.append(Product(self.folder.name, place.name, size, used, product in uses))
        return sorted(found, key=lambda product: -product.bytes)

    def products_besides(self, steps: Iterable[Step]) -> list[Product]:
        """Those that are not of `steps`: made with other settings or by other code."""
        names = {name for step in steps for name in names_of(step)}
        return [product for product in self.products() if product.name not in names]

    def remove(self, products: Iterable[Product]) -> None:
        """Remove `products`, and what is noted here once none is left. The workspace has to be locked."""
        for product in products:
            discard(self.folder / product.name)
        if not self.products():
            for name in (_NOTE, _NEEDS, _WEIGHTS):
                (self.folder / name).unlink(missing_ok=True)

    def _needs(self) -> dict[str, Any]:
        path = self.folder / _NEEDS
        return _read(path) if path.is_file() else {}


def notes() -> list[dict[str, Any]]:
    """What was written down of every source, the latest first."""
    paths = sorted((home() / _WORK).glob(f"*/{_NOTE}"), key=lambda path: -path.stat().st_mtime)
    return [_read(path) for path in paths]


def _files_now(folder: Path) -> list[os.stat_result]:
    """Of the files below a folder in which a run may be at work: some may be gone when it is their turn."""
    found = []
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found.append(os.stat(os.path.join(place, name)))
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is damaged; remove it, nothing but a note is lost") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path} is not what this tool writes; remove it, nothing but a note is lost")
    return found
