"""Folders that are replaced as a whole: what may be replaced, room for it, and the replacement."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from hswq_runtime.errors import HSWQError

from .layout import CONTENTS, RECORD
from .text import megabytes

_LOCK, _FRESH, _OLD = ".hswq-lock", "new", "old"


class TargetError(HSWQError):
    """The target holds something that is not ours to replace, cannot be written, or has no room."""


def check_target(folder: Path) -> None:
    """Check that `folder` can be made, is empty, or holds nothing but what this tool put there.

    Raises:
        TargetError: it cannot, or it holds something else.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise TargetError(f"{folder} is a file; choose another --folder")
    if folder == Path.cwd() or os.path.ismount(folder):
        raise TargetError(f"{folder} cannot be replaced as a whole; give a folder below it as --folder")
    parent = nearest_existing(folder.parent)
    if not os.access(parent, os.W_OK | os.X_OK) or not parent.is_dir():
        raise TargetError(f"{parent} cannot be written to; choose another --folder")
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    foreign = present - _own_contents(folder)
    if foreign:
        raise TargetError(
            f"{folder} holds something that hswq-hub did not make ({sorted(foreign)[0]}); choose another --folder"
        )


def check_same_source(folder: Path, sha256: str) -> None:
    """Check that `folder`, which nobody named, was not made from another checkpoint of the same name.

    Raises:
        TargetError: it was.
    """
    try:
        made_from = json.loads((folder / RECORD).read_text(encoding="utf-8"))["source"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # nothing of ours: `check_target` says what it thinks of that
    if made_from != sha256:
        raise TargetError(f"{folder} was made from another checkpoint of that name; say where to with --folder")


def _own_contents(folder: Path) -> set[str]:
    """What the record in `folder` lists; nothing if it is no record of ours."""
    try:
        listed = json.loads((folder / RECORD).read_text(encoding="utf-8"))[CONTENTS]
        return {RECORD, *listed}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def list_contents(folder: Path) -> list[str]:
    """All files of `folder` but the record, relative to it, for the record."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in files if str(path) != RECORD)


def check_room(folder: Path, needed: int) -> None:
    """Check that the disk under `folder` has `needed` bytes free.

    Raises:
        TargetError: it has not.
    """
    place = nearest_existing(folder.absolute())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise TargetError(
            f"{place} has {megabytes(free)} free, but {megabytes(needed)} are needed; free some, then run the same "
            "command again"
        )


def check_replaceable(path: Path, suffix: str, is_ours: Callable[[Path], object]) -> None:
    """Check that a product may be written to `path`: the right suffix, a folder one can write to, and nothing there
    but an earlier product, which `is_ours` reads without raising.

    Raises:
        TargetError: one of these is not so.
    """
    if path.suffix != suffix:
        raise TargetError(f"{path} must end in {suffix}")
    parent = nearest_existing(path.absolute().parent)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise TargetError(f"{parent} cannot be written to; choose another --output")
    if path.exists():
        try:
            is_ours(path)
        except HSWQError as error:
            raise TargetError(f"{path} is there already and is not ours to replace; choose another --output") from error


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a new folder and give that the name `folder` when it is complete and on the disk.

    If anything fails, the old folder stays as it was and nothing is left beside it; `clear_away` does the same after a
    run that was killed. A link is followed.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_away(folder.parent, folder.name)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    fresh, old = staging / _FRESH, staging / _OLD
    with FileLock(staging / _LOCK):
        try:
            fresh.mkdir()
            fill(fresh)
            flush(fresh)
            if folder.exists():
                folder.rename(old)
            fresh.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
        finally:
            _remove(staging)


def clear_away(parent: Path, name: str | None = None) -> None:
    """Remove what runs that were killed left in `parent`: of the folder `name`, or of all folders.

    A folder that such a run had moved out of the way, and not replaced, is put back. What belongs to a run that is
    still alive is locked by it.
    """
    for lock in parent.glob(f".*/{_LOCK}"):
        staging = lock.parent
        folder = parent / staging.name[1:].rpartition(".")[0]
        if name not in (None, folder.name) or not {*os.listdir(staging)} <= {_LOCK, _FRESH, _OLD}:
            continue
        try:
            with FileLock(lock, timeout=0):
                if (staging / _OLD).exists() and not folder.exists():
                    (staging / _OLD).rename(folder)
                _remove(staging)
        except Timeout:
            continue


def _remove(staging: Path) -> None:
    """Remove a staging folder, its lock last: `clear_away` finds staging folders by their locks."""
    for folder in (staging / _OLD, staging / _FRESH):
        if folder.exists():
            shutil.rmtree(folder)
    shutil.rmtree(staging)


def flush(folder: Path) -> None:
    """Have all files of `folder` written to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def nearest_existing(path: Path) -> Path:
    """`path`, or the folder nearest to it that is there."""
    return next(place for place in [path, *path.parents] if place.exists())
