"""Weights of a model's blocks that are on the device only while they are needed there."""

from collections.abc import Collection, Mapping

import torch
from torch import nn

from hswq_runtime.errors import DeviceError

from ..common.text import megabytes


class Residents:
    """The blocks of `model` that are on `device`, at most `room` bytes of them; what is outside of them stays there.

    Raises:
        DeviceError: one block alone takes more than `room`.
    """

    def __init__(self, model: nn.Module, blocks: Mapping[str, nn.Module], device: torch.device, room: float):
        self._device, self._room = device, room
        self._homes = {name: _tensors_of(block) for name, block in blocks.items()}
        self._bytes = {name: sum(home.nbytes for _, home in homes) for name, homes in self._homes.items()}
        self._here: list[str] = []
        inside = {id(tensor) for homes in self._homes.values() for tensor, _ in homes}
        self._outside = [(tensor, home) for tensor, home in _tensors_of(model) if id(tensor) not in inside]
        if (largest := max(self._bytes.values(), default=0)) > room:
            name = next(name for name, size in self._bytes.items() if size == largest)
            left = megabytes(int(max(room, 0)))
            raise DeviceError(
                f"{name} takes {megabytes(largest)} on the {device.type}, where {left} are left for weights; lower "
                "--calibration-memory, or take a device with more memory"
            )
        for tensor, home in self._outside:
            tensor.data = home.to(device, copy=True)

    def bring(self, name: str, needed: Collection[str]) -> None:
        """Have the block `name` on the device; of others, those in `needed` stay there.

        The one that came last goes first: calls go through the blocks in turn, and what came first is then still there
        for the next call.
        """
        if name in self._here or name not in self._homes:
            return
        taken = sum(self._bytes[other] for other in self._here)
        for other in [one for one in reversed(self._here) if one not in needed]:
            if taken + self._bytes[name] <= self._room:
                break
            self._send_home(other)
            taken -= self._bytes[other]
        for tensor, home in self._homes[name]:
            tensor.data = home.to(self._device, copy=True)
        self._here.append(name)

    def close(self) -> None:
        """Have all of the model where it was."""
        for name in list(self._here):
            self._send_home(name)
        for tensor, home in self._outside:
            tensor.data = home

    def _send_home(self, name: str) -> None:
        for tensor, home in self._homes[name]:
            tensor.data = home
        self._here.remove(name)


def _tensors_of(module: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Its parameters and buffers, each with what it holds now."""
    return [(tensor, tensor.data) for tensor in (*module.parameters(), *module.buffers())]
