"""The cache of downloaded models, keyed by SHA-256: one copy of each, whatever its name on the host.

    cache/<sha256>/<name>       the file
    cache/verified/<id>.json    digest, size and mtime of a file that was hashed, here or anywhere on this disk; the
                                mtime of this record is the time of the file's last use
    cache/partial/<key>         an unfinished download; beside it `<key>.json` with its name and entity tag
    cache/digests/<key>         the digest of a download for which the host lists none

A file is used only while its size and modification time are those recorded when it was hashed. A file that was touched
since is hashed again, and removed from the cache if its digest differs.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ...common.files import file_sha256, held, write_atomically
from ...common.home import home
from ...common.progress import remark

_PARTIAL, _DIGESTS, _VERIFIED = "partial", "digests", "verified"
_DAY = 86_400


@dataclass(frozen=True)
class Cached:
    """One entry of the cache. sha256 None: an unfinished download. used: seconds since the epoch."""

    name: str
    sha256: str | None
    size: int
    used: float
    paths: tuple[Path, ...]
    key: str
    """The key of its lock."""

    @property
    def days(self) -> float:
        """Days since the last use."""
        return max(time.time() - self.used, 0) / _DAY


def folder() -> Path:
    """Where the cache is."""
    return home() / "cache"


def partial(key: str) -> Path:
    """Path of the unfinished download `key`. Keys are digests, never names from a host."""
    return folder() / _PARTIAL / key


@contextmanager
def locked(key: str, name: str) -> Iterator[None]:
    """Hold the lock of `key`: one process fetches the file `name`, the others say that they wait, and then find it."""
    _lock(key).parent.mkdir(parents=True, exist_ok=True)
    with held(_lock(key), lambda: remark(f"another hswq-hub is fetching {name}; waiting for it to end")):
        yield


def find(sha256: str, *, verify: bool = False) -> Path | None:
    """The file with that digest, None if it is not here. A file with another digest is removed.

    verify: hash it again, even if its size and modification time are unchanged.
    """
    path = next(iter((folder() / sha256).glob("*")), None)
    if path is None:
        return None
    if sha256_of(path, verify=verify) != sha256:
        shutil.rmtree(path.parent)
        return None
    os.utime(_record(path))
    return path


def add(arrived: Path, name: str, sha256: str) -> Path:
    """Move a verified file into the cache as `name`; returns its path, or that of the copy that was there already."""
    if known := find(sha256):
        arrived.unlink()
        return known
    path = folder() / sha256 / name
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(arrived, path)
    _note(path, _state(path, sha256))
    return path


def remember(key: str, sha256: str) -> None:
    """Record the digest of the download `key`, for which the host lists none."""
    write_atomically(folder() / _DIGESTS / key, sha256.encode())


def recall(key: str) -> str | None:
    """The digest that :func:`remember` recorded for `key`, None without one."""
    path = folder() / _DIGESTS / key
    return path.read_text() if path.is_file() else None


def holding(sha256: str) -> Path | None:
    """The file with that digest, if it is here and unchanged since it was hashed. Nothing is hashed or removed."""
    path = next(iter((folder() / sha256).glob("*")), None)
    return path if path is not None and known_sha256(path) == sha256 else None


def known_sha256(path: Path) -> str | None:
    """The recorded digest of `path`; None if it was never hashed, or its size or modification time has changed."""
    try:
        record = json.loads(_record(path).read_text(encoding="utf-8"))
        return str(record["sha256"]) if record == _state(path, record["sha256"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sha256_of(path: Path, *, verify: bool = False) -> str:
    """The digest of any file on this disk: the recorded one, else it is hashed and recorded.

    verify: hash it again, even if its size and modification time are unchanged.
    """
    if not verify and (known := known_sha256(path)) is not None:
        return known
    before = path.stat()  # a file that changes while it is read is read again the next time
    digest = file_sha256(path)
    _note(path, _state_of(before, digest))
    return digest


def contents() -> list[Cached]:
    """All entries of the cache, largest first."""
    found = []
    for place in (folder() / name for name in _names(folder()) if name not in (_PARTIAL, _DIGESTS, _VERIFIED)):
        for path in (place / name for name in _names(place)):
            record = _record(path)
            used = record.stat().st_mtime if record.exists() else path.stat().st_mtime
            found.append(Cached(path.name, place.name, path.stat().st_size, used, (place, record), place.name))
    for path in (folder() / _PARTIAL / name for name in _names(folder() / _PARTIAL)):
        if path.suffix == ".lock" or ".json" in path.suffixes:
            continue
        key = path.name.removeprefix(".").split(".")[0]  # a file being written has a dot before and something behind
        record, stat = path.with_name(f"{key}.json"), path.stat()
        found.append(Cached(_name_of(record), None, stat.st_size, stat.st_mtime, (path, record), key))
    return sorted(found, key=lambda entry: -entry.size)


def prune(older_than: float, keep: Collection[Path] = ()) -> list[Cached]:
    """Remove entries last used more than `older_than` days ago, unless a download of them is under way.

    keep: files that stay whatever their age. Returns what was removed.
    """
    removed = []
    for entry in contents():
        if entry.days < older_than or any(path.parent in entry.paths for path in keep):
            continue
        _lock(entry.key).parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(_lock(entry.key), timeout=0):  # kept until all is gone: a download may begin at any moment
                for path in entry.paths:
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except Timeout:
            continue
        removed.append(entry)
    return removed


def _names(place: Path) -> list[str]:
    return sorted(os.listdir(place)) if place.is_dir() else []


def _name_of(record: Path) -> str:
    try:
        return str(json.loads(record.read_text(encoding="utf-8"))["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return record.stem


def _lock(key: str) -> Path:
    return folder() / _PARTIAL / f"{key}.lock"


def _record(path: Path) -> Path:
    return folder() / _VERIFIED / f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]}.json"


def _note(path: Path, state: dict[str, str | int]) -> None:
    write_atomically(_record(path), json.dumps(state).encode())


def _state(path: Path, sha256: str) -> dict[str, str | int]:
    return _state_of(path.stat(), sha256)


def _state_of(stat: os.stat_result, sha256: str) -> dict[str, str | int]:
    return {"sha256": sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
