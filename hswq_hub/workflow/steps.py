"""Steps: cached units of work, each with a product on disk that is made once.

The product of a step is a folder whose name holds the step's identity: a digest of its settings, of the code that it
uses and of the identities of its inputs. So its path is known before anything is computed. A product appears as a
whole, together with its record: how long it took, its digest, and the digests of its inputs. A step is done if the
record is there and those digests are still the right ones. Until then a long step keeps what is finished of it in a
folder beside the product, `<step>-<identity>.pieces`, see `common/pieces.py`.
"""

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType

from hswq_runtime.errors import FormatError

from ..common.files import file_sha256, write_atomically
from ..common.identity import fingerprint
from ..common.pieces import Pieces
from ..common.targets import check_room, nearest_existing, replace_folder
from ..common.text import duration

PRODUCT_RECORD = "made.json"
PIECES = ".pieces"
"""Ends the name of the folder with the pieces of a product."""
Log = Callable[[str], None]
"""Takes one line for people about what happens to a step."""


class State(Enum):
    """Whether a step has to be done. STALE: an input was rebuilt with different bytes."""

    DONE = "done"
    MISSING = "missing"
    STALE = "stale"


@dataclass(frozen=True)
class Work:
    """What a step costs, as far as it is known before.

    calls: of the denoiser on `device`, with `batch` pictures in each, `size` pixels a side (None: the model's own).
    pictures: how many are decoded. flops, double_flops: arithmetic besides, in the dtype of the denoiser and in
    float64. launches: small operations besides; values: that such operations go through. moved: bytes read and
    written. kept: bytes of the product. streamed: bytes of weights that move between the machine's memory and the
    device's besides loading. scratch: bytes on disk while it runs.
    """

    calls: int = 0
    device: str = "cpu"
    size: int | None = None
    batch: int = 1
    pictures: int = 0
    flops: float = 0.0
    double_flops: float = 0.0
    launches: float = 0.0
    values: float = 0.0
    moved: int = 0
    kept: int = 0
    streamed: int = 0
    scratch: int = 0


@dataclass(frozen=True)
class Made:
    """The record of a finished product.

    finished: seconds since the epoch. files: SHA-256 by name. inputs: digests by step.
    """

    step: str
    seconds: float
    finished: float
    bytes: int
    files: dict[str, str]
    inputs: dict[str, str]
    work: Work

    @property
    def digest(self) -> str:
        """Of all the bytes of the product."""
        return fingerprint(self.files)

    @classmethod
    def read(cls, folder: Path) -> "Made | None":
        """The record of the product in `folder`; None if there is none, or none that this release can read."""
        try:
            found = json.loads((folder / PRODUCT_RECORD).read_text(encoding="utf-8"))
            return cls(**found | {"work": Work(**found["work"])})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True, eq=False)
class Step:
    """One step of the work on a model.

    name: unique among the steps of a plan. stage: one of `settings.STAGES`, for `--from` and `--redo`. place: the
    workspace's folder. made_from: all that decides the product besides `inputs`, as JSON. make: fills an empty
    folder, and keeps pieces if it takes long. work: what that costs. target: a folder outside of the workspace that
    it makes as well; holds: whether that is unchanged since.
    """

    name: str
    stage: str
    place: Path
    made_from: object = field(repr=False)
    make: Callable[[Path, Pieces], None]
    inputs: tuple["Step", ...] = ()
    work: Callable[[], Work] = Work
    target: Path | None = None
    holds: Callable[[Path], bool] = lambda _: True

    @cached_property
    def identity(self) -> str:
        return fingerprint([self.made_from, [step.identity for step in self.inputs]])

    @property
    def folder(self) -> Path:
        """Where the product is, or will be."""
        return self.place / f"{self.name.replace(' ', '-')}-{self.identity}"

    @property
    def pieces(self) -> Path:
        """Where pieces of a product are that is not there yet."""
        return self.folder.with_name(self.folder.name + PIECES)

    @property
    def product(self) -> Path:
        """Where a person finds it."""
        return self.target or self.folder

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return bytes_of(self.product)

    @property
    def made(self) -> Made | None:
        """The record of the product, if it is there."""
        return Made.read(self.folder)

    def require_made(self) -> Made:
        """The record of a product that has to be there.

        Raises:
            FormatError: it is not.
        """
        if (made := self.made) is None:
            raise FormatError(f"{self.folder} is not there any more; run the same command again")
        return made

    @property
    def state(self) -> State:
        made = self.made
        if made is None or not self.holds(self.folder):
            return State.MISSING
        now = {step.name: step.made for step in self.inputs}
        changed = any(found is not None and found.digest != made.inputs[name] for name, found in now.items())
        return State.STALE if changed else State.DONE


