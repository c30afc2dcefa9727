"""The header of a safetensors file that is still elsewhere, checked as if the file were here."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hswq_runtime.errors import FormatError, HSWQError

CheckHeader = Callable[[Path], object]
"""Raises if a file with this header is of no use; it gets a file that holds the header and nothing else."""


def check_as_file(header: bytes, name: str, most: int | None, check: CheckHeader) -> None:
    """Let `check` see a file with this header, see :func:`stand_in`."""
    with stand_in(header, name, most) as path:
        check(path)


@contextmanager
def stand_in(header: bytes, name: str, most: int | None = None) -> Iterator[Path]:
    """A file that begins with `header` (its eight-byte length included) and is a hole otherwise.

    most: bytes that the whole file can have, None if nobody knows.

    Raises:
        FormatError: it is not such a header, or it is of a longer file.
        HSWQError: what the block says of the file, about `name`.
    """
    size = len(header) + _data_size(header[8:], name)
    if most is not None and size > most:
        raise FormatError(f"{name} has a header that is of a longer file: {size} bytes, but {most} are listed")
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(header)
        try:
            os.truncate(path, size)  # a hole takes no room
        except (OverflowError, OSError):
            raise FormatError(f"{name} has a header that is of no possible file: {size} bytes") from None
        try:
            yield path
        except HSWQError as error:
            raise type(error)(str(error).replace(str(path), name)) from None


def _data_size(header: bytes, name: str) -> int:
    """Where the last tensor ends."""
    try:
        entries = json.loads(header)
        return max((_end(entry["data_offsets"]) for key, entry in entries.items() if key != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FormatError(f"{name} has no header of a safetensors file") from None


def _end(offsets: list[int]) -> int:
    begin, end = offsets
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise ValueError
    return end
