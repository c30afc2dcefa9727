"""Which device to use, and what to call it in a report."""

import os
import platform
import time

import torch

from hswq_runtime.errors import DeviceError

from .settings import DEVICES, DTYPES

_TRIAL_SIDE, _TRIAL_SECONDS = 1024, 0.2


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
        return getattr(torch, name)
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@torch.no_grad()
def operations_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Of a product of matrices, by a trial of a fraction of a second."""
    square = torch.ones(_TRIAL_SIDE, _TRIAL_SIDE, device=device, dtype=dtype)
    (square @ square)[0, 0].item()  # what is set up at first use is not to count
    runs, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < _TRIAL_SECONDS:
        (square @ square)[0, 0].item()  # which waits for the device
        runs += 1
    return runs * 2.0 * _TRIAL_SIDE**3 / passed


def describe(device: torch.device) -> str:
    """What a person would call the hardware: "NVIDIA H200", or the CPU's name and cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Versions of everything that a figure depends on."""
    import diffusers
    import transformers

    from . import __version__

    return {
        "hswq-hub": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or an Arm kernel, which names no model
        return platform.processor() or platform.machine()
