"""Civitai and the Hub on loopback: they hold a request until the fault is there, and fail all of them if that is it."""

import time
from pathlib import Path
from threading import Event

from support.civitai_server import MODEL, TOKEN, VERSION, Api, CivitaiServer
from support.hub_server import CUT, WAIT, Fault, HubServer, Repo

BASE, REPO = "alice/base", "alice/tiny-hswq"
REFERENCE = f"civitai:{MODEL}@{VERSION}"
CIVITAI_TOKEN = TOKEN
_METHODS = ("GET", "HEAD", "POST", "PUT")
_EVER = 10**9


class _Civitai(CivitaiServer):
    """held: part of the path of the request that is held. failing: what comes instead of any answer. Of the file, the
    first half is sent before it is held."""

    held: str | None = None
    failing: int | str | None = None

    def __enter__(self):
        self.reached, self.release = Event(), Event()
        return super().__enter__()

    def _handler(self, kind):
        def answer(request) -> None:
            in_full = "/bucket/" in request.path and "Range" not in request.headers
            meant = self.held is not None and self.held in request.path and (in_full or kind is Api)
            if meant and not self.reached.is_set():
                if in_full:
                    self._send_half(request)
                self.reached.set()
                self.release.wait(120)
                if in_full:
                    self._send_rest(request)
                    return
            if self.failing == CUT:
                request.close_connection = True
            elif self.failing is not None:
                request.send_json(int(self.failing), {"error": "on demand"})
            else:
                kind.answer(request)

        return type(kind.__name__, (kind,), {"civitai": self, "answer": answer})

    def _send_half(self, request) -> None:
        request.send_response(200)
        headers = {"Content-Length": str(len(self.content)), "ETag": self.etag}
        for name, value in (headers | {"Content-Type": "application/octet-stream"}).items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(self.content[: len(self.content) // 2])
        request.wfile.flush()
        time.sleep(0.2)  # until it has arrived

    def _send_rest(self, request) -> None:
        if self.failing is None:
            request.wfile.write(self.content[len(self.content) // 2 :])
        else:
            request.close_connection = True


class Hosts:
    """A context manager: both, with the model and its base."""

    def __init__(self, model: Path, base: Path):
        self.civitai = _Civitai(model.read_bytes(), name=model.name)
        self.civitai.model |= {"name": "Tiny", "allowCommercialUse": ["Image"]}
        self.hub = HubServer()
        paths = (path for path in sorted(base.rglob("*")) if path.is_file())
        self.hub.repos[BASE] = Repo({str(path.relative_to(base)): path.read_bytes() for path in paths})

    def __enter__(self) -> "Hosts":
        self.civitai.__enter__()
        self.hub.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hub.__exit__(*error)
        self.civitai.__exit__(*error)

    def begin(self) -> None:
        """As before any run: nothing is uploaded, held or failing."""
        self.hub.repos.pop(REPO, None)
        self.hub.objects.clear()
        self.civitai.held = None
        self.fail(None)

    def hold(self, method: str, pattern: str) -> None:
        """Hold the next request like that."""
        self._reached, self._release = (
            (self.civitai.reached, self.civitai.release)
            if method == "civitai"
            else (self.hub.reached, self.hub.release)
        )
        self._reached.clear()
        self._release.clear()
        if method == "civitai":
            self.civitai.held = pattern
        else:
            self.hub.faults.append(Fault(method, pattern, WAIT))

    @property
    def holds(self) -> bool:
        """Whether that request is here, and waits."""
        return self._reached.is_set()

    def let_go(self) -> None:
        """Go on with it."""
        self._release.set()

    def fail(self, answer: int | str | None) -> None:
        """Answer all requests with this from now on; None: as hosts do."""
        self.civitai.failing = answer
        self.hub.faults = [] if answer is None else [Fault(method, "", answer, _EVER) for method in _METHODS]

    @property
    def asked(self) -> int:
        """Requests so far."""
        return len(self.hub.seen) + len(self.civitai.seen)

    def uploaded(self) -> dict[str, bytes]:
        """What is in the repo."""
        repo = self.hub.repos.get(REPO)
        return {path: bytes(data) for path, data in repo.files.items() if path != ".gitattributes"} if repo else {}
