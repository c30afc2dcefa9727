"""Runs `publish` as a Hugging Face Job, through the Hub's own client.

A job starts from an image with `uv`, installs this package and runs the command that was typed. It has no access to
this machine: its inputs must be on a host and its products must be uploaded. Tokens are passed as secrets, which the
Hub encrypts, never in the command or the environment, which anybody in the namespace can read.

It is `run_job`, not `run_uv_job`: the latter uploads every local file that happens to be called like an argument.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from json import loads
from pathlib import Path
from typing import Any

from huggingface_hub import JobHardwareInfo, JobInfo

from hswq_runtime.errors import HSWQError
from hswq_runtime.hub_errors import Kind, explained

from .. import __version__
from ..common.text import megabytes
from ..hub.client import api
from ..settings import SourceSettings
from ..sources.errors import AccessError
from ..sources.find import find
from ..sources.http.credentials import TOKEN_VARIABLE, civitai_token
from ..sources.http.tokens import Tokens, hub_token
from ..sources.reference import CivitaiRef, LocalRef, parse
from .settings import JobSettings

PACKAGE = "hswq-hub"
IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
"""uv, git and Python; the GPU's driver is the host's, the rest of CUDA comes with torch."""
PYTHON = "3.12"
HUB_TOKEN = "HF_TOKEN"
ENDED = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
SUCCEEDED = "COMPLETED"
HEADINGS = ("job", "model", "stage", "flavour", "ran for", "created")
_LABEL, _MODEL, _ENTRY = "made-by", "model", "entry"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_PRIVATE = re.compile(r"https?://[^/\s]*@|://[^/\s]*:[^/\s]*@|://\S*\?")
_UNITS = {"second": 1, "minute": 60, "hour": 3600}
_BYTES = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


class JobError(HSWQError):
    """Hugging Face refuses or does not know a job, or a job cannot do what is asked for."""


@dataclass(frozen=True)
class Need:
    """Memory that a pipeline needs. weights: bytes, as the hosts list them. complete: whether all are listed."""

    weights: int
    complete: bool


@dataclass(frozen=True)
class Offer:
    """A machine, the time that it is booked for, and the memory that the model needs."""

    hardware: JobHardwareInfo
    seconds: int
    need: Need

    @property
    def hourly(self) -> float:
        """Dollars an hour, from the Hub's price list."""
        return self.hardware.unit_cost_usd * 3600 / _UNITS[self.hardware.unit_label]

    @property
    def most(self) -> float:
        """Dollars for a job that runs until its timeout."""
        return self.hourly * self.seconds / 3600

    @property
    def memory(self) -> int | None:
        """Bytes of memory of one GPU, or of the machine if it has none; None if not listed."""
        gpu = self.hardware.accelerator
        if gpu is None:
            return _size(self.hardware.ram)
        whole = _size(gpu.vram)
        return whole and whole // max(int(gpu.quantity), 1)

    def command(self, words: Sequence[str]) -> list[str]:
        """The command line of a job that runs `words`, a command of ours: without questions, and with `--device cuda`
        on a machine with a GPU, so that a missing one is an error."""
        device = ["--device", "cuda"] if self.hardware.accelerator and "--device" not in words else []
        return [PACKAGE, *words, *device, "--yes"]

    def lines(self) -> list[str]:
        """The machine and its price for people, with a warning if its memory may not suffice."""
        gpu = self.hardware.accelerator
        machine = f"{gpu.quantity} × {gpu.manufacturer} {gpu.model}, {gpu.vram}" if gpu else "no GPU"
        cost = f"${self.hourly:.2f} an hour, billed while it runs; at most ${self.most:.2f} for {_span(self.seconds)}"
        lines = [f"{self.hardware.name}: {machine}, {self.hardware.cpu}, {self.hardware.ram}", cost]
        if self.memory is not None and self.need.weights > self.memory:
            return [
                *lines,
                f"Warning: the model takes {megabytes(self.need.weights)} in memory, but {self.hardware.name} has "
                f"{megabytes(self.memory)}; choose a larger --flavor",
            ]
        if self.memory is None or not self.need.complete:
            return [*lines, "Warning: whether its memory suffices is not known, since not every size is listed"]
        return lines


