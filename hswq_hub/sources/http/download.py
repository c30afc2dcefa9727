"""Downloads one model file over HTTP, resumes an interrupted download, and keeps only a file that is what was listed.

An unfinished download stays in the cache with its entity tag. The next request asks for the rest under `If-Range`, and
starts over if the server sends the whole file. The header comes first in a safetensors file, so a file that cannot be
used is refused after some kilobytes.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpx2
from tqdm import tqdm

from hswq_runtime.errors import HSWQError

from ...common.files import file_sha256, write_atomically
from ...common.progress import progress
from ...common.retry import Patience
from ...common.targets import check_room
from ..errors import DownloadError, SourceError, UnsuitableSourceError
from ..listing import RemoteFile
from . import cache
from .header import CheckHeader, check_as_file
from .web import Interrupted, Web, raise_if_passing, read_json, wait_for

LONGEST_HEADER = 100_000_000
"""Bytes of a header that the safetensors library allows."""
WEB_PAGES = ("text/", "application/json", "application/xml", "application/xhtml")
_SIZE_TOLERANCE = 2048
"""Bytes by which a size may differ from the listed one: Civitai rounds to kilobytes. The digest decides."""

Explain = Callable[[int, dict[str, Any], bool], SourceError]
"""(HTTP status, JSON body, whether the host itself answered and not its storage) -> the exception to raise."""


@dataclass
class _Part:
    """An unfinished download. tag: entity tag of the whole file. arrived: bytes so far."""

    path: Path
    name: str
    tag: str | None = None
    arrived: int = 0
    header_checked: bool = False

    @classmethod
    def open(cls, path: Path, name: str) -> "_Part":
        """The unfinished download at `path`; an empty one if there is none."""
        try:
            record = json.loads(_beside(path).read_text(encoding="utf-8"))
            return cls(path, name, record["tag"], path.stat().st_size)
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path, name)

    def start(self, tag: str | None) -> None:
        """Begin anew, with a file of the entity tag `tag`."""
        self.tag, self.arrived, self.header_checked = tag, 0, False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(b"")
        write_atomically(_beside(self.path), json.dumps({"name": self.name, "tag": tag}).encode())

    def ask_for_the_rest(self, listed: bool) -> dict[str, str]:
        """Request headers. Without a tag it resumes only if a digest is listed, which the result is checked by."""
        tag = None if (self.tag or "").startswith("W/") else self.tag  # a weak tag does not promise equal bytes
        if not self.arrived or not (tag or listed):
            return {}
        return {"Range": f"bytes={self.arrived}-", **({"If-Range": tag} if tag else {})}

    def remove(self) -> None:
        """Remove it and its record."""
        self.path.unlink(missing_ok=True)
        _beside(self.path).unlink(missing_ok=True)
        self.tag, self.arrived, self.header_checked = None, 0, False


def download(
    web: Web,
    url: str,
    file: RemoteFile,
    explain: Explain,
    check_header: CheckHeader,
    *,
    verify: bool = False,
) -> tuple[Path, str]:
    """Fetch `file` from `url` into the cache, or find it there.

    Args:
        web: the client; it alone decides where the token goes.
        url: path below its endpoint, or a whole address.
        file: what the host lists; a listed size or digest is checked.
        explain: the exception for an answer that is no file.
        check_header: called as soon as the header is there; raises if the file cannot be used.
        verify: hash a file that is in the cache again.

    Returns:
        Its path, and its SHA-256 in lower-case hex.

    Raises:
        DownloadError: it did not arrive, or is not what was listed.
        HSWQError: see `explain` and `check_header`.
        TargetError: the disk has no room.
    """
    key = _key(web, url, file)
    with cache.locked(key, file.name):
        known = file.sha256 or cache.recall(key)
        if known and (found := cache.find(known, verify=verify)):
            return found, known
        part = _Part.open(cache.partial(key), file.name)
        resumed = part.arrived > 0
        digest = _fetch(web, url, file, part, explain, check_header)
        if resumed and file.sha256 not in (None, digest):
            # The file may have changed between two runs: only a download in one piece is conclusive.
            part.remove()
            digest = _fetch(web, url, file, part, explain, check_header)
        if file.sha256 not in (None, digest):
            part.remove()
            raise DownloadError(
                f"{file.name} has the SHA-256 {digest}, but {file.sha256} is listed; nothing was kept: try again, or "
                "tell its creator"
            )
        path = cache.add(part.path, file.name, digest)
        part.remove()
        if file.sha256 is None:
            cache.remember(key, digest)
        return path, digest


def cached(web: Web, url: str, file: RemoteFile) -> Path | None:
    """Path of the file in the cache; None if :func:`download` would have to send a request.

    A file that changed since it was hashed counts as absent. Nothing is hashed.
    """
    known = file.sha256 or cache.recall(_key(web, url, file))
    return cache.holding(known) if known else None


def _key(web: Web, url: str, file: RemoteFile) -> str:
    """The key of the download: its digest, else a digest of its address."""
    return file.sha256 or hashlib.sha256(f"{web.endpoint} {url} {file.size}".encode()).hexdigest()


def _fetch(web: Web, url: str, file: RemoteFile, part: _Part, explain: Explain, check_header: CheckHeader) -> str:
    """Transfer until all bytes have arrived; returns the SHA-256."""
    patience = Patience()
    with progress(total=file.size, desc=file.name, unit="B", initial=part.arrived) as bar:
        while True:
            before = part.arrived
            try:
                _transfer(web, url, file, part, explain, check_header, bar)
                break
            except Interrupted as failure:
                if part.arrived > before:
                    patience.progress()
                wait_for(failure, patience)
    if file.size is not None and abs(part.arrived - file.size) > _SIZE_TOLERANCE:
        arrived = part.arrived
        part.remove()
        raise DownloadError(f"{file.name} has {arrived} bytes, but {file.size} are listed; nothing was kept")
    if not part.header_checked:
        part.remove()
        raise UnsuitableSourceError(f"{file.name} is not a safetensors file: it ends within its header")
    return file_sha256(part.path)


def _transfer(
    web: Web,
    url: str,
    file: RemoteFile,
    part: _Part,
    explain: Explain,
    check_header: CheckHeader,
    bar: "tqdm[NoReturn]",
) -> None:
    """One request for the missing bytes, which are appended.

    Raises:
        Interrupted: the rest may come with the next request.
    """
    with web.get(url, part.ask_for_the_rest(listed=file.sha256 is not None)) as response:
        at_home = web.is_home(response.url)
        total: int | None = None
        raise_if_passing(response)
        if not at_home and response.status_code in (400, 401, 403, 404, 410):
            # The storage's signed address expires; the next request gets a new one.
            raise Interrupted(f"the storage at {response.url.host} answers {response.status_code}")
        if response.status_code == 416:
            if part.arrived and response.headers.get("Content-Range", "").endswith(f"*/{part.arrived}"):
                _check_header(part, file, check_header)
                return
            part.start(None)
            raise Interrupted(f"{response.url.host} does not have the rest of what had arrived")
        is_page = response.headers.get("Content-Type", "").lower().startswith(WEB_PAGES)
        if response.status_code not in (200, 206) or is_page:
            raise explain(response.status_code, read_json(response), at_home)
        if response.status_code == 206:
            total = _total_of_the_rest(response, part)
        else:
            part.start(response.headers.get("ETag") or response.headers.get("Last-Modified"))
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
        if total is not None and file.size is not None and abs(total - file.size) > _SIZE_TOLERANCE:
            part.remove()
            raise DownloadError(
                f"{response.url.host} offers {total} bytes of {file.name}, but {file.size} are listed; nothing was kept"
            )
        check_room(part.path.parent, (total or file.size or 0) - part.arrived)
        bar.n, bar.total = part.arrived, total or file.size
        most = total or (file.size and file.size + _SIZE_TOLERANCE)
        with part.path.open("ab") as out:
            for piece in response.iter_raw():
                if most is not None and part.arrived + len(piece) > most:
                    part.remove()
                    raise DownloadError(f"{response.url.host} sends more than the {most} bytes that {file.name} has")
                out.write(piece)
                out.flush()
                part.arrived += len(piece)
                bar.update(len(piece))
                _check_header(part, file, check_header)
            os.fsync(out.fileno())
        if total is not None and part.arrived < total:
            raise Interrupted(f"the connection to {response.url.host} broke")


def _total_of_the_rest(response: httpx2.Response, part: _Part) -> int | None:
    """The size of the whole file, by a 206 answer. Raises Interrupted if it does not begin at `part.arrived`."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != part.arrived:
        part.start(None)
        raise Interrupted(f"{response.url.host} sends another piece than was asked for")
    return None if match[2] == "*" else int(match[2])


def _check_header(part: _Part, file: RemoteFile, check_header: CheckHeader) -> None:
    """Once the whole header has arrived, call `check_header` with a stand-in that has this header."""
    if part.header_checked or part.arrived < 9:
        return
    with part.path.open("rb") as begun:
        size = int.from_bytes(begun.read(8), "little")
        if size > LONGEST_HEADER or begun.read(1) != b"{":
            part.remove()
            raise UnsuitableSourceError(f"{file.name} is not a safetensors file; nothing was kept")
        if part.arrived < 8 + size:
            return
        begun.seek(0)
        header = begun.read(8 + size)
    try:
        check_as_file(header, file.name, file.size and file.size + _SIZE_TOLERANCE, check_header)
    except HSWQError:
        part.remove()
        raise
    part.header_checked = True


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
