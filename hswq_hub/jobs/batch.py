"""Publishes a list of models, one after another or as jobs; a manifest beside the list records what is done.

The manifest is replaced as a whole before and after every model. An entry is identified by its reference and options.
This version of the tool skips what failed for good; the next run tries everything else again.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hswq_runtime.errors import AlreadyQuantizedError, HSWQError, UnknownArchitectureError

from .. import __version__
from ..common.files import write_atomically
from ..common.home import home
from ..common.identity import fingerprint
from ..sources.errors import (
    AccessError,
    AmbiguousReferenceError,
    NotPermittedError,
    UnknownReferenceError,
    UnsuitableSourceError,
)
from ..sources.reference import without_secrets
from .jobs import ENDED, SUCCEEDED, Jobs, Need
from .settings import JobSettings

Log = Callable[[str], None]
"""Called with one line for people."""
OPEN, STARTING, RUNNING, DONE, FAILED, IMPOSSIBLE = "open", "starting", "running", "done", "failed", "impossible"
HEADINGS = ("model", "state", "why")
REFERENCE = "reference"
POLL_SECONDS = 30.0
FOR_GOOD = (
    AccessError,
    AlreadyQuantizedError,
    AmbiguousReferenceError,
    NotPermittedError,
    UnknownArchitectureError,
    UnknownReferenceError,
    UnsuitableSourceError,
)
"""Errors that a retry cannot mend."""


class ListError(HSWQError):
    """A list of models or its manifest is malformed, or another process is using it."""


@dataclass(frozen=True)
class Entry:
    """One model of a list, identified by its words.

    words: the command line behind `hswq-hub publish`, the reference first. values: of `publish`'s parameters, by name.
    """

    words: tuple[str, ...]
    values: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def reference(self) -> str:
        return self.words[0]

    @property
    def name(self) -> str:
        """The reference as it may be shown."""
        return without_secrets(self.reference)

    @property
    def key(self) -> str:
        return fingerprint(self.words)


@dataclass(frozen=True)
class State:
    """The state of an entry. why: one sentence. job: NAMESPACE/ID of its last job. tool: version that wrote this."""

    state: str = OPEN
    why: str = ""
    job: str | None = None
    tool: str = __version__

    @property
    def done(self) -> bool:
        return self.state == DONE

    @property
    def settled(self) -> bool:
        """Whether this version of the tool need not try it again."""
        return self.done or (self.state == IMPOSSIBLE and self.tool == __version__)

    @classmethod
    def of(cls, error: Exception) -> "State":
        text = " ".join(str(error).split())[:500]
        if isinstance(error, HSWQError):
            return cls(IMPOSSIBLE if isinstance(error, FOR_GOOD) else FAILED, text)
        return cls(FAILED, f"{type(error).__name__}: {text}")


class Manifest:
    """The states of a list's entries, in `<list>.manifest.json`."""

    def __init__(self, models: Path):
        self.path = models.with_suffix(".manifest.json")
        self._states = {}
        if self.path.exists():
            try:
                document = json.loads(self.path.read_text(encoding="utf-8"))
                self._states = {key: State(**row) for key, row in document.items()}
            except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
                raise ListError(f"{self.path} is no manifest of ours; move it away to start anew") from error

    def __getitem__(self, entry: Entry) -> State:
        return self._states.get(entry.key, State())

    def __setitem__(self, entry: Entry, state: State) -> None:
        self._states[entry.key] = state
        rows = {key: asdict(state) for key, state in self._states.items()}
        write_atomically(self.path, (json.dumps(rows, indent=2) + "\n").encode())