class Jobs:
    """The jobs of an account or an organisation. namespace: None: the account of huggingface_hub's token.

    Every method raises JobError with one sentence for whatever the Hub answers.
    """

    def __init__(self, namespace: str | None = None):
        self._api = api()
        token = hub_token()
        if not token:
            raise JobError(
                "a job needs a Hugging Face token that may start jobs and write repos; run `hf auth login`, or set "
                f"{HUB_TOKEN}"
            )
        self._token: str = token
        with self._explained("your account"):
            self.namespace = namespace or self._api.whoami()["name"]

    def machines(self) -> dict[str, JobHardwareInfo]:
        """The Hub's machines by flavour."""
        with self._explained("the list of machines"):
            return {hardware.name: hardware for hardware in self._api.list_jobs_hardware()}

    def offer(self, settings: JobSettings, need: Need) -> Offer:
        """The machine that `settings` name, with the Hub's price."""
        listed = self.machines()
        if settings.flavor not in listed:
            gpus = ", ".join(name for name, hardware in listed.items() if hardware.accelerator)
            raise JobError(f"there is no flavour {settings.flavor!r}; those with a GPU are {gpus}")
        hardware = listed[settings.flavor]
        if not is_priced(hardware):
            raise JobError(f"{hardware.name} is billed by the {hardware.unit_label}, which this version does not know")
        return Offer(hardware, seconds_of(settings.timeout), need)

    def submit(self, words: Sequence[str], reference: str, settings: JobSettings, entry: str | None = None) -> JobInfo:
        """Start a job that runs `words`, one of our command lines, on `reference`.

        entry: a label by which :meth:`listing` finds the job again.
        """
        command = ["uv", "run", "--no-project", "--python", PYTHON, "--with", requirement(settings.package)]
        secrets = secrets_for(reference) | {HUB_TOKEN: self._token}
        labels = {_LABEL: PACKAGE, _MODEL: _label(reference), **({_ENTRY: entry} if entry else {})}
        check_public([*command, *words], secrets.values())
        with self._explained(f"the jobs of {self.namespace}"):
            return self._api.run_job(
                image=IMAGE,
                command=[*command, *words],
                secrets=secrets,
                flavor=settings.flavor,
                timeout=seconds_of(settings.timeout),
                labels=labels,
                namespace=self.namespace,
            )

    def listing(self, entry: str | None = None) -> list[JobInfo]:
        """The jobs that this tool started, in the Hub's order. entry: only those with this label."""
        labels = {_LABEL: PACKAGE, **({_ENTRY: entry} if entry else {})}
        with self._explained(f"the jobs of {self.namespace}"):
            return list(self._api.list_jobs(labels=labels, namespace=self.namespace))

    def look(self, job: str) -> JobInfo:
        """The current state of `job`."""
        with self._explained(f"job {job}"):
            return self._api.inspect_job(job_id=job, namespace=self.namespace)

    def follow(self, job: str) -> Iterator[str]:
        """The log lines of `job`, past and future, until it ends."""
        yield from self._log(job, follow=True)

    def tail(self, job: str, lines: int) -> list[str]:
        """The last log lines of `job` so far. It takes up to five seconds."""
        return list(self._log(job, tail=lines))

    def _log(self, job: str, **which: Any) -> Iterator[str]:
        """Log lines without the tokens that a job was given."""
        tokens = Tokens(self._token)
        with suppress(AccessError):  # what cannot be a token was given to no job
            tokens = Tokens(self._token, civitai_token())
        with self._explained(f"the logs of job {job}"):
            for line in self._api.fetch_job_logs(job_id=job, namespace=self.namespace, **which):
                yield tokens.hidden_in(line)

    def cancel(self, job: str) -> None:
        """Stop `job`. What it has not uploaded is lost."""
        with self._explained(f"job {job}"):
            self._api.cancel_job(job_id=job, namespace=self.namespace)

    def _explained(self, what: str) -> AbstractContextManager[None]:
        unknown = f"Hugging Face does not know {what}; `hswq-hub jobs` lists those there are"
        return explained(what, lambda _: JobError, {Kind.NOT_FOUND: unknown, Kind.NO_REPO: unknown})


def is_priced(hardware: JobHardwareInfo) -> bool:
    """Whether a machine is billed by a unit of time that is known here."""
    return hardware.unit_label in _UNITS


def check_portable(reference: str, source: SourceSettings, folder: Path | None, repo: str | None) -> None:
    """Check that a job can read its inputs and that its products outlive it.

    Raises:
        JobError: an input is on this machine, or nothing is uploaded.
        SourceError: the reference names nothing.
    """
    found = parse(reference)
    if isinstance(found, LocalRef):
        raise JobError(f"a job cannot read {found}, which is on this machine; upload it to a Hub repo and name that")
    base = source.base
    if base is not None and Path(base).exists():
        raise JobError(f"a job cannot read the base {Path(base).name}, which is on this machine; name a Hub repo")
    for prompts in (source.prompts.calibration, source.prompts.evaluation):
        if prompts is not None:
            raise JobError(
                f"a job cannot read the prompts {prompts.name}, which are on this machine; leave out --prompts and "
                "--evaluation-prompts, or publish here, without --on"
            )
    if folder is not None:
        raise JobError("a folder of a job is gone when the job ends; leave out --folder and name a --repo")
    if repo is None:
        raise JobError(
            "what a job makes is gone when it ends unless it is uploaded; say where to with --repo OWNER/NAME"
        )


