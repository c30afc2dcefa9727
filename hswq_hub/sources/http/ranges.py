"""Fetches only the header of a remote safetensors file, by HTTP range requests: kilobytes of gigabytes."""

import re

from ...common.retry import Patience
from ..errors import DownloadError, UnsuitableSourceError
from ..listing import RemoteFile
from .download import LONGEST_HEADER, WEB_PAGES, Explain
from .web import Interrupted, Web, raise_if_passing, read_json, wait_for

_FIRST = 1 << 16
"""Bytes of the first request, before the header's length is known."""


def fetch_header(web: Web, url: str, file: RemoteFile, explain: Explain) -> bytes:
    """The header of `file` with its eight-byte length. Arguments: see :func:`hswq_hub.sources.http.download.download`.

    Raises:
        UnsuitableSourceError: it is no safetensors file.
        DownloadError: it did not arrive.
        SourceError: see `explain`.
    """
    patience, arrived = Patience(), bytearray()
    while len(arrived) < (wanted := _wanted(arrived, file.name)):
        try:
            _transfer(web, url, arrived, wanted, explain)
        except Interrupted as failure:
            wait_for(failure, patience)
    return bytes(arrived[:wanted])


def _wanted(arrived: bytearray, name: str) -> int:
    """Bytes of the header with its length; `_FIRST` until that is known."""
    if len(arrived) < 9:
        return _FIRST
    size = int.from_bytes(arrived[:8], "little")
    if size > LONGEST_HEADER or arrived[8:9] != b"{":
        raise UnsuitableSourceError(f"{name} is not a safetensors file")
    return 8 + size


def _transfer(web: Web, url: str, arrived: bytearray, wanted: int, explain: Explain) -> None:
    """One request for the missing bytes, appended to `arrived`. A host that ignores ranges is disconnected early.

    Raises:
        Interrupted: the rest may come with the next request.
    """
    begin = len(arrived)
    with web.get(url, {"Range": f"bytes={begin}-{wanted - 1}"}) as response:
        raise_if_passing(response)
        is_page = response.headers.get("Content-Type", "").lower().startswith(WEB_PAGES)
        if response.status_code not in (200, 206) or is_page:
            raise explain(response.status_code, read_json(response), web.is_home(response.url))
        if response.status_code == 200:
            arrived.clear()
        elif not re.match(rf"bytes {begin}-", response.headers.get("Content-Range", "")):
            raise DownloadError(f"{response.url.host} sends another piece than was asked for; try again later")
        for piece in response.iter_raw():
            arrived += piece
            if len(arrived) >= wanted:
                return
    if not arrived or len(arrived) == begin:
        raise Interrupted(f"the connection to {web.host} broke")
