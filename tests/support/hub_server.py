"""The Hub's protocol on loopback, over repos in memory: downloads here, uploads in `hub_writing`.

Large files are answered as the Hub does, with a redirect to a storage of another origin (`localhost` is another
than `127.0.0.1`) and the digest in headers. A route is a method and a pattern in `ROUTES`. Every request is kept with
its headers and body, so that a test can search them all for a token. `environment` is that of a process that takes
this for the Hub: the real client reads HF_ENDPOINT when it is imported; `adopt` sets the same in this process.
"""

import json
import re
import socket
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import parse_qs, unquote, urlsplit

from support.hub_store import (
    COMMIT,
    TOKEN,
    Large,
    Repo,
    XetStore,
    account,
    git_blob,
    is_large,
    may_read,
    may_write,
    sha256,
)
from support.hub_writing import WRITING

__all__ = ["COMMIT", "CUT", "HANG", "LOST", "TOKEN", "WAIT", "HubServer", "Repo", "account"]

CUT, LOST, HANG, WAIT = "cut", "lost", "hang", "wait"
"""Instead of an answer: the connection ends; it ends after the request was carried out; nothing, until `release`, and
then it ends; nothing until then, and then what comes of it."""


@dataclass
class Seen:
    """One request: method, host that was asked for, path, headers, and the bytes that were answered."""

    method: str
    host: str
    path: str
    headers: dict
    body: bytes = b""
    sent: int = 0


