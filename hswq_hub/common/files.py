"""Writing files so that a name either holds the whole product or does not exist; digests; and whose turn it is."""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from .progress import progress


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` when the block ends well, and vanishes when it does not.

    It is written under a temporary name in the same folder, flushed to the disk, then renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    binary = getattr(os, "O_BINARY", 0)  # of Windows alone
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | binary, 0o666)  # less what the umask takes away
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """`data` under the name `path`, whole or not at all."""
    with atomic_file(path) as file:
        file.write(data)


def file_sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces of 16 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file, progress(total=path.stat().st_size, desc=f"sha256 {path.name}", unit="B") as bar:
        while piece := file.read(1 << 24):
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest()


@contextmanager
def held(lock: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `lock`, as one process at a time can; `wait` is called if another has it."""
    found = FileLock(lock)
    try:
        found.acquire(timeout=0)
    except Timeout:
        wait()
        found.acquire()
    try:
        yield
    finally:
        found.release()
