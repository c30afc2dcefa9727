"""What can hurt a run, and how it is done to one that is held."""

import os
import resource
import signal
from dataclasses import dataclass

from support.hub_server import CUT

from .children import Run
from .forked import NOBODY
from .hosts import Hosts
from .place import Disk

BEGIN, WRITING = "begin", "writing"
_HEADROOM = 1 << 20


@dataclass(frozen=True)
class Fault:
    """A way to hurt a run, and what is promised of it then.

    how: what is done, for the page. codes: the exit codes that may come of it. moment: of the step in which it is done,
    see `forked.hold_in`. owner: who runs. answer: of the hosts, for faults of the network.
    """

    name: str
    how: str
    codes: tuple[int, ...] = (2, 0)
    moment: str = BEGIN
    owner: int = 0
    answer: int | str | None = None


_WRITES = (
    "while the step writes, the first file of its product being about to get its name, or waits for a host's answer"
)
KILL = Fault("kill -9", f"`SIGKILL` {_WRITES}.", (137,), WRITING)
TERM = Fault("SIGTERM", f"`SIGTERM` {_WRITES}.", (143,), WRITING)
CTRL_C = Fault("Ctrl-C", f"`SIGINT` {_WRITES}.", (130,), WRITING)
FULL = Fault("disk full", "From the beginning of the step on, the small disk on which everything is has no byte left.")
READ_ONLY = Fault(
    "read-only folder",
    "From the beginning of the step on, workspace, caches and target are mounted read-only.",
)
FORBIDDEN = Fault(
    "no permission",
    "The run is that of `nobody`; from the beginning of the step on, workspace, caches and target belong to root, with "
    "the mode 555.",
    owner=NOBODY,
)
CUT_OFF = Fault("connection cut", "While the step runs, every connection to a host is closed unanswered.", answer=CUT)
BUSY = Fault("429 for ever", "While the step runs, every request is answered with 429.", answer=429)
BROKEN = Fault("500 for ever", "While the step runs, every request is answered with 500.", answer=500)
MEMORY = Fault(
    "out of memory",
    "From the beginning of the step on, `RLIMIT_AS` is what the run has already and 1 MB. With nothing more at all, "
    "Python itself waits for ever for a thread that it cannot start.",
)
CLOCK = Fault(
    "clock set back",
    "From the beginning of the step on, the clock is ten years behind, and what was made before has its time in the "
    "future.",
    (0,),
)
TWICE = Fault(
    "two runs at once",
    "At the beginning of the step, the same command is started once more; it is the second one that is quoted.",
    (0,),
)
FAULTS = (KILL, TERM, CTRL_C, FULL, READ_ONLY, FORBIDDEN, CUT_OFF, BUSY, BROKEN, MEMORY, CLOCK, TWICE)


def hurt(fault: Fault, run: Run, disk: Disk, hosts: Hosts) -> None:
    """Do it to a run that is held."""
    if fault in (KILL, TERM, CTRL_C):
        os.kill(run.pid, {KILL: signal.SIGKILL, TERM: signal.SIGTERM, CTRL_C: signal.SIGINT}[fault])
    elif fault is FULL:
        disk.fill_up()
    elif fault is READ_ONLY:
        disk.close()
    elif fault is FORBIDDEN:
        disk.forbid()
    elif fault is MEMORY:
        with open(f"/proc/{run.pid}/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.prlimit(run.pid, resource.RLIMIT_AS, (now + _HEADROOM, resource.RLIM_INFINITY))
    elif fault is CLOCK:
        disk.into_the_future()
        os.kill(run.pid, signal.SIGUSR1)
    elif fault.answer is not None:
        hosts.fail(fault.answer)


def relieve(fault: Fault, run: Run, disk: Disk, hosts: Hosts) -> None:
    """Undo it."""
    disk.open()
    hosts.fail(None)
    if fault is MEMORY and run.poll() is None:
        resource.prlimit(run.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
