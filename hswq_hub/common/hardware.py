"""Which device to use, and what to call it in a report."""

import os
import platform
from pathlib import Path

import psutil
import torch

from hswq_runtime.errors import DeviceError

from ..settings import DEVICES, DTYPES

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells the memory limit of a container."""


def pick_device(name: str) -> torch.device:
    """The device to compute on. "auto": CUDA where there is one, else the CPU.

    Raises:
        DeviceError: CUDA was asked for and is not there.
        ValueError: not one of `settings.DEVICES`.
    """
    if name not in DEVICES:
        raise ValueError(f"{name!r} is not one of {DEVICES}")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise DeviceError("CUDA was asked for, but this machine has no CUDA device; use --device cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """What to compute in. "auto": bfloat16 on CUDA, float32 on the CPU, which multiplies that faster."""
    if name not in DTYPES:
        raise ValueError(f"{name!r} is not one of {DTYPES}")
    if name != "auto":
        return dtype_named(name)
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def dtype_named(name: str) -> torch.dtype:
    """torch's dtype of that name, such as \"bfloat16\"."""
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return dtype


def describe(device: torch.device) -> str:
    """What a person would call the hardware: "NVIDIA H200", or the CPU's name and cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {os.cpu_count()} cores"


def free_memory(device: torch.device, cgroup: Path = CGROUP) -> int:
    """Free bytes of the device, or of this machine within its container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    limit, used = (_of_container(cgroup / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, max(limit - used, 0))


def total_memory(device: torch.device, cgroup: Path = CGROUP) -> int:
    """Bytes of the device, or memory and swap of this machine within its container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    whole, limit = psutil.virtual_memory().total + psutil.swap_memory().total, _of_container(cgroup / "memory.max")
    return whole if limit is None else min(whole, limit)


def _of_container(file: Path) -> int | None:
    """Bytes that the container of this process has or uses; None without one, or without a limit ("max")."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


class PeakMemory:
    """The peak memory of a block, in `bytes` once it has ended; None where the system does not count it.

    On CUDA the memory that torch allocated on the device; elsewhere the resident memory of this process (Linux).
    """

    def __init__(self, device: torch.device):
        self._device = device
        self.bytes: int | None = None

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            _reset_peak()
        return self

    def __exit__(self, *_: object) -> None:
        cuda = self._device.type == "cuda"
        self.bytes = torch.cuda.max_memory_allocated(self._device) if cuda else _peak()


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # `_peak` then tells the peak since the start, which is one as well


def _peak() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or an Arm kernel, which names no model
        return platform.processor() or platform.machine()
