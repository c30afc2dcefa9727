"""Writing files so that a name either holds the whole product or does not exist; and their digests."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .progress import progress


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` when the block ends well, and vanishes when it does not.

    It is written under a temporary name in the same folder, flushed to the disk, then renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
