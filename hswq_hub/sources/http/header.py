"""A sparse stand-in for a remote safetensors file, so that its header is checked as if the file were here."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hswq_runtime.errors import FormatError, HSWQError

CheckHeader = Callable[[Path], object]
"""Raises if a file with this header cannot be used. Its argument is the path of a :func:`stand_in`."""


def check_as_file(header: bytes, name: str, most: int | None, check: CheckHeader) -> None:
    """Call `check` with a :func:`stand_in` for a file with this header."""
    with stand_in(header, name, most) as path:
        check(path)


@contextmanager
def stand_in(header: bytes, name: str, most: int | None = None) -> Iterator[Path]:
    """A sparse file that begins with `header` (its eight-byte length included) and has the size that it states.

    most: the largest size in bytes that the whole file can have, None if not known.

    Raises:
        FormatError: `header` is no safetensors header, or belongs to a file of more than `most` bytes.
        HSWQError: the block raised it; its message names `name` in place of the temporary path.
    """
    size = len(header) + _data_size(header[8:], name)
    if most is not None and size > most:
        raise FormatError(f"{name} has a header that is of a longer file: {size} bytes, but {most} are listed")
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(header)
        try:
            os.truncate(path, size)  # sparse: takes no room
        except (OverflowError, OSError):
            raise FormatError(f"{name} has a header that is of no possible file: {size} bytes") from None
        try:
            yield path
        except HSWQError as error:
            raise type(error)(str(error.args[0]).replace(str(path), name)) from None


def _data_size(header: bytes, name: str) -> int:
    """Bytes behind the header: where the last tensor ends."""
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
