"""The Hub on loopback for people who come with a browser: they sign in (OAuth 2 with PKCE, OpenID Connect), and have
jobs on their account.

A job's command runs in a process of its own that takes this for the Hub, with the secrets that it was given and nothing
else of this process. The machine has no GPU, and `hurry` is added to its command.
"""

import base64
import hashlib
import json
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

from support.hub_server import ROUTES, Handler, HubServer, Repo, account
from support.jobs_server import JOB, JOBS, Job, hardware, machines

CLIENT, SECRET = "the-space", "secret-of-the-space"
LIFETIME = 8 * 3600
_CREATED = "2026-11-01T12:00:00.000Z"


@dataclass
class Grant:
    """What somebody allowed the page: for one code."""

    name: str
    challenge: str
    nonce: str
    redirect: str


class VisitorsHub(HubServer):
    """people: who may sign in, in the order in which the page that asks them names them. lifetime: of their tokens, in
    seconds. folder: where jobs work. refuse: status and message that the next start of a job is answered with."""

    def __init__(self, folder: Path, *people: str):
        super().__init__()
        self.folder, self.people, self.lifetime = folder, people, LIFETIME
        self.grants: dict[str, Grant] = {}
        self.given: dict[str, str] = {}
        """Token -> whose it is."""
        self.jobs: dict[str, Job] = {}
        self.machines = machines()
        self.hurry: list[str] = []
        self.refuse: tuple[int, str] | None = None
        self.key = RSAKey.generate_key(2048, {"kid": "1", "use": "sig", "alg": "RS256"})
        self.processes: dict[str, subprocess.Popen] = {}

    @property
    def routes(self) -> list:
        return [*VISITING, *ROUTES]

    def for_the_space(self) -> dict[str, str]:
        """What Hugging Face would tell the Space."""
        return {
            "OPENID_PROVIDER_URL": self.url,
            "OAUTH_CLIENT_ID": CLIENT,
            "OAUTH_CLIENT_SECRET": SECRET,
            "OAUTH_SCOPES": "openid profile contribute-repos jobs",
        }

    def carry_out(self, job: Job) -> None:
        """Run its command to the end."""
        words = job.spec["command"]
        words = [*words[words.index("hswq-hub") + 1 :], *self.hurry]
        words[words.index("--device") + 1] = "cpu"
        work = self.folder / job.id
        work.mkdir(parents=True)
        environment = self.environment(work / "hf") | {"HSWQ_HOME": str(work / "home"), "OMP_NUM_THREADS": "1"}
        environment |= job.spec.get("environment") or {}
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "hswq_hub", *words],
            cwd=work,
            env=environment | job.spec["secrets"] | {"PATH": "/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes[job.id] = process
        job.stage = "RUNNING"
        job.lines.extend(line.rstrip("\n") for line in process.stdout)
        ended = process.wait()
        if job.stage != "CANCELED":
            job.stage, job.message = ("COMPLETED", None) if ended == 0 else ("ERROR", f"exit code {ended}")

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
        super().__exit__()


def demo_repo() -> Repo:
    """A repo with the demo model as one file, and its components."""
    data = files("hswq_hub.data") / "demo_model"
    components = Path(str(data / "components"))
    held = {str(path.relative_to(components)): path.read_bytes() for path in components.rglob("*") if path.is_file()}
    return Repo(
        {**held, "planet.safetensors": (data / "demo.safetensors").read_bytes()}, card={"license": "apache-2.0"}
    )


def configuration(request: Handler):
    url = request.hub.url
    request.send_json({
        "issuer": url, "authorization_endpoint": f"{url}/oauth/authorize", "token_endpoint": f"{url}/oauth/token",
        "jwks_uri": f"{url}/oauth/jwks", "id_token_signing_alg_values_supported": ["RS256"],
        "response_types_supported": ["code"], "subject_types_supported": ["public"],
    })  # fmt: skip


def keys(request: Handler):
    request.send_json({"keys": [request.hub.key.as_dict(private=False)]})


def authorize(request: Handler):
    """A page with a link for each of `people`, and one to refuse."""
    asked = {name: value[0] for name, value in parse_qs(urlsplit(request.path).query).items()}
    assert (
        asked["client_id"] == CLIENT and asked["response_type"] == "code" and asked["code_challenge_method"] == "S256"
    )
    links = []
    for name in request.hub.people:
        code = secrets.token_hex(8)
        request.hub.grants[code] = Grant(name, asked["code_challenge"], asked["nonce"], asked["redirect_uri"])
        back = urlencode({"code": code, "state": asked["state"]})
        links.append(f'<p><a id="as-{name}" href="{asked["redirect_uri"]}?{back}">Authorize as {name}</a></p>')
    back = urlencode({"error": "access_denied", "state": asked["state"]})
    links.append(f'<p><a id="deny" href="{asked["redirect_uri"]}?{back}">Deny</a></p>')
    scopes = f'<p id="scopes">{asked["scope"]}</p>'
    request.send(200, f"<!doctype html>{scopes}{''.join(links)}".encode(), {"Content-Type": "text/html"})


def token(request: Handler):
    """A token for a code, once, to the client that shows its secret and what the challenge was made from."""
    asked = {name: value[0] for name, value in parse_qs(request.body.decode()).items()}
    client = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
    grant = request.hub.grants.pop(asked["code"], None)
    digest = hashlib.sha256(asked["code_verifier"].encode()).digest()
    proven = grant is not None and base64.urlsafe_b64encode(digest).decode().rstrip("=") == grant.challenge
    if request.headers["Authorization"] != f"Basic {client}" or not proven or asked["redirect_uri"] != grant.redirect:
        return request.send_json({"error": "invalid_grant"}, 400)
    hub, now, made = request.hub, int(time.time()), f"hf_oauth_{grant.name}_{secrets.token_hex(8)}"
    hub.given[made] = grant.name
    hub.accounts[made] = account(grant.name)
    claims = {"iss": hub.url, "aud": CLIENT, "sub": grant.name, "iat": now, "exp": now + 600, "nonce": grant.nonce}
    request.send_json({
        "access_token": made, "token_type": "bearer", "expires_in": hub.lifetime, "scope": "openid profile jobs",
        "id_token": jwt.encode({"alg": "RS256", "kid": "1"}, claims, hub.key),
    })  # fmt: skip


def owner(request: Handler, namespace: str) -> bool:
    """Whether the token is that of the account whose jobs are meant; otherwise that was answered."""
    who = request.account()
    if who is None:
        request.refuse_credentials()
    elif who["name"] != namespace:
        request.refuse(403, None, f"You don't have the rights to the jobs of {namespace}")
    return who is not None and who["name"] == namespace


def start(request: Handler, namespace: str):
    if not owner(request, namespace):
        return
    if request.hub.refuse is not None:
        status, message = request.hub.refuse
        return request.send_json({"error": message}, status)
    job = Job(f"{len(request.hub.jobs):024x}", namespace, json.loads(request.body), "SCHEDULING")
    request.hub.jobs[job.id] = job
    Thread(target=request.hub.carry_out, args=(job,), daemon=True).start()
    request.send_json(job.as_json())


def listing(request: Handler, namespace: str):
    if owner(request, namespace):
        request.send_json([job.as_json() for job in request.hub.jobs.values() if job.namespace == namespace])


def job_of(request: Handler, namespace: str, id: str) -> Job | None:
    if not owner(request, namespace):
        return None
    found = request.hub.jobs.get(id)
    return found if found and found.namespace == namespace else request.send_json({"error": "Job not found"}, 404)


def inspect(request: Handler, namespace: str, id: str):
    if (job := job_of(request, namespace, id)) is not None:
        request.send_json(job.as_json())


def logs(request: Handler, namespace: str, id: str):
    """The end of the log as server-sent events, and no more."""
    if (job := job_of(request, namespace, id)) is None:
        return
    tail = int(parse_qs(urlsplit(request.path).query).get("tail", ["1000"])[0])
    events = [
        f"event: log\ndata: {json.dumps({'data': line, 'timestamp': _CREATED})}\n\n" for line in job.lines[-tail:]
    ]
    request.close_connection = True
    request.send(200, "".join(events).encode(), {"Content-Type": "text/event-stream", "Connection": "close"})


def cancel(request: Handler, namespace: str, id: str):
    if (job := job_of(request, namespace, id)) is not None:
        job.stage = "CANCELED"
        request.hub.processes[id].kill()
        request.send_json(job.as_json())


VISITING = [
    ("GET", r"/\.well-known/openid-configuration", configuration),
    ("GET", r"/oauth/jwks", keys),
    ("GET", r"/oauth/authorize", authorize),
    ("POST", r"/oauth/token", token),
    ("GET", r"/api/jobs/hardware", hardware),
    ("POST", JOBS, start),
    ("GET", JOBS, listing),
    ("GET", JOB, inspect),
    ("GET", rf"{JOB}/logs", logs),
    ("POST", rf"{JOB}/cancel", cancel),
]
