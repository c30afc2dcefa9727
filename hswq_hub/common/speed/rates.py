"""How fast a machine does what steps consist of: one interface, from trials of this machine or from a GPU's figures."""

from functools import cache, cached_property
from pathlib import Path
from typing import Protocol

import torch

from ..threads import Threads
from . import trial
from .gpus import Gpu

ACHIEVED = 0.5
"""The share of a GPU's published peaks that is counted on. An assumption: training runs of large transformers report
0.4 to 0.6 of the dense peak of their products (PaLM, Megatron-LM). No GPU of the table was measured here."""
_LAUNCH = 1e-5
"""Seconds of a small operation on a GPU, launched from Python one after the other. An assumption."""
_DISK = 1e9
"""Bytes a second of the disk beside a GPU of the table. An assumption: an SSD."""
_BYTES_A_VALUE = 24
"""That go through the memory in `trial.value_seconds`: two passes that read and write float32, two that read it."""


class Rates(Protocol):
    """The rates of one machine."""

    @property
    def basis(self) -> str:
        """What they rest on, in a phrase."""

    def block(self, width: int, tokens: int) -> float:
        """Operations a second of a denoiser's block, `width` wide, that sees `tokens` tokens."""

    @property
    def double(self) -> float:
        """Operations a second of a product in float64."""

    @property
    def launch(self) -> float:
        """Seconds of a small operation."""

    @property
    def value(self) -> float:
        """Seconds that a few small operations take for one value, which wait for the memory."""

    @property
    def disk(self) -> float:
        """Bytes a second that are read or written."""

    @property
    def host(self) -> float:
        """Bytes a second from the machine's memory to the device's."""


class TrialRates:
    """Of `device` of this machine, computing in `dtype`, and of the disk under `place`; each trial is made once, when
    its rate is asked for."""

    basis = "a short trial"

    def __init__(self, device: str, dtype: torch.dtype, place: Path):
        self._device, self._dtype, self._place = device, dtype, place

    @cache  # noqa: B019 (rates live as long as a run)
    def block(self, width: int, tokens: int) -> float:
        with Threads(2.0 * width**2 * tokens):
            return trial.block_rate(width, tokens, self._device, self._dtype)

    @cached_property
    def double(self) -> float:
        return trial.double_rate(self._device)

    @cached_property
    def launch(self) -> float:
        return trial.launch_seconds(self._device)

    @cached_property
    def value(self) -> float:
        return trial.value_seconds(self._device)

    @cached_property
    def disk(self) -> float:
        return trial.disk_rate(self._place)

    @cached_property
    def host(self) -> float:
        return trial.host_rate(self._device)


class GpuRates:
    """Of a GPU of the table, computing in 16 bits: `ACHIEVED` of what its maker publishes."""

    launch, disk = _LAUNCH, _DISK

    def __init__(self, gpu: Gpu):
        self._gpu = gpu
        self.basis = f"{ACHIEVED:.0%} of the published peaks of the {gpu.name}, on which nothing was measured"

    def block(self, width: int, tokens: int) -> float:
        return ACHIEVED * self._gpu.flops

    @property
    def double(self) -> float:
        return ACHIEVED * self._gpu.double_flops

    @property
    def value(self) -> float:
        return _BYTES_A_VALUE / (ACHIEVED * self._gpu.bandwidth_bytes)

    @property
    def host(self) -> float:
        return ACHIEVED * self._gpu.host_bytes
