"""The Hub's protocol on loopback, over repos in memory: for now what a download needs.

Large files are answered as the Hub does, with a redirect to a storage of another origin (`localhost` is another
than `127.0.0.1`) and the digest in headers. A route is a method and a pattern in `ROUTES`, so that uploads can be
added beside the downloads. The real client is driven against it in processes of their own, because it reads
HF_ENDPOINT when it is imported: `environment` is theirs.
"""

import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secret0123456789"
LARGE = (".safetensors", ".bin")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repo:
    """files: content by path. gated: "auto" or "manual" for a repo whose files only `TOKEN` opens."""

    files: dict[str, bytes]
    card: dict = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    gated: str | bool = False
    private: bool = False
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)


@dataclass
class Seen:
    """One request: method, host that was asked for, path, headers, and the bytes that were answered."""

    method: str
    host: str
    path: str
    headers: dict
    sent: int = 0


class HubServer:
    """A context manager. `repos` by "owner/name"; `corrupt`: paths whose stored bytes are not those that are listed.

    slow: paths of which a kilobyte comes at a time.
    """

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.corrupt: set[str] = set()
        self.slow: set[str] = set()
        self.seen: list[Seen] = []

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

    def do_GET(self):
        self.seen = Seen(
            self.command,
            self.headers.get("Host", ""),
            self.path,
            {name.title(): value for name, value in self.headers.items()},
        )
        self.hub.seen.append(self.seen)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == ("GET" if self.command == "HEAD" else self.command):
                return answer(self, **{name: unquote(value or "") for name, value in match.groupdict().items()})
        self.refuse(404, "EntryNotFound")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def send(self, status: int, body: bytes = b"", headers: dict | None = None):
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

    def refuse(self, status: int, code: str | None):
        self.send(status, b'{"error": "no"}', {"X-Error-Code": code, "X-Error-Message": "no"} if code else {})

    def open(self, name: str, revision: str, gate: bool = True) -> Repo | None:
        """The repo, or None after an answer that says why not."""
        repo = self.hub.repos.get(name)
        if repo is None:
            return self.refuse(404, "RepoNotFound")
        if gate and repo.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        if revision not in (*repo.revisions, repo.commit):
            return self.refuse(404, "RevisionNotFound")
        return repo

    def log_message(self, *_):
        pass


def _digest(content: bytes) -> str:
    return getattr(content, "sha256", None) or hashlib.sha256(content).hexdigest()


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content[:]).hexdigest()


def model_info(request: Handler, repo: str, revision: str):
    if (found := request.open(repo, revision or "main", gate=False)) is None:
        return
    siblings = []
    for path, content in found.files.items():
        entry = {"rfilename": path, "size": len(content), "blobId": _blob(content)}
        if path.endswith(LARGE):
            entry["lfs"] = {"sha256": _digest(content), "size": len(content), "pointerSize": 134}
        siblings.append(entry)
    request.send_json({
        "_id": "1", "id": repo, "modelId": repo, "sha": found.commit, "private": found.private, "gated": found.gated,
        "tags": found.tags, "cardData": found.card, "siblings": siblings, "downloads": 0, "likes": 0,
    })  # fmt: skip


def tree(request: Handler, repo: str, revision: str, path: str = ""):
    if (found := request.open(repo, revision)) is None:
        return
    entries = []
    for name, content in found.files.items():
        entry = {"type": "file", "path": name, "size": len(content), "oid": _blob(content)}
        if name.endswith(LARGE):
            entry["lfs"] = {"oid": _digest(content), "size": len(content), "pointerSize": 134}
        entries.append(entry)
    request.send_json(entries)


def resolve(request: Handler, repo: str, revision: str, path: str):
    if (found := request.open(repo, revision)) is None:
        return
    if path not in found.files:
        return request.refuse(404, "EntryNotFound")
    content = found.files[path]
    headers = {"X-Repo-Commit": found.commit}
    if path.endswith(LARGE):
        headers |= {"X-Linked-Etag": f'"{_digest(content)}"', "X-Linked-Size": str(len(content))}
        where = f"{request.hub.storage}/storage/{repo}/{found.commit}/{path}?signature=abc123"
        return request.send(302, b"", {**headers, "Location": where})
    send_content(request, content, headers | {"ETag": f'"{_blob(content)}"'})


def storage(request: Handler, repo: str, path: str, commit: str):
    if "Authorization" in request.headers:
        return request.send(400, b"Missing x-amz-content-sha256")
    content = request.hub.repos[repo].files[path]
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
    ("GET", rf"/storage/{_REPO}/(?P<commit>[^/]+)/(?P<path>.+)", storage),
    ("GET", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
]
