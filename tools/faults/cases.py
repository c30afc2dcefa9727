"""A case: a run that is hurt in one step, what it leaves, and the run after it."""

from dataclasses import dataclass

from .bench import Bench, prepare
from .children import Run
from .faults import KILL, TWICE, Fault, hurt, relieve
from .left import as_text, finished, plain, remains
from .place import Disk
from .promises import broken_promises, message_of
from .steps import Place


@dataclass(frozen=True)
class Row:
    """What came of a case, as the page has it. broken: promises that do not hold; none is what should be."""

    fault: str
    step: str
    code: str
    message: str
    left: str
    after: str
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Hurt:
    """The runs that were hurt, the one that is looked at last. asks: whether one asked a host before that ended."""

    runs: tuple[Run, ...]
    asks: bool

    @property
    def lines(self) -> list[str]:
        return self.runs[-1].lines

    @property
    def codes(self) -> list[int | None]:
        return [run.code for run in self.runs]


def tried(bench: Bench, fault: Fault, place: Place, reference: dict[str, bytes]) -> Row:
    """Try one case. reference: what a run without harm publishes."""
    with Disk(bench.disk, fault.owner) as disk:
        prepare(bench, disk, place)
        found = _hurt(bench, disk, fault, place)
        left, done = remains(disk), finished(bench, fault.owner)
        again = bench.start("publish", "again", owner=fault.owner)
        again.wait()
        after = bench.published()
        differing = sorted(name for name in reference.keys() | after.keys() if reference.get(name) != after.get(name))
        broken = broken_promises(fault, found.codes, found.lines, again, differing, remains(disk), done)
    message = "" if fault is KILL else message_of(found.lines)
    if fault.answer is not None and not found.asks and place.held is None:
        message = "— the step asks no host"
    return Row(
        fault.name,
        place.name,
        ", ".join("hangs" if code is None else str(code) for code in found.codes),
        plain(message, bench),
        "; ".join([as_text(done), *left]),
        "same bytes" if again.code == 0 and not differing else "differs",
        tuple(plain(text, bench) for text in broken),
    )


def _hurt(bench: Bench, disk: Disk, fault: Fault, place: Place) -> _Hurt:
    """A run that is held in the step, hurt there, and let go."""
    hosts, gates = bench.hosts, bench.gates
    step = place.name if place.held is None else None
    if place.held is not None:
        hosts.hold(*place.held)
    run = bench.start("publish", "hurt", owner=fault.owner, step=step, moment=fault.moment)
    if not run.wait((gates / "reached").exists if step else lambda: hosts.holds) or run.poll() is not None:
        raise RuntimeError("\n".join([f"never got to {place.name}:", *run.lines]))
    other = _second(bench) if fault is TWICE else None
    hurt(fault, run, disk, hosts)
    asked = hosts.asked
    if step is None:
        hosts.let_go()
    (gates / "reached.go").touch()
    ended = run.wait((gates / "done").exists)
    asks = hosts.asked > asked
    if ended and run.poll() is None:
        relieve(fault, run, disk, hosts)
        (gates / "done.go").touch()
        ended = run.wait()
    if not ended:
        run.kill()
    relieve(fault, run, disk, hosts)
    if other is not None and not other.wait():
        other.kill()
    return _Hurt((run,) if other is None else (run, other), asks)


def _second(bench: Bench) -> Run:
    """The same command once more, when it waits for the first one or does not have to."""
    other = bench.start("publish", "other")
    other.wait(lambda: any("waiting for it" in line for line in other.lines), 5)
    return other