def look_up(reference: str, settings: SourceSettings) -> tuple[str, Need]:
    """The short form of the reference, which means the same file, and the memory that its pipeline needs.

    Nothing is fetched.

    Raises:
        SourceError: the reference leads nowhere, or its creator does not permit it.
    """
    found = find(reference, settings)
    if found.listing is None:
        return str(found.meant), Need(0, True)  # the demo model, which any machine can hold
    found.check_permitted()
    sizes = (found.listing.size, found.components().bytes)
    return found.listing.reference, Need(sum(size or 0 for size in sizes), None not in sizes)


def secrets_for(reference: str) -> dict[str, str]:
    """The secrets that a job on `reference` needs besides the Hub's token, by variable.

    Raises:
        JobError: one of them is missing here.
    """
    if not isinstance(parse(reference), CivitaiRef):
        return {}
    token = civitai_token()
    if token is None:
        raise JobError(f"Civitai asks for a token; run `hswq-hub login civitai`, or set {TOKEN_VARIABLE}")
    return {TOKEN_VARIABLE: token}


def check_public(words: Sequence[str], secrets: Iterable[str] = ()) -> None:
    """Check that a command line may be read by everybody in the namespace.

    Raises:
        JobError: a word holds one of `secrets`, or an address with a password or with a query, where tokens are.
    """
    if any(secret in word for secret in secrets for word in words) or any(map(_PRIVATE.search, words)):
        raise JobError(
            "the command holds a token, or an address with a password or query, which everybody in the namespace could "
            "read; leave it out"
        )


def requirement(package: str | None = None) -> str:
    """The requirement that a job installs: `package`, else this version from where it was installed.

    Raises:
        JobError: it is on this machine, where a job cannot fetch it.
    """
    if package is not None:
        if Path(package).exists():
            raise JobError(f"a job cannot install {Path(package).name} from this machine; {_INSTEAD}")
        return package
    try:
        origin = loads(distribution(PACKAGE).read_text("direct_url.json") or "null")
    except PackageNotFoundError:
        origin = {}
    if origin is None:
        return f"{PACKAGE}=={__version__}"
    if "vcs_info" in origin:
        return f"{PACKAGE} @ {origin['vcs_info']['vcs']}+{origin['url']}@{origin['vcs_info']['commit_id']}"
    if origin.get("url", "").startswith("https://"):
        return f"{PACKAGE} @ {origin['url']}"
    raise JobError(
        f"this hswq-hub was installed from a folder or file of this machine, which a job cannot reach; {_INSTEAD}"
    )


_INSTEAD = (
    "say with --package what it installs: a release such as hswq-hub==0.1.0, git+https://…@COMMIT, or the address of a "
    "wheel"
)


def seconds_of(timeout: str) -> int:
    """Seconds of a time such as "90m" or "3h".

    Raises:
        JobError: it is no such time.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", timeout)
    if found is None or (seconds := int(float(found[1]) * _SECONDS[found[2]])) < 1:
        raise JobError(f"{timeout!r} is no time; write 90m, 3h or 1d")
    return seconds


def rows(jobs: Sequence[JobInfo]) -> list[tuple[str, ...]]:
    """A row for each job, under `HEADINGS`."""
    return [
        (
            f"{job.owner.name}/{job.id}",
            (job.labels or {}).get(_MODEL, ""),
            str(job.status.stage),
            str(job.flavor or ""),
            _span(job.durations.running_secs) if job.durations and job.durations.running_secs else "",
            f"{job.created_at:%Y-%m-%d %H:%M}" if job.created_at else "",
        )
        for job in jobs
    ]


def split_id(job: str) -> tuple[str | None, str]:
    """Namespace (None if not given) and id of "ID" or "NAMESPACE/ID"."""
    namespace, _, id = job.rpartition("/")
    if not re.fullmatch(r"[\w.-]+", id) or (namespace and not re.fullmatch(r"[\w.-]+", namespace)):
        raise JobError(f"{job!r} is no id of a job; `hswq-hub jobs` lists them")
    return namespace or None, id


def _label(text: str) -> str:
    """`text` with only the characters that the Hub allows in a label."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:100]


def _size(text: str) -> int | None:
    """Bytes of a size such as "48 GB"; None if it is no size."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]B)\s*", text or "")
    return int(float(found[1]) * _BYTES[found[2]]) if found else None


def _span(seconds: int) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return " ".join(
        part for part in (f"{hours} h" if hours else "", f"{minutes} min" if minutes or not hours else "") if part
    )
