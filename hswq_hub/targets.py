"""Where a finished model goes: for now a local folder, laid out as a Hub repo would be."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hswq_runtime.errors import HSWQError

RECORD = "hswq.json"
"""Every folder that we make holds this file; a folder without it is somebody else's."""


class TargetError(HSWQError):
    """The target holds something that is not ours to replace, or has no room."""


def check_target(folder: Path) -> None:
    """Check that `folder` is free, empty, or one that this tool made.

    Raises:
        TargetError: it holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise TargetError(f"{folder} is a file; choose another --folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).is_file():
        raise TargetError(f"{folder} holds something that hswq-hub did not make; choose another --folder, or empty it")


def check_room(folder: Path, needed: int) -> None:
    """Check that the disk under `folder` has `needed` bytes free.

    Raises:
        TargetError: it has not.
    """
    place = next(p for p in [folder.absolute(), *folder.absolute().parents] if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise TargetError(f"{place} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are needed; free some room")


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a new folder and give that the name `folder` when it is complete.

    If `fill` fails, what was under the name stays as it was and nothing is left beside it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        fresh = staging / "new"
        fresh.mkdir()
        fill(fresh)
        if folder.exists():
            folder.rename(staging / "old")
        fresh.rename(folder)
    finally:
        shutil.rmtree(staging)
