"""How many CPU threads compute: as many as the work is worth, and as other programs leave.

Threads that share a product wait for each other, and they wait by spinning. On a small product that costs more than it
saves; and two programs with as many threads as there are cores slow each other many times over. What a user has chosen
stays: OMP_NUM_THREADS, MKL_NUM_THREADS, torch.set_num_threads.

The last bits of a large product may depend on the number of threads. Small work, which always takes one, does not; who
wants the same bytes of a large model on a machine that he shares sets OMP_NUM_THREADS.
"""

import os
import time
from collections.abc import Callable
from types import TracebackType

import psutil
import torch

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_WORTH = 1e8
"""Operations of one product from which on it is always worth sharing: `benchmarks/threads.py`."""
_OFTEN, _STALE, _FIRST = 1.0, 5.0, 0.1
"""Seconds: between two looks at the machine; after which a look is too old; of the first look."""


def default_threads() -> int:
    """The number that torch takes if nobody says: one for each core that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Machine:
    """Looks at how busy the cores are with other programs."""

    def __init__(self, times: Callable[[], tuple[float, float, float]] | None = None):
        self._times = times or _times
        self._last = self._times()
        self._free = float(default_threads())

    def free_cores(self) -> float:
        """Cores that no other program has used lately, this process's own included."""
        age = self._times()[0] - self._last[0]
        if age > _STALE:
            self._last = self._times()
            time.sleep(_FIRST)
        elif age < _OFTEN:
            return self._free
        now = self._times()
        passed, busy, own = (after - before for after, before in zip(now, self._last, strict=True))
        self._last, self._free = now, (psutil.cpu_count() or 1) - max(busy - own, 0.0) / max(passed, 1e-3)
        return self._free


class Threads:
    """While open, torch computes with a fitting number of threads; afterwards with as many as before.

    Args:
        flops: operations of a typical matrix product of the work.
        steady: the number depends on the machine alone, not on what else runs. For work that is nothing but
            factorizations, whose last bits depend on it most.
    """

    _ours: int | None = None
    _machine: Machine | None = None

    def __init__(self, flops: float, *, steady: bool = False):
        self._flops, self._steady = flops, steady

    def __enter__(self) -> "Threads":
        self._before = torch.get_num_threads()
        self.adapt()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not are_chosen():
            _set(self._before)

    def adapt(self) -> None:
        """Look at the machine again, at most once a second; call it between two pieces of the work."""
        if are_chosen():
            return
        wanted = default_threads() if self._flops >= _WORTH else 1
        if wanted > 1 and not self._steady:
            Threads._machine = Threads._machine or Machine()
            wanted = min(wanted, max(1, round(Threads._machine.free_cores())))
        _set(wanted)


def are_chosen() -> bool:
    """Whether the user has said how many threads torch is to use."""
    return any(os.environ.get(name) for name in _VARIABLES) or torch.get_num_threads() not in (
        default_threads(),
        Threads._ours,
    )


def _set(count: int) -> None:
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
    Threads._ours = count


def _times() -> tuple[float, float, float]:
    """Now, and the seconds that all cores and this process have been busy."""
    whole, own = psutil.cpu_times(), psutil.Process().cpu_times()
    idle = whole.idle + getattr(whole, "iowait", 0.0)
    # Guests are counted in `user` as well.
    busy = sum(whole) - idle - getattr(whole, "guest", 0.0) - getattr(whole, "guest_nice", 0.0)
    return time.monotonic(), busy, own.user + own.system
