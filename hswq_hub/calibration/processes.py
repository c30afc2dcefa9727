"""Calibration shared by several processes, as `accelerate launch` or torchrun start them; usually there is one.

Every process makes its share of the pictures, and gathers the statistics of all in the order of their ranks. Only rank
0 writes files.
"""

import logging
import os
import signal
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from hswq_runtime.errors import HSWQError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_LAUNCHED = "WORLD_SIZE"
"""Set by every launcher in the processes that it starts."""
_SHARED = "calibrate"
"""The command that several processes share."""


@cache
def launched_group(cpu: bool) -> Any:
    """accelerate's view of the group, None for a process that nothing launched."""
    if int(os.environ.get(_LAUNCHED, "1")) == 1:
        return None
    from accelerate import PartialState

    return PartialState(cpu=cpu)


class Stopped(KeyboardInterrupt):
    """SIGTERM told this process to end, as Ctrl-C does."""


def is_launched() -> bool:
    """Whether a launcher started this process, and stops it."""
    return _LAUNCHED in os.environ


class Group:
    """The processes of this launch; `device` is this one's."""

    def __init__(self, device: "torch.device"):
        self._state = launched_group(device.type == "cpu")
        self.device = device if self._state is None else self._state.device
        self.number = 0 if self._state is None else self._state.process_index
        self.size = 1 if self._state is None else self._state.num_processes

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.number == 0

    def gather(self, found: T) -> list[T]:
        """The objects of all processes, by rank; every process has to call this.

        Raises:
            HSWQError: another process is gone.
        """
        if self.size == 1:
            return [found]
        from accelerate.utils import gather_object

        try:
            gathered: list[T] = gather_object([found])
            return gathered
        except RuntimeError as error:  # what torch.distributed raises, of whatever backend
            reason = str(error).strip().splitlines()[0]
            raise HSWQError(
                f"another of the {self.size} processes is gone ({reason}); its own message is above, run this again"
            ) from error


def check_shared(command: str | None) -> None:
    """Check that several processes were not launched for a `command` that runs in one.

    Raises:
        HSWQError: they were.
    """
    if command != _SHARED and int(os.environ.get(_LAUNCHED, "1")) > 1:
        raise HSWQError(
            f"`hswq-hub {command}` is the work of one process; share the calibration, `accelerate launch -m hswq_hub "
            f"{_SHARED} …`, and give what it writes to `hswq-hub quantize --calibration`"
        )


def launch(count: int, arguments: list[str]) -> int:
    """Run `hswq-hub` with `arguments` in `count` processes; returns 0, or the exit code of one that said why it failed.

    Should one of them die, the others are stopped.

    Raises:
        HSWQError: from within such a process already, or one of them was killed.
        KeyboardInterrupt: this process was stopped, and has stopped the others.
    """
    if is_launched():
        raise HSWQError("--num-processes starts the processes itself; leave it out under `accelerate launch`")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for noisy in ("", ".agent.server.api"):  # what it has to say is said below
        logging.getLogger(f"torch.distributed.elastic{noisy}").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="hswq",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "hswq_hub", *arguments)
    except SignalException as error:
        raise KeyboardInterrupt if error.sigval == signal.SIGINT else Stopped from None
    except ChildFailedError as error:
        failures = error.failures
        said = [failure.exitcode for failure in failures.values() if failure.exitcode > 0]
        killed = [rank for rank, failure in failures.items() if failure.exitcode < 0]
        # With SIGTERM the launcher itself stops those that are left when one has failed.
        killed.sort(key=lambda rank: failures[rank].exitcode == -signal.SIGTERM)
        if said and (not killed or failures[killed[0]].exitcode == -signal.SIGTERM):
            return max(said)
        rank, failure = killed[0], failures[killed[0]]
        raise HSWQError(
            f"process {rank + 1} of {count} was killed ({failure.signal_name()}; the system does that when memory runs "
            "out), so the others were stopped; nothing that was saved before is lost, run this again"
        ) from None
    return 0
