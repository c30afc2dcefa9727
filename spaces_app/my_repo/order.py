"""What a visitor orders: one job on his own account, checked before it costs anything, followed, and looked at."""

from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import JobInfo

from hswq_hub.common.text import roughly
from hswq_hub.hub.client import explained
from hswq_hub.hub.destination import check_upload, find
from hswq_hub.hub.settings import UploadSettings
from hswq_hub.jobs.jobs import ENDED, SUCCEEDED, Jobs, Need, Offer, is_priced
from hswq_hub.jobs.settings import JobSettings
from hswq_runtime.errors import HSWQError

from .look import Look
from .visitor import Visitor

HOURS = (1, 3, 6, 12, 24)
"""For how long a job may be booked."""
TAIL = 12
_REPO = "--repo"


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
        """Check what can be checked of an order of what was looked at, and start it.

        Raises:
            OrderError: the model's creator does not allow it, or the visitor's sign-in ends before the job may.
            HSWQError: the repo is not his or holds something else, or Hugging Face refuses the job.
        """
        if look.objections and not self.permitted:
            raise OrderError(
                f"the model is not free to be quantized and published: {'; '.join(look.objections)}; if its creator "
                "allowed it to you, say so above"
            )
        if visitor.left < self.hours * 3600:
            raise OrderError(
                f"your sign-in ends in {roughly(max(visitor.left, 0))}, and a job of {self.hours} h may need it for "
                "longer; choose less time, or sign out and in again"
            )
        check_upload(UploadSettings(self.repo))
        jobs = Jobs()
        offer = jobs.offer(self.settings, look.need)
        return jobs.submit(offer.command(self.words), self.reference, self.settings)


@dataclass(frozen=True)
class Watched:
    """A job as it is now. lines: the end of its log. repo: where it uploads to. checked: how many files on the Hub are
    those that it made, once it has finished."""

    job: JobInfo
    lines: tuple[str, ...]
    repo: str
    checked: int = 0

    @property
    def ended(self) -> bool:
        return self.job.status.stage in ENDED

    @property
    def succeeded(self) -> bool:
        return self.job.status.stage == SUCCEEDED


def watch(id: str) -> Watched:
    """How a job is doing; of one that has finished, whether the Hub holds what it made.

    Raises:
        HSWQError: Hugging Face does not know it, or the repo does not hold what it should.
    """
    jobs = Jobs()
    job = jobs.look(id)
    repo = repo_in(job)
    if job.status.stage != SUCCEEDED:
        return Watched(job, tuple(jobs.tail(id, TAIL)), repo)
    with explained(repo):
        checked = find(UploadSettings(repo), jobs.namespace).check_files()
    return Watched(job, tuple(jobs.tail(id, TAIL)), repo, checked)


def repo_in(job: JobInfo) -> str:
    """The repo that a job of ours uploads to."""
    words = list(job.command or ())
    return words[words.index(_REPO) + 1] if _REPO in words[:-1] else ""


def mine() -> Sequence[JobInfo]:
    """The jobs of the account that this tool started, as the Hub lists them."""
    return [job for job in Jobs().listing() if repo_in(job)]


def offers(need: Need, hours: int) -> dict[str, Offer]:
    """The machines with one GPU, by flavour, the cheapest first.

    Raises:
        JobError: the Hub cannot be asked.
    """
    found = [
        Offer(machine, hours * 3600, need)
        for machine in Jobs().machines().values()
        if machine.accelerator is not None and str(machine.accelerator.quantity) == "1" and is_priced(machine)
    ]
    return {one.hardware.name: one for one in sorted(found, key=lambda one: one.hourly)}
