"""The header of a safetensors file that is still elsewhere, checked as if the file were here."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from hswq_runtime.errors import FormatError, HSWQError

CheckHeader = Callable[[Path], object]
"""Raises if a file with this header is of no use; it gets a file that holds the header and nothing else."""


def check_as_file(header: bytes, name: str, check: CheckHeader) -> None:
    """Let `check` see a file that begins with `header` (its eight-byte length included) and is a hole otherwise.

    Raises:
        FormatError: it is not such a header.
        HSWQError: what `check` says, about `name`.
    """
    with TemporaryDirectory() as folder:
        stand_in = Path(folder) / name
        stand_in.write_bytes(header)
        os.truncate(stand_in, len(header) + _data_size(header[8:], name))  # a hole takes no room
        try:
            check(stand_in)
        except HSWQError as error:
            raise type(error)(str(error).replace(str(stand_in), name)) from None


def _data_size(header: bytes, name: str) -> int:
    try:
        entries = json.loads(header)
        return max((entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise FormatError(f"{name} has no header of a safetensors file") from None
