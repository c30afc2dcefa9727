"""Civitai on loopback: its API and download endpoint, and on another port the storage that it redirects to.

The answers are those of Civitai's own server source. What goes wrong is said by the test: `state` decides what the
download endpoint answers, `faults` what the storage does, one fault a request.
"""

import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

TOKEN = "civitai-secret-0123456789abcdef"
DEADLINE = "2031-05-01T12:00:00.000Z"
BROWSER = re.compile("mozilla|chrome|safari|firefox|opera|edge", re.IGNORECASE)
MODEL, VERSION, FILE = 2242173, 2774410, 77

STATES = {
    "no token": (
        401,
        {
            "error": "Unauthorized",
            "message": "The creator of this asset requires you to be logged in to download it",
        },
    ),
    "early access": (403, {"error": "Early Access", "deadline": DEADLINE, "message": "This asset is in Early Access"}),
    "no grant": (403, {"error": "You do not have access to download this file"}),
    "disabled": (401, {"error": "The creator of this asset has disabled downloads on this file"}),
    "blacklisted": (403, {"error": "Forbidden"}),
    "archived": (410, {"error": "Model archived, not available for download"}),
    "missing": (404, {"error": "File not found"}),
    "bad request": (400, {"error": "Invalid id"}),
    "region": (451, {"error": "Not available in your region", "code": "REGION_BLOCKED"}),
    "too many": (429, {"error": "unusual amount of downloading"}),
}  # fmt: skip


@dataclass
class Fault:
    """What the storage does to one request.

    silent: seconds before it answers. cut: bytes after which the connection breaks. length: what it adds to
    Content-Length. status, headers, body: an answer instead of the file.
    """

    cut: int | None = None
    silent: float = 0
    length: int = 0
    ignore_range: bool = False
    status: int | None = None
    headers: dict = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Seen:
    """One request as a server got it, and the bytes of the body that it sent."""

    origin: str
    path: str
    headers: dict
    sent: int = 0


class CivitaiServer:
    """Two origins; a context manager. `content` is what the one file of the one model holds.

    gallery: what it answers to who asks for the pictures made with the version; a server of old has no such endpoint.
    """

    def __init__(self, content: bytes, name: str = "tiny.safetensors"):
        self.content = content
        self.etag = '"first"'
        self.state = "ok"
        self.faults: list[Fault] = []
        self.me: tuple[int, object] | None = None
        self.gallery: tuple[int, object] = (404, {"error": "Not found"})
        self.known_hashes: set[str] = set()
        self.api_failures: list[tuple[int, dict]] = []
        self.chunk, self.pause = 1 << 16, 0.0
        self.seen: list[Seen] = []
        self.file = {
            "id": FILE, "name": name, "type": "Model", "sizeKB": round(len(content) / 1024, 2), "primary": True,
            "pickleScanResult": "Success", "virusScanResult": "Success",
            "metadata": {"format": "SafeTensor", "size": "pruned", "fp": "bf16"},
            "hashes": {"AutoV2": self.sha256[:10].upper(), "SHA256": self.sha256.upper()},
        }  # fmt: skip
        self.version = {
            "id": VERSION, "modelId": MODEL, "name": "v8", "baseModel": "ZImageTurbo", "status": "Published",
            "usageControl": "Download", "nsfwLevel": 1, "files": [self.file],
        }  # fmt: skip
        self.model = {
            "id": MODEL, "name": "Dark Beast", "type": "Checkpoint", "nsfw": False, "nsfwLevel": 1,
            "availability": "Public", "allowNoCredit": False, "allowCommercialUse": "{Image,RentCivit}",
            "allowDerivatives": True, "allowDifferentLicense": True, "creator": {"username": "alice_01"},
            "modelVersions": [{"id": VERSION, "name": "v8", "availability": "Public"}],
        }  # fmt: skip

    @property
    def sha256(self) -> str:
        return getattr(self.content, "sha256", None) or hashlib.sha256(self.content).hexdigest()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._api.server_port}"

    @property
    def storage(self) -> str:
        return f"http://127.0.0.1:{self._storage.server_port}"

    @property
    def stored(self) -> list[Seen]:
        """The requests that the storage got."""
        return [seen for seen in self.seen if seen.origin == self.storage]

    def __enter__(self):
        self._api, self._storage = (_Server(("127.0.0.1", 0), self._handler(k)) for k in (Api, Storage))
        for server in (self._api, self._storage):
            Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()
        return self

    def __exit__(self, *_):
        for server in (self._api, self._storage):
            server.shutdown()
            server.server_close()

    def _handler(self, kind):
        return type(kind.__name__, (kind,), {"civitai": self})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients that hang up are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    civitai: CivitaiServer
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        origin = f"http://127.0.0.1:{self.server.server_port}"
        self.seen = Seen(origin, self.path, {name.title(): value for name, value in self.headers.items()})
        self.civitai.seen.append(self.seen)
        try:
            self.answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def send(self, status: int, body: bytes, headers: dict):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_json(self, status: int, value, headers: dict | None = None):
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def log_message(self, *_):
        pass


