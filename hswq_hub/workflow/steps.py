"""Steps: what is made from what, kept when it is made, and made again only when it has to be.

The product of a step is a folder, named by all that decides what is in it: the step's settings, the code, and the
steps that it is made from. So where a product will be is known before anything is computed. A product appears as a
whole, together with its record: how long it took, its digest, and the digests of what it was made from. A step is
done if the record is there and those digests are still the right ones.
"""

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from ..common.files import file_sha256, write_atomically
from ..common.identity import fingerprint
from ..common.targets import check_room, nearest_existing, replace_folder
from ..common.text import duration

PRODUCT_RECORD = "made.json"
Tell = Callable[[str], None]
"""Is told in one line what becomes of each step."""


class State(Enum):
    """Whether a step has to be done. STALE: it was made from something that was made anew since, with other bytes."""

    DONE = "done"
    MISSING = "missing"
    STALE = "stale"


@dataclass(frozen=True)
class Work:
    """What a step costs, as far as it is known before.

    calls: of the denoiser on `device`, one picture each, `size` pixels a side (None: the model's own). flops:
    arithmetic besides. moved: bytes read and written. kept: bytes of the product.
    """

    calls: int = 0
    device: str = "cpu"
    size: int | None = None
    flops: float = 0.0
    moved: int = 0
    kept: int = 0


@dataclass(frozen=True)
class Made:
    """The record of a product. finished: seconds since the epoch. files: SHA-256 by name. inputs: digests by step."""

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

    name: its own. stage: what a person calls it and its like, one of `settings.STAGES`. place: the folder that its
    product will be in. made_from: all that decides the product besides `inputs`, as JSON can hold it. make: fills an
    empty folder. work: what that costs. target: what else it makes, outside of the workspace; holds: whether that is
    still as it was left.
    """

    name: str
    stage: str
    place: Path
    made_from: object = field(repr=False)
    make: Callable[[Path], None]
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
    def product(self) -> Path:
        """Where a person finds it."""
        return self.target or self.folder

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return sum(path.stat().st_size for path in self.product.rglob("*") if path.is_file())

    @property
    def made(self) -> Made | None:
        """The record of the product."""
        return Made.read(self.folder)

    @property
    def state(self) -> State:
        made = self.made
        if made is None or not self.holds(self.folder):
            return State.MISSING
        now = {step.name: step.made for step in self.inputs}
        changed = any(found is not None and found.digest != made.inputs[name] for name, found in now.items())
        return State.STALE if changed else State.DONE


def silent(_: str) -> None:
    """A `Tell` for those who do not want to know."""


def make(steps: Iterable[Step], tell: Tell) -> None:
    """Do what is not done yet of `steps`, each of which comes after its inputs."""
    for step in steps:
        if step.state is State.DONE:
            tell(f"{step.name}: found")
            continue
        tell(f"{step.name}: begun")
        start = time.perf_counter()

        def fill(folder: Path, step=step, start=start):
            step.make(folder)
            _write_record(step, folder, time.perf_counter() - start)

        replace_folder(step.folder, fill)
        tell(f"{step.name}: done in {duration(time.perf_counter() - start)}")


def open_steps(steps: Sequence[Step], again: Collection[str] = ()) -> list[Step]:
    """Those of `steps` still to be done, if the stages `again` are done anew and whatever comes of them differs."""
    found: list[Step] = []
    for step in steps:
        if step.stage in again or step.state is not State.DONE or any(other in found for other in step.inputs):
            found.append(step)
    return found


def disk_needs(steps: Iterable[Step], more: Mapping[Path, int] = MappingProxyType({})) -> dict[Path, int]:
    """Bytes that the products of `steps`, and `more` by folder, take at most: by a folder on each disk they go to."""
    wanted = [(step.target or step.place, step.work().kept) for step in steps] + list(more.items())
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
    """Remove the products of `steps`. The record goes first: without it a product is none, whatever remains of it."""
    for step in steps:
        (step.folder / PRODUCT_RECORD).unlink(missing_ok=True)
        if step.folder.exists():
            shutil.rmtree(step.folder)


def _write_record(step: Step, folder: Path, seconds: float) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    made = Made(
        step=step.name,
        seconds=seconds,
        finished=time.time(),
        bytes=sum(path.stat().st_size for path in paths),
        files={str(path.relative_to(folder)): file_sha256(path) for path in paths},
        inputs={other.name: other.made.digest for other in step.inputs},
        work=step.work(),
    )
    write_atomically(folder / PRODUCT_RECORD, (json.dumps(asdict(made), indent=2) + "\n").encode())
