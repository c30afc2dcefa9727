"""The header of a safetensors file over HTTP, and no more of it: some kilobytes of some gigabytes."""

import re

from ...common.retry import Patience
from ..errors import DownloadError, UnsuitableSourceError
from ..listing import RemoteFile
from .download import LONGEST_HEADER, WEB_PAGES, Explain
from .web import Interrupted, Web, raise_if_passing, read_json, wait_for

_FIRST = 1 << 16
"""Bytes that are asked for before the length of the header is known."""


def fetch_header(web: Web, url: str, file: RemoteFile, explain: Explain) -> bytes:
    """The beginning of `file`, its header's eight-byte length included: arguments as of `download.download`.

    Raises:
        UnsuitableSourceError: it is no safetensors file.
        DownloadError: it did not arrive.
        SourceError: what `explain` says.
    """
    patience, arrived = Patience(), bytearray()
    while len(arrived) < (wanted := _wanted(arrived, file.name)):
        try:
            _transfer(web, url, arrived, wanted, explain)
        except Interrupted as failure:
            wait_for(failure, patience)
    return bytes(arrived[:wanted])


def _wanted(arrived: bytearray, name: str) -> int:
    """How many bytes the header has, as far as is known."""
    if len(arrived) < 9:
        return _FIRST
    size = int.from_bytes(arrived[:8], "little")
    if size > LONGEST_HEADER or arrived[8:9] != b"{":
        raise UnsuitableSourceError(f"{name} is not a safetensors file")
    return 8 + size


def _transfer(web: Web, url: str, arrived: bytearray, wanted: int, explain: Explain) -> None:
    """One request for what is missing, added to `arrived`; a host that does not know ranges is hung up on.

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
