"""Downloaded models, kept by their content: one copy of each, whatever it was called where it came from.

    cache/<sha256>/<name>       the file
    cache/verified/<id>.json    of a file here or in the Hub's cache: its digest, and the size and time it had then;
                                the time of this record is that of the last use
    cache/partial/<key>         what has arrived of a download, and beside it `<key>.json`, what it is a part of
    cache/digests/<key>         the digest of something that is not known by it

A file is used only while it has the size and the modification time with which it was verified; one that was touched
since is hashed again, and given up if it is no longer what it was.
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

from ...common.files import file_sha256, write_atomically
from ...common.home import home

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
    """What it is locked by."""

    @property
    def days(self) -> float:
        """Days since the last use."""
        return max(time.time() - self.used, 0) / _DAY


def folder() -> Path:
    """Where the cache is."""
    return home() / "cache"


def partial(key: str) -> Path:
    """Where the unfinished download `key` is kept. Keys are ours: digests, never names from a host."""
    return folder() / _PARTIAL / key


@contextmanager
def locked(key: str) -> Iterator[None]:
    """Only one process downloads `key`; others wait and find it there."""
    _lock(key).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock(key)):
        yield


def find(sha256: str, *, verify: bool = False) -> Path | None:
    """The file with that content, None if it is not here or no longer what it was. `verify`: read all of it."""
    path = next(iter((folder() / sha256).glob("*")), None)
    if path is None:
        return None
    if sha256_of(path, verify=verify) != sha256:
        shutil.rmtree(path.parent)
        return None
    os.utime(_record(path))
    return path


def add(arrived: Path, name: str, sha256: str) -> Path:
    """Take a verified file, which is moved, into the cache under `name`; returns where it, or its like, is."""
    if known := find(sha256):
        arrived.unlink()
        return known
    path = folder() / sha256 / name
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(arrived, path)
    _note(path, _state(path, sha256))
    return path


def remember(key: str, sha256: str) -> None:
    """Note the digest of what `key` stands for, where no host lists one."""
    write_atomically(folder() / _DIGESTS / key, sha256.encode())


def recall(key: str) -> str | None:
    """What `remember` noted for `key`."""
    path = folder() / _DIGESTS / key
    return path.read_text() if path.is_file() else None


def holding(sha256: str) -> Path | None:
    """The file with that content, if it is here and unchanged since it was hashed. It reads and removes nothing."""
    path = next(iter((folder() / sha256).glob("*")), None)
    return path if path is not None and known_sha256(path) == sha256 else None


def known_sha256(path: Path) -> str | None:
    """The digest of `path` when it was hashed last; None if it never was, or has changed since by size and time."""
    try:
        record = json.loads(_record(path).read_text(encoding="utf-8"))
        return str(record["sha256"]) if record == _state(path, record["sha256"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sha256_of(path: Path, *, verify: bool = False) -> str:
    """The digest of a file anywhere on this disk: the one known, else found out and remembered. `verify`: read it."""
    if not verify and (known := known_sha256(path)) is not None:
        return known
    before = path.stat()  # a file that changes while it is read is read again the next time
    digest = file_sha256(path)
    _note(path, _state_of(before, digest))
    return digest


def contents() -> list[Cached]:
    """Everything in the cache, the largest first."""
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
    """Remove what was last used more than `older_than` days ago and is not being fetched; returns what was removed.

    `keep`: files that stay whatever their age.
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
