"""How much memory a run needs at once, from headers and shapes; and how much there is."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open

from hswq_runtime.errors import DeviceError

from ..common.hardware import dtype_named, free_memory, total_memory
from ..common.text import megabytes
from ..quantization.compensate import rounding_bytes
from ..settings import COMPENSATED, PublishSettings
from ..sources.components import local_files
from ..sources.diffusers_folder import WEIGHTS
from ..sources.source import Source


@dataclass(frozen=True)
class Memory:
    """Bytes needed on `device`, and what it has.

    denoiser, components: of the model; components is None if they are in a Hub repo. moments: second moments and the
    rounding workspace. free, total: of the device.
    """

    device: str
    denoiser: int
    components: int | None
    moments: int
    free: int
    total: int

    @property
    def needed(self) -> int:
        """The least that does; pictures in the making come on top."""
        return self.denoiser + max(self.components or 0, self.moments)

    @property
    def is_tight(self) -> bool:
        """Whether other programs are in the way."""
        return self.needed > self.free

    @property
    def line(self) -> str:
        """What is needed and what there is, in one line."""
        components = " and other components" if self.components is None else ""
        tight = "; close other programs, or it may not suffice" if self.is_tight else ""
        return (
            f"{megabytes(self.needed)}{components} and the pictures in the making, on a {self.device} with "
            f"{megabytes(self.free)} of {megabytes(self.total)} free{tight}"
        )

    def check(self) -> None:
        """Check that it can do at all, whatever else is running.

        Raises:
            DeviceError: the device has less.
        """
        model = self.denoiser + (self.components or 0)
        has = f"on the {self.device}, which has {megabytes(self.total)}"
        if model > self.total:
            raise DeviceError(f"the model takes {megabytes(model)} {has}; a larger one is needed")
        if self.needed > self.total:
            raise DeviceError(
                f"the model and what compensated rounding works with take {megabytes(self.needed)} {has}; lower "
                "--calibration-memory, or take --rounding nearest, which needs none of it"
            )


def memory_of(source: Source, settings: PublishSettings) -> list[Memory]:
    """What is needed of the device that `settings`, settled ones, name; with CUDA, of the machine as well, since every
    model is read there before it moves."""
    checkpoint, calibration = source.checkpoint, settings.calibration
    word = dtype_named(calibration.dtype).itemsize
    denoiser = word * sum(info.values for info in checkpoint.denoiser_tensors.values())
    components = None if source.hub_base else word * sum(_values(path) for path in local_files(source))
    moments = 0
    rounding = settings.recipe.rounding
    if rounding in COMPENSATED:
        moments = rounding_bytes(checkpoint, rounding, settings.calibration_memory)
    cpu = _on("machine", torch.device("cpu"), denoiser, components)
    if calibration.device != "cuda":
        return [replace(cpu, moments=moments)]
    return [replace(_on("GPU", torch.device("cuda"), denoiser, components), moments=moments), cpu]


def _on(name: str, device: torch.device, denoiser: int, components: int | None) -> Memory:
    return Memory(name, denoiser, components, 0, free_memory(device), total_memory(device))


def _values(path: Path) -> int:
    """How many values a safetensors file holds; 0 for any other file."""
    if path.suffix != WEIGHTS:
        return 0
    with safe_open(str(path), framework="pt") as file:
        return sum(torch.Size(file.get_slice(key).get_shape()).numel() for key in file.offset_keys())
