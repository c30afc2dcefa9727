"""Hugging Face Jobs on loopback: what the Hub's client asks for, over jobs in memory that end when a test says so.

Everything needs the token. `refuse`: the status, code and message that the next requests of a kind are answered with.
"""

import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub

TOKEN = "hf_secret0123456789"


def machine(name: str, vram: str | None, ram: str = "62 GB", cents: float = 3.0) -> dict:
    gpu = {"type": "gpu", "model": "L40S", "quantity": "1", "vram": vram, "manufacturer": "Nvidia"} if vram else None
    return {
        "name": name, "prettyName": name, "cpu": "8 vCPU", "ram": ram, "accelerator": gpu,
        "unitCostMicroUSD": int(cents * 10_000), "unitCostUSD": cents / 100, "unitLabel": "minute",
    }  # fmt: skip


def machines() -> list[dict]:
    """What the Hub offers: one without a GPU, one with a large and one with a small one."""
    return [machine("cpu-basic", None, "16 GB", 0.02), machine("l40sx1", "48 GB"), machine("t4", "16 GB")]


@dataclass
class Job:
    """One job. lines: of its log. stage: of `huggingface_hub.JobStage`; the log ends when it is final."""

    id: str
    namespace: str
    spec: dict
    stage: str = "RUNNING"
    message: str | None = None
    lines: list[str] = field(default_factory=list)

    @property
    def running(self) -> bool:
        return self.stage in ("RUNNING", "SCHEDULING")

    def as_json(self) -> dict:
        shown = {key: self.spec.get(key) for key in ("command", "arguments", "environment", "flavor", "labels")}
        return shown | {
            "id": self.id, "dockerImage": self.spec.get("dockerImage"),
            "createdAt": f"2026-11-01T12:00:{int(self.id, 16) % 60:02}.000Z",
            "status": {"stage": self.stage, "message": self.message},
            "owner": {"id": "1", "name": self.namespace, "type": "user"},
            "durations": {"schedulingSecs": 5, "runningSecs": 600, "totalSecs": 605},
        }  # fmt: skip


class JobsServer:
    """A context manager. `repos`: sizes of files by path, of Hub repos that jobs are to read."""

    def __init__(self):
        self.jobs: dict[str, Job] = {}
        self.machines = machines()
        self.repos: dict[str, dict[str, int]] = {}
        self.refuse: dict[str, tuple[int, str]] = {}
        self.log_requests = threading.Event()
        self.starts = {"stage": "RUNNING", "lines": ["made"]}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def as_the_hub(self, monkeypatch):
        """Let the real client in this process take this for the Hub."""
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", self.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        huggingface_hub.close_session()
        yield self
        huggingface_hub.close_session()

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: JobsServer
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match and method == self.command:
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.send_json({"error": "Invalid token"}, 401)
                if answer.__name__ in self.hub.refuse:
                    status, message = self.hub.refuse[answer.__name__]
                    return self.send_json({"error": message}, status)
                return answer(self, **{name: unquote(value) for name, value in match.groupdict().items()})
        self.send_json({"error": "no such route"}, 404)

    do_POST = do_GET

    def send_json(self, value, status: int = 200):
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def job(self, namespace: str, id: str) -> Job | None:
        """The job, or None after an answer that there is none."""
        found = self.hub.jobs.get(id)
        if found is None or found.namespace != namespace:
            return self.send_json({"error": "Job not found"}, 404)
        return found

    def log_message(self, *_):
        pass


def whoami(request: Handler):
    request.send_json({"type": "user", "name": "alice", "orgs": [{"name": "lab"}]})


def hardware(request: Handler):
    request.send_json(request.hub.machines)


def start(request: Handler, namespace: str):
    id = f"{len(request.hub.jobs):024x}"
    request.hub.jobs[id] = Job(id, namespace, json.loads(request.body), **request.hub.starts)
    request.send_json(request.hub.jobs[id].as_json())


def listing(request: Handler, namespace: str):
    wanted = dict(label.split("=", 1) for label in request.query.get("label", []))
    found = [
        job
        for job in request.hub.jobs.values()
        if job.namespace == namespace and wanted.items() <= (job.spec.get("labels") or {}).items()
    ]
    request.send_json([job.as_json() for job in found])


def inspect(request: Handler, namespace: str, id: str):
    if (job := request.job(namespace, id)) is not None:
        request.send_json(job.as_json())


def logs(request: Handler, namespace: str, id: str):
    """Server-sent events: the lines so far, then the stream stays open until the job has ended."""
    if (job := request.job(namespace, id)) is None:
        return
    request.send_response(200)
    request.send_header("Content-Type", "text/event-stream")
    request.send_header("Connection", "close")
    request.end_headers()
    for number, line in enumerate(["===== Job started at 2026-11-01", *job.lines]):
        event = {"data": line, "timestamp": f"2026-11-01T12:00:{number:02}.000Z"}
        request.wfile.write(f"event: log\ndata: {json.dumps(event)}\n\n: keep-alive\n\n".encode())
    request.wfile.flush()
    request.hub.log_requests.set()
    if job.stage == "RUNNING" and request.hub.starts.get("stage") == "RUNNING":
        job.stage = "COMPLETED"  # nothing more to say


def cancel(request: Handler, namespace: str, id: str):
    if (job := request.job(namespace, id)) is not None:
        job.stage = "CANCELED"
        request.send_json(job.as_json())


def model_info(request: Handler, repo: str):
    if repo not in request.hub.repos:
        return request.send_json({"error": "Repository not found"}, 404)
    siblings = [{"rfilename": path, "size": size} for path, size in request.hub.repos[repo].items()]
    request.send_json({"_id": "1", "id": repo, "sha": "0" * 40, "private": False, "gated": False, "tags": [],
                       "siblings": siblings, "cardData": {"license": "mit"}})  # fmt: skip


JOBS = r"/api/jobs/(?P<namespace>[\w-]+)"
JOB = rf"{JOBS}/(?P<id>\w+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", whoami),
    ("GET", r"/api/jobs/hardware", hardware),
    ("POST", JOBS, start),
    ("GET", JOBS, listing),
    ("GET", JOB, inspect),
    ("GET", rf"{JOB}/logs", logs),
    ("POST", rf"{JOB}/cancel", cancel),
    ("GET", r"/api/models/(?P<repo>[\w.-]+/[\w.-]+)", model_info),
]