def silent(_: str) -> None:
    """A `Log` that drops every line."""


def make(steps: Iterable[Step], log: Log, left: Callable[[Mapping[Step, float]], str] | None = None) -> None:
    """Do those of `steps`, listed after their inputs, that are not done yet.

    `left`: seconds by step that was done in this run -> what is said of the time that is left. What an earlier run
    spent on a step that goes on counts.
    """
    taken: dict[Step, float] = {}
    for step in steps:
        if step.state is State.DONE:
            log(f"{step.name}: found")
            Pieces(step.pieces).clear()  # of a run that was killed just before it did
            continue
        log(f"{step.name}: begun")
        start = time.perf_counter()
        pieces = Pieces(step.pieces, _digests(step), partial(_say, log, step.name))

        def fill(folder: Path, step: Step = step, start: float = start, pieces: Pieces = pieces) -> None:
            step.make(folder, pieces)
            _write_record(step, folder, pieces.spent + time.perf_counter() - start)

        replace_folder(step.folder, fill)
        pieces.clear()
        taken[step] = pieces.spent + time.perf_counter() - start
        log(f"{step.name}: done in {duration(taken[step])}{'' if left is None else left(taken)}")


def remaining_steps(steps: Sequence[Step], again: Collection[str] = ()) -> list[Step]:
    """Those of `steps` still to be done, at most: all of the stages `again`, and everything that depends on them."""
    found: list[Step] = []
    for step in steps:
        if step.stage in again or step.state is not State.DONE or any(other in found for other in step.inputs):
            found.append(step)
    return found


def disk_needs(steps: Iterable[Step], more: Mapping[Path, int] = MappingProxyType({})) -> dict[Path, int]:
    """Bytes that the products of `steps`, and `more` by folder, take at most: by a folder on each disk they go to."""
    works = [(step, step.work()) for step in steps]
    wanted = [(step.target or step.place, work.kept) for step, work in works] + list(more.items())
    if works:  # one step runs at a time
        place, scratch = max(((step.place, work.scratch) for step, work in works), key=lambda found: found[1])
        wanted.append((place, scratch))
    disks: dict[int, Path] = {}
    needs: dict[Path, int] = {}
    for folder, size in wanted:
        place = nearest_existing(folder.absolute())
        place = disks.setdefault(place.stat().st_dev, place)
        needs[place] = needs.get(place, 0) + size
    return needs


def check_disks(steps: Iterable[Step], more: Mapping[Path, int] = MappingProxyType({})) -> None:
    """Check that there is room for `disk_needs`.

    Raises:
        TargetError: a disk has not so much free.
    """
    for place, needed in disk_needs(steps, more).items():
        check_room(place, needed)


def forget(steps: Iterable[Step]) -> None:
    """Remove the products of `steps`. Pieces stay: they are of products that are not there yet."""
    for step in steps:
        discard(step.folder)


def discard(folder: Path) -> None:
    """Remove a product, if it is there. The record goes first: without it a product is none, whatever remains of it."""
    (folder / PRODUCT_RECORD).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def names_of(step: Step) -> set[str]:
    """The names that the product of `step` and its pieces have in the workspace."""
    return {step.folder.name, step.pieces.name}


def bytes_of(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _digests(step: Step) -> dict[str, str]:
    """Of the inputs of a step, which are there."""
    return {other.name: other.require_made().digest for other in step.inputs}


def _say(log: Log, name: str, line: str) -> None:
    log(f"{name}: {line}")


def _write_record(step: Step, folder: Path, seconds: float) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    made = Made(
        step=step.name,
        seconds=seconds,
        finished=time.time(),
        bytes=sum(path.stat().st_size for path in paths),
        files={str(path.relative_to(folder)): file_sha256(path) for path in paths},
        inputs=_digests(step),
        work=step.work(),
    )
    write_atomically(folder / PRODUCT_RECORD, (json.dumps(asdict(made), indent=2) + "\n").encode())
