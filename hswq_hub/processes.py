"""Several processes that calibrate together, as `accelerate launch` or torchrun start them; usually there is one.

Every process makes its share of the pictures; what they found is put together in each of them, in the order of the
processes. Only the first writes anything.
"""

import os
import subprocess
import sys
from functools import cache

import torch

from hswq_runtime.errors import HSWQError

_LAUNCHED = "WORLD_SIZE"
"""Set by every launcher in the processes that it starts."""


@cache
def _state(cpu: bool):
    """accelerate's view of the group, None for a process that nothing launched."""
    if int(os.environ.get(_LAUNCHED, "1")) == 1:
        return None
    from accelerate import PartialState

    return PartialState(cpu=cpu)


class Group:
    """The processes that `device` is one of the devices of."""

    def __init__(self, device: torch.device):
        self._state = _state(device.type == "cpu")
        self.device = device if self._state is None else self._state.device
        self.number = 0 if self._state is None else self._state.process_index
        self.size = 1 if self._state is None else self._state.num_processes

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.number == 0

    def gather(self, found) -> list:
        """What each process gave, in their order; every process has to call this."""
        if self.size == 1:
            return [found]
        from accelerate.utils import gather_object

        return gather_object([found])


def launch(count: int, arguments: list[str]) -> int:
    """Run `hswq-hub` with `arguments` in `count` processes; returns the exit code of the first that failed, or 0.

    Raises:
        HSWQError: from within such a process already.
    """
    if _LAUNCHED in os.environ:
        raise HSWQError("--num-processes starts the processes itself; leave it out under `accelerate launch`")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run([*command, "-m", "hswq_hub", *arguments]).returncode