@dataclass
class Fault:
    """What comes instead of an answer to the next `times` requests that it fits: a status, or one of the above."""

    method: str
    pattern: str
    answer: int | str
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class HubServer:
    """A context manager. `repos` by "owner/name"; `corrupt`: paths whose stored bytes are not those that are listed.

    slow: paths of which a kilobyte comes at a time. accounts: what whoami answers, by token. collections: items by
    slug. objects: large content by SHA-256. forgotten: paths that commits leave out without a word. part_size: bytes
    above which LFS uploads come in parts. xet: where Xet uploads go; None: this Hub offers none.
    """

    def __init__(self, xet: Path | None = None):
        self.repos: dict[str, Repo] = {}
        self.corrupt: set[str] = set()
        self.slow: set[str] = set()
        self.seen: list[Seen] = []
        self.accounts = {TOKEN: account("alice", orgs={"acme": "write", "readers": "read"})}
        self.collections: dict[str, list[dict]] = {}
        self.objects: dict[str, Large] = {}
        self.forgotten: set[str] = set()
        self.parts: dict[tuple[str, int], bytes] = {}
        self.part_size: int | None = None
        self.xet = XetStore(xet) if xet else None
        self.xet_hashes: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.reached, self.release = Event(), Event()

    def fail(self, method: str, pattern: str, answer: int | str, times: int = 1, headers: dict | None = None):
        """Answer the next requests whose path `pattern` is found in with `answer` instead."""
        self.faults.append(Fault(method, pattern, answer, times, headers or {}))

    @property
    def routes(self) -> list:
        """What it answers: method, pattern of the path, and a function of the request and the pattern's groups."""
        return ROUTES

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def storage(self) -> str:
        return f"http://localhost:{self._server.server_port}"

    def environment(self, home) -> dict[str, str]:
        """What a process needs to take this for the Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def adopt(self, monkeypatch, home, *, xet: bool = False):
        """Make huggingface_hub in this process take this for the Hub, with its cache below `home`."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
        monkeypatch.setenv("HF_XET_CACHE", str(home / "xet"))

    def fetched(self, repo: str) -> dict[str, int]:
        """Bytes sent of each file of `repo`, HEAD requests and empty answers left out."""
        found: dict[str, int] = {}
        for seen in self.seen:
            match = re.match(rf"/(?:storage/)?{re.escape(repo)}/(?:resolve/)?[^/]+/(.+)", urlsplit(seen.path).path)
            if match and seen.method == "GET" and seen.sent:
                found[unquote(match[1])] = found.get(unquote(match[1]), 0) + seen.sent
        return found

    def __enter__(self):
        handler = type("Handler", (Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        Thread(target=self._server.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Clients that hang up are what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes, and the second would wait for an acknowledgement

    def do_GET(self):
        self.seen = Seen(
            self.command,
            self.headers.get("Host", ""),
            self.path,
            {name.title(): value for name, value in self.headers.items()},
        )
        self.hub.seen.append(self.seen)
        self.body = self.seen.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.lost = False
        if self.stumble():
            return
        path = urlsplit(self.path).path
        for method, pattern, answer in self.hub.routes:
            match = re.fullmatch(pattern, path)
            if match and method == ("GET" if self.command == "HEAD" else self.command):
                return answer(self, **{name: unquote(value or "") for name, value in match.groupdict().items()})
        self.refuse(404, "EntryNotFound")

    def stumble(self) -> bool:
        """Whether a fault was the answer."""
        faults = (
            f for f in self.hub.faults if f.times and f.method == self.command and re.search(f.pattern, self.path)
        )
        if (fault := next(faults, None)) is None:
            return False
        fault.times -= 1
        if fault.answer == LOST:
            self.lost = True
            return False
        if fault.answer in (HANG, WAIT):
            self.hub.reached.set()
            self.hub.release.wait(60)
        if fault.answer == WAIT:
            return self.stumble()
        if fault.answer in (CUT, HANG):
            self.cut()
        else:
            self.send(fault.answer, b'{"error": "on demand"}', fault.headers)
        return True

    def cut(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def send(self, status: int, body: bytes = b"", headers: dict | None = None):
        if self.lost:
            return self.cut()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            slow = any(urlsplit(self.path).path.endswith(f"/{path}") for path in self.hub.slow)
            step = 1024 if slow else max(len(body), 1)
            for begin in range(0, len(body), step):
                self.wfile.write(body[begin : begin + step])
                self.seen.sent += len(body[begin : begin + step])
                time.sleep(0.002 if slow else 0)

    def send_json(self, value, status: int = 200):
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str | None, message: str = "no"):
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.send(status, json.dumps({"error": message}).encode(), headers)

    def account(self) -> dict | None:
        return self.hub.accounts.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def refuse_credentials(self):
        self.refuse(401, None, "Invalid credentials in Authorization header")

    def open(self, name: str, revision: str, gate: bool = True) -> Repo | None:
        """The repo, or None after an answer that says why not."""
        repo = self.hub.repos.get(name)
        who = self.account()
        if repo is None or (repo.private and not (who and may_read(who, name))):
            return self.refuse(404 if who else 401, "RepoNotFound")
        if gate and repo.gated and not (who and (may_write(who, name) or who is self.hub.accounts.get(TOKEN))):
            return self.refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        if repo.oid(revision) is None:
            return self.refuse(404, "RevisionNotFound")
        return repo

    def log_message(self, *_):
        pass


def _entry(name: str, content: bytes) -> dict:
    """What is listed of a file; the oid of a large one is that of its pointer, which nobody needs."""
    entry = {"size": len(content), "oid": git_blob(content)}
    if is_large(name, content):
        entry["lfs"] = {"oid": sha256(content), "sha256": sha256(content), "size": len(content), "pointerSize": 134}
    return entry


def model_info(request: Handler, repo: str, revision: str):
    if (found := request.open(repo, revision or "main", gate=False)) is None:
        return
    oid, siblings = found.oid(revision or "main"), []
    for path, content in found.snapshots[oid].items():
        entry = _entry(path, content)
        siblings.append({"rfilename": path, "blobId": entry.pop("oid"), **entry})
    request.send_json({
        "_id": "1", "id": repo, "modelId": repo, "sha": oid, "private": found.private, "gated": found.gated,
        "tags": found.tags, "cardData": found.front_matter(), "siblings": siblings, "downloads": 0, "likes": 0,
    })  # fmt: skip


def tree(request: Handler, repo: str, revision: str, path: str = ""):
    if (found := request.open(repo, revision)) is None:
        return
    files = found.snapshots[found.oid(revision)]
    request.send_json([{"type": "file", "path": name, **_entry(name, content)} for name, content in files.items()])


def paths_info(request: Handler, repo: str, revision: str):
    if (found := request.open(repo, revision)) is None:
        return
    files, asked = found.snapshots[found.oid(revision)], parse_qs(request.body.decode())["paths"]
    request.send_json([{"type": "file", "path": name, **_entry(name, files[name])} for name in asked if name in files])


def resolve(request: Handler, repo: str, revision: str, path: str):
    if (found := request.open(repo, revision)) is None:
        return
    oid = found.oid(revision)
    if path not in found.snapshots[oid]:
        return request.refuse(404, "EntryNotFound")
    content = found.snapshots[oid][path]
    headers = {"X-Repo-Commit": oid}
    if is_large(path, content):
        headers |= {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
        if xet_hash := request.hub.xet_hashes.get(sha256(content)):
            token = f"{request.hub.url}/api/models/{repo}/xet-read-token/{oid}"
            headers |= {"X-Xet-Hash": xet_hash, "Link": f'<{token}>; rel="xet-auth"'}
        where = f"{request.hub.storage}/storage/{repo}/{oid}/{path}?signature=abc123"
        return request.send(302, b"", {**headers, "Location": where})
    send_content(request, content, headers | {"ETag": f'"{git_blob(content)}"'})


def storage(request: Handler, repo: str, path: str, commit: str):
    if "Authorization" in request.headers:
        return request.send(400, b"Missing x-amz-content-sha256")
    content = request.hub.repos[repo].snapshots[commit][path]
    if path in request.hub.corrupt:
        content = content[:-1] + bytes([content[-1] ^ 1])
    send_content(request, content, {"ETag": '"storage"'})


def send_content(request: Handler, content: bytes, headers: dict):
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if asked is None:
        return request.send(200, content, headers)
    begin, end = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
    headers |= {"Content-Range": f"bytes {begin}-{end}/{len(content)}"}
    request.send(206, content[begin : end + 1], headers)


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    ("GET", rf"/api/models/{_REPO}(?:/revision/(?P<revision>[^/]+))?", model_info),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", tree),
    ("POST", rf"/api/models/{_REPO}/paths-info/(?P<revision>[^/]+)", paths_info),
    ("GET", rf"/storage/{_REPO}/(?P<commit>[^/]+)/(?P<path>.+)", storage),
    ("GET", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
    *WRITING,
]