class Api(_Handler):
    """civitai.com"""

    def answer(self):
        civitai, url = self.civitai, urlsplit(self.path)
        match [part for part in url.path.split("/") if part]:
            case ["api", "v1", *rest]:
                if civitai.api_failures:
                    status, headers = civitai.api_failures.pop(0)
                    return self.send_json(status, {"error": "Failed to fetch model version details"}, headers)
                return self.send_json(*self.about(rest))
            case ["api", "download", "models", version] if version == str(VERSION):
                return self.download(parse_qs(url.query))
            case ["login"]:
                return self.send(200, b"<!doctype html><title>Login</title>", {"Content-Type": "text/html"})
        self.send_json(404, {"error": "Not found"})

    def about(self, path: list[str]):
        civitai = self.civitai
        match path:
            case ["models", id]:
                found = civitai.model if id == str(MODEL) else None
                return (200, found) if found else (404, {"error": f"No model with id {id}"})
            case ["model-versions", "by-hash", digest]:
                known = {str(value).lower() for file in civitai.version["files"] for value in file["hashes"].values()}
                known |= civitai.known_hashes
                return (200, civitai.version) if digest.lower() in known else (404, {"error": "Model not found"})
            case ["model-versions", id]:
                return (200, civitai.version) if id == str(VERSION) else (404, {"error": "Model not found"})
            case ["images"]:
                asked = parse_qs(urlsplit(self.path).query)
                return civitai.gallery if asked.get("modelVersionId") == [str(VERSION)] else (200, {"items": []})
            case ["me"]:
                if civitai.me is not None:
                    return civitai.me
                if self.headers.get("Authorization") == f"Bearer {TOKEN}":
                    return 200, {"id": 1, "username": "alice_01"}
                return 401, {"error": "Unauthorized"}
        return 404, {"error": "Not found"}

    def download(self, query: dict):
        state = self.civitai.state
        if state == "ok" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            state = "no token"
        if query.get("fileId") != [str(FILE)]:
            state = "missing"
        if state == "login page" or (state == "no token" and BROWSER.search(self.headers["User-Agent"])):
            return self.send(307, b"", {"Location": "/login?returnUrl=%2F&reason=download-auth"})
        if state != "ok":
            return self.send_json(*STATES[state], {"Retry-After": "0"} if state == "too many" else {})
        signed = f"{self.civitai.storage}/bucket/model/{FILE}?X-Amz-Expires=86400&X-Amz-Signature=abc123"
        self.send(307, b"", {"Location": signed, "Cache-Control": "no-store"})


class Storage(_Handler):
    """The bucket behind it, which refuses tokens that are not its own."""

    def answer(self):
        civitai = self.civitai
        if "Authorization" in self.headers:
            return self.send(400, b"<Error>Missing x-amz-content-sha256</Error>", {"Content-Type": "application/xml"})
        if "X-Amz-Signature=abc123" not in self.path:
            return self.send(403, b"<Error>AccessDenied</Error>", {"Content-Type": "application/xml"})
        fault = civitai.faults.pop(0) if civitai.faults else Fault()
        time.sleep(fault.silent)
        if fault.status is not None:
            return self.send(fault.status, fault.body, fault.headers)
        self.send_content(fault)

    def send_content(self, fault: Fault):
        civitai, content, status, headers = self.civitai, self.civitai.content, 200, {}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and not fault.ignore_range and self.headers.get("If-Range", civitai.etag) == civitai.etag:
            begin = int(asked[1])
            if begin >= len(content):
                return self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            end = min(int(asked[2] or len(content)), len(content) - 1)
            headers = {"Content-Range": f"bytes {begin}-{end}/{len(content)}"}
            status, content = 206, content[begin : end + 1]
        self.send_response(status)
        headers |= {"Content-Length": str(len(content) + fault.length), "ETag": civitai.etag}
        for name, value in {**headers, "Content-Type": "application/octet-stream"}.items():
            self.send_header(name, value)
        self.end_headers()
        body = content[: fault.cut]
        for begin in range(0, len(body), civitai.chunk):
            piece = body[begin : begin + civitai.chunk]
            self.wfile.write(piece)
            self.seen.sent += len(piece)
            time.sleep(civitai.pause)
        if fault.cut is not None or fault.length > 0:
            self.close_connection = True
