"""What a visitor orders: one job on his own account, checked before it costs anything, followed, and looked at."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import JobInfo

from hswq_hub.common.text import roughly
from hswq_hub.hub.client import UploadError, api, explained
from hswq_hub.hub.destination import check_upload, find
from hswq_hub.hub.settings import UploadSettings
from hswq_hub.jobs.jobs import ENDED, SUCCEEDED, Jobs, Need, Offer, is_priced
from hswq_hub.jobs.settings import JobSettings
from hswq_hub.sources.http.credentials import civitai_token
from hswq_hub.sources.reference import CivitaiRef, parse
from hswq_runtime.errors import HSWQError
from hswq_runtime.text import shown

from .look import Look
from .visitor import Visitor

HOURS = (1, 3, 6, 12, 24)
"""For how long a job may be booked."""
_TAIL = 12
_REPO = "--repo"
_WAITING = 1
"""Hours that a job may wait for its machine, while the sign-in goes on."""


class OrderError(HSWQError):
    """A job cannot be ordered as it is described."""


@dataclass(frozen=True)
class Order:
    """A job. reference: short form of the model's. format: as `--format` has it. repo: "owner/name". flavor: Hugging
    Face's name of the machine. hours: when it is stopped. permitted: the visitor has the creator's permission.
    licence: Hub licence id, for a model whose host states none. package: what the job installs; None: this version."""

    reference: str
    format: str
    repo: str
    private: bool
    flavor: str
    hours: int
    permitted: bool = False
    licence: str = ""
    package: str | None = None

    @property
    def settings(self) -> JobSettings:
        """The machine and the time."""
        return JobSettings(self.flavor, f"{self.hours}h", self.package)

    @property
    def words(self) -> list[str]:
        """The command that the job runs, without the program's name."""
        words = ["publish", self.reference, "--format", self.format, _REPO, self.repo]
        words += ["--private"] if self.private else []
        words += ["--i-have-permission"] if self.permitted else []
        return words + (["--licence", self.licence] if self.licence else [])

    def start(self, visitor: Visitor, look: Look) -> JobInfo:
        """Check what can be checked of an order of what was looked at, make the repo, and start the job.

        The repo is made first: the right that signing in gives covers those alone that were made with it.

        Raises:
            OrderError: it would fail, or a job for that repo is under way.
            HSWQError: the repo is not the visitor's or holds something else, or Hugging Face refuses the job.
        """
        self._check(visitor, look)
        jobs = Jobs(visitor.name)
        if any(repo_in(job) == self.repo and job.status.stage not in ENDED for job in jobs.listing()):
            raise OrderError(f"a job for {shown(self.repo)} is under way already; it is among your jobs below")
        settings = UploadSettings(self.repo, private=self.private)
        check_upload(settings)
        with explained(self.repo):
            api().create_repo(self.repo, private=self.private, exist_ok=True)
            made = find(settings, visitor.name)
        if made.head is None:
            raise OrderError(f"there is a repo {self.repo} that this page may not write to; choose another name")
        made.check_free()
        offer = jobs.offer(self.settings, look.need)
        return jobs.submit(offer.command(self.words), self.reference, self.settings)

    def _check(self, visitor: Visitor, look: Look) -> None:
        if look.objections and not self.permitted:
            raise OrderError(
                f"the model is not free to be quantized and published: {'; '.join(look.objections)}; if its creator "
                "allowed it to you, say so above"
            )
        if self.licence and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", self.licence):
            raise OrderError(f"{shown(self.licence)!r} is no id of a licence; one is apache-2.0 or openrail++")
        if isinstance(parse(self.reference), CivitaiRef) and civitai_token() is None:
            raise OrderError("Civitai asks for a token; give one above")
        if visitor.left < (self.hours + _WAITING) * 3600:
            raise OrderError(
                f"your sign-in ends in {roughly(max(visitor.left, 0))}, and a job of {self.hours} h, with the wait for "
                "its machine, may need it for longer; choose less time, or sign out and in again"
            )


@dataclass(frozen=True)
class Watched:
    """A job as it is now. lines: the end of its log. repo: where it uploads to. matched: of one that has finished, how
    many files on the Hub match the record in the repo; None: they do not, and `problem` says why."""

    job: JobInfo
    lines: tuple[str, ...]
    repo: str
    matched: int | None = None
    problem: str = ""

    @property
    def ended(self) -> bool:
        return self.job.status.stage in ENDED

    @property
    def succeeded(self) -> bool:
        return self.job.status.stage == SUCCEEDED


def watch(id: str, name: str) -> Watched:
    """How a job of the account `name` is doing; of one that has finished, whether the repo holds what it lists.

    Raises:
        HSWQError: Hugging Face does not know it, or cannot be reached.
    """
    jobs = Jobs(name)
    job = jobs.look(id)
    repo, lines = repo_in(job), tuple(jobs.tail(id, _TAIL))
    if job.status.stage != SUCCEEDED:
        return Watched(job, lines, repo)
    try:
        with explained(repo):
            return Watched(job, lines, repo, find(UploadSettings(repo), name).check_files())
    except UploadError as error:
        return Watched(job, lines, repo, problem=str(error))


def stop(id: str, name: str) -> None:
    """End a job of the account `name`. What it has not uploaded is lost.

    Raises:
        JobError: Hugging Face does not know it, or cannot be reached.
    """
    Jobs(name).cancel(id)


def repo_in(job: JobInfo) -> str:
    """The repo that a job of ours uploads to."""
    words = list(job.command or ())
    return words[words.index(_REPO) + 1] if _REPO in words[:-1] else ""


def jobs_of(name: str) -> Sequence[JobInfo]:
    """The jobs of an account that this tool started, as the Hub lists them."""
    return [job for job in Jobs(name).listing() if repo_in(job)]


def offers(need: Need, hours: int, name: str) -> dict[str, Offer]:
    """The machines with one GPU, by flavour, the cheapest first.

    Raises:
        JobError: the Hub cannot be asked.
    """
    found = [
        Offer(machine, hours * 3600, need)
        for machine in Jobs(name).machines().values()
        if machine.accelerator is not None and str(machine.accelerator.quantity) == "1" and is_priced(machine)
    ]
    return {one.hardware.name: one for one in sorted(found, key=lambda one: one.hourly)}
