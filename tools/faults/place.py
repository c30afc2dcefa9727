"""A small disk of its own for a case, which can be full, read-only, or somebody else's."""

import os
import shutil
import subprocess
from pathlib import Path

from .forked import YEARS

PARTS = ("home", "hf", "published", "tmp", "user")
KEPT = ("home", "hf", "published")
"""Workspace and caches, the Hub client's cache, and where the target is."""
_WIDE = "512m"
_PAGE = 4096


class Disk:
    """A tmpfs at `folder`, with a folder for each of `PARTS`; a context manager. owner: whose it is."""

    def __init__(self, folder: Path, owner: int = 0):
        self.folder, self.owner = folder, owner
        self._closed: list[Path] = []

    def __enter__(self) -> "Disk":
        self.folder.mkdir(parents=True, exist_ok=True)
        mount("-t", "tmpfs", "-o", f"size={_WIDE},mode=755", "tmpfs", str(self.folder))
        for part in PARTS:
            (self.folder / part).mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)  # a run that hangs may have files open

    def fill_from(self, prepared: Path) -> None:
        """Copy what an earlier run left, times and all."""
        for part in PARTS:
            if (prepared / part).exists():
                shutil.copytree(prepared / part, self.folder / part, symlinks=True, dirs_exist_ok=True)
        self.own()

    def own(self) -> None:
        """Give all of it to the owner."""
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, self.owner, self.owner, follow_symlinks=False)

    def fill_up(self) -> None:
        """No byte is left."""
        stat = os.statvfs(self.folder)
        used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
        mount("-o", f"remount,size={max(used, _PAGE)}", str(self.folder))

    def close(self) -> None:
        """Nothing can be written in `KEPT`, by nobody."""
        for part in KEPT:
            path = self.folder / part
            mount("--bind", str(path), str(path))
            mount("-o", "remount,bind,ro", str(path))
            self._closed.append(path)

    def forbid(self) -> None:
        """Nothing can be made or removed in any folder of `KEPT` by the owner."""
        for place in self._folders():
            os.chown(place, 0, 0)
            os.chmod(place, 0o555)

    def into_the_future(self) -> None:
        """What was made so far has a time ten years from now."""
        for path in (self.folder / "home/work").rglob("*"):
            stat = path.stat()
            os.utime(path, (stat.st_atime + YEARS, stat.st_mtime + YEARS))

    def open(self) -> None:
        """There is room, and everything can be written, as before."""
        while self._closed:
            subprocess.run(["umount", str(self._closed.pop())], check=True)
        mount("-o", f"remount,size={_WIDE}", str(self.folder))
        for place in self._folders():
            if place.stat().st_mode & 0o777 == 0o555:
                os.chmod(place, 0o755)
        self.own()

    def _folders(self) -> list[Path]:
        places = [self.folder / part for part in KEPT]
        return [path for place in places for path in (place, *place.rglob("*")) if path.is_dir()]


def mount(*words: str) -> None:
    """What only root may do."""
    subprocess.run(["mount", *words], check=True)