def read_list(models: Path, read: Callable[[Mapping[str, Any]], Entry]) -> list[Entry]:
    """The entries of a YAML list. read: makes an Entry of an item, or raises ValueError with a sentence.

    Raises:
        ListError: it is no such list, or lists a model twice; the message names the entry.
    """
    import yaml

    try:
        listed = yaml.safe_load(models.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ListError(f"{models} cannot be read: {error}") from error
    except yaml.YAMLError as error:  # whose own text quotes the file, where addresses with tokens may be
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ListError(f"{models} is no YAML{where}: {problem or type(error).__name__}") from None
    if not isinstance(listed, list) or not listed:
        raise ListError(f"{models} is no list of models; write a line such as `- harukiMIX_zit2603` for each")
    entries = []
    for number, item in enumerate(listed, start=1):
        options = {REFERENCE: item} if isinstance(item, str) else item
        try:
            if not isinstance(options, dict) or not isinstance(options.get(REFERENCE), str):
                raise ValueError(f"it needs a {REFERENCE}")
            entry = read(options)
            if entry in entries:
                raise ValueError(f"{entry.name} is listed twice")
        except ValueError as error:
            raise ListError(f"entry {number} of {models.name}: {error}") from error
        entries.append(entry)
    return entries


def publish_all(
    models: Path, entries: Sequence[Entry], run: Callable[[Entry], object], *, again: bool = False, log: Log = print
) -> list[State]:
    """Let `run` publish each entry that is not done yet; an exception of one does not stop the others.

    Raises:
        ListError: another process is at it, or the manifest is not ours.
    """
    with _alone(models) as manifest:
        for number, entry in enumerate(entries, start=1):
            if _skipped(manifest[entry], again) or (manifest[entry].job and manifest[entry].state == RUNNING):
                continue
            log(f"[{number}/{len(entries)}] {entry.name}")
            manifest[entry] = State(RUNNING)
            try:
                run(entry)
            except Exception as error:  # of whatever kind: it is written down, and the next model has its turn
                manifest[entry] = State.of(error)
            else:
                manifest[entry] = State(DONE)
        return [manifest[entry] for entry in entries]


def publish_all_as_jobs(
    models: Path,
    entries: Sequence[Entry],
    account: Jobs,
    settings: JobSettings,
    prepare: Callable[[Entry], tuple[str, list[str], Need]],
    agree: Callable[[int, float], object],
    *,
    again: bool = False,
    log: Log = print,
) -> list[State]:
    """Start a job for each entry that is not done and has none, and wait for all of them; Ctrl-C leaves them running.

    Args:
        account: whose jobs they are.
        prepare: an entry -> short reference, command of the job, what it is to hold.
        agree: asked once with how many are started and what they cost at most in dollars; raises to stop.

    Raises:
        ListError: another process is at it, or the manifest is not ours.
        JobError: the machine is not to be had.
    """
    with _alone(models) as manifest:
        ready = []
        for entry in entries:
            manifest[entry] = _known(account, entry, manifest[entry])
            if _skipped(manifest[entry], again) or manifest[entry].state == RUNNING:
                continue
            try:
                ready.append((entry, *prepare(entry)))
            except Exception as error:
                manifest[entry] = State.of(error)
        if ready:
            offers = [account.offer(settings, ready[0][-1])]
            offers += [replace(offers[0], need=need) for *_, need in ready[1:]]
            for (entry, *_), offer in zip(ready, offers, strict=True):
                for line in (entry.name, *offer.lines()):
                    log(line)
            agree(len(ready), sum(offer.most for offer in offers))
            for (entry, reference, words, _), offer in zip(ready, offers, strict=True):
                manifest[entry] = State(STARTING)
                try:
                    job = account.submit(offer.command(words), reference, settings, entry.key)
                    manifest[entry] = State(RUNNING, job=f"{account.namespace}/{job.id}")
                    log(f"{entry.name}: {job.url}")
                except HSWQError as error:
                    manifest[entry] = State.of(error)
        try:
            _wait(account, entries, manifest, log)
        except KeyboardInterrupt:
            log("the jobs go on; run the same command again to see what became of them")
        return [manifest[entry] for entry in entries]


def summary(entries: Sequence[Entry], states: Sequence[State]) -> list[tuple[str, ...]]:
    """A row for each entry, under `HEADINGS`."""
    return [
        (entry.name, state.state, state.why or (f"job {state.job}" if state.job else ""))
        for entry, state in zip(entries, states, strict=True)
    ]


def _skipped(state: State, again: bool) -> bool:
    return state.done or (state.settled and not again)


def _known(account: Jobs, entry: Entry, state: State) -> State:
    """The state of an entry whose job an earlier run started, even if that run died before it noted the job."""
    if state.state == STARTING:
        last = max(account.listing(entry.key), key=lambda job: str(job.created_at), default=None)
        state = State(RUNNING, job=f"{account.namespace}/{last.id}") if last else State()
    if state.state == RUNNING and state.job is None:
        return State()  # a run on this machine that was killed
    return _look(account, state) if state.state == RUNNING else state


def _look(account: Jobs, state: State) -> State:
    if state.job is None:
        return state
    status = account.look(state.job.rpartition("/")[2]).status
    if status.stage not in ENDED:
        return state
    if status.stage == SUCCEEDED:
        return replace(state, state=DONE, why="")
    said = f", {status.message}" if status.message else ""
    return replace(state, state=FAILED, why=f"its job ended as {status.stage}{said}; hswq-hub jobs logs {state.job}")


def _wait(account: Jobs, entries: Sequence[Entry], manifest: Manifest, log: Log) -> None:
    while running := [entry for entry in entries if manifest[entry].state == RUNNING]:
        for entry in running:
            state = _look(account, manifest[entry])
            if state != manifest[entry]:
                manifest[entry] = state
                log(f"{entry.name}: {state.state}")
        if any(manifest[entry].state == RUNNING for entry in running):
            time.sleep(POLL_SECONDS)


@contextmanager
def _alone(models: Path) -> Iterator[Manifest]:
    """The manifest, locked against other processes."""
    lock = home() / "lists" / f"{fingerprint(str(models.resolve()))}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield Manifest(models)
    except Timeout:
        raise ListError(f"another hswq-hub is at {models.name} already; wait for it") from None
