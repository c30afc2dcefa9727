"""How much memory a run needs at once, from headers and shapes; and how much there is."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open

from hswq_runtime.checkpoints.mapped import MAPPED_BYTES
from hswq_runtime.errors import DeviceError

from ..common.hardware import dtype_named, free_memory, total_memory
from ..common.speed.gpus import Gpu
from ..common.text import megabytes
from ..generation.cost import DenoiserCost, picture_values
from ..quantization.compensate import knows_outputs, rounding_bytes
from ..settings import COMPENSATED, PublishSettings
from ..sources.components import local_files
from ..sources.diffusers_folder import WEIGHTS
from ..sources.source import Source
from .forecast import cost_of, usual_size, usual_vae

_LAYERS_A_BLOCK, _ACTIVATIONS = 7, 80
"""Layers in a block of the denoiser, and inputs of its width that it holds for the gradient."""


@dataclass(frozen=True)
class Memory:
    """Bytes needed on `device`, and what it has.

    denoiser, components: of the model; components is None if they are in a Hub repo. picture: what decoding one takes,
    and the part of a file that is mapped. moments: second moments, the rounding workspace, and the layers' inputs while
    a call is replayed. free, total: of the device.
    """

    device: str
    denoiser: int
    components: int | None
    picture: int
    moments: int
    free: int
    total: int

    @property
    def needed(self) -> int:
        """What is in use at once, at most."""
        return self.denoiser + max((self.components or 0) + self.picture, self.moments)

    @property
    def is_tight(self) -> bool:
        """Whether other programs are in the way."""
        return self.needed > self.free

    @property
    def line(self) -> str:
        """What is needed and what there is, in one line."""
        components = " and the other components" if self.components is None else ""
        tight = "; close other programs, or it may not suffice" if self.is_tight else ""
        return (
            f"{megabytes(self.needed)}{components}, on a {self.device} with {megabytes(self.free)} of "
            f"{megabytes(self.total)} free{tight}"
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


def memory_of(source: Source, settings: PublishSettings, gpu: Gpu | None = None) -> list[Memory]:
    """What is needed of the device that `settings`, settled ones, name; with CUDA, of the machine as well, since every
    model is read there before it moves. gpu: instead of this one alone, with nothing else on it."""
    checkpoint, calibration = source.checkpoint, settings.calibration
    word = dtype_named(calibration.dtype).itemsize
    denoiser = word * sum(info.values for info in checkpoint.denoiser_tensors.values())
    components = None if source.hub_base else word * sum(_values(path) for path in local_files(source))
    size = calibration.size or usual_size(source)
    moments = 0
    rounding = settings.recipe.rounding
    if rounding in COMPENSATED:
        moments = rounding_bytes(checkpoint, rounding, settings.calibration_memory)
        moments += word * replay_values(cost_of(source, size)) if knows_outputs(rounding) else 0
    picture = MAPPED_BYTES + word * picture_values(usual_vae(source), size)
    if gpu is not None:
        return [Memory(gpu.name, denoiser, components, picture, moments, gpu.memory_bytes, gpu.memory_bytes)]
    cpu = _on("machine", torch.device("cpu"), denoiser, components)
    computing = cpu if calibration.device != "cuda" else _on("GPU", torch.device("cuda"), denoiser, components)
    computing = replace(computing, moments=moments, picture=picture)
    return [computing] if calibration.device != "cuda" else [computing, replace(cpu, picture=MAPPED_BYTES)]


def replay_values(call: DenoiserCost) -> int:
    """Values that are held at once while a call is replayed backwards with gradient checkpointing: the inputs of all
    blocks, and what one block computes."""
    return int(call.tokens * call.width * (call.layers / _LAYERS_A_BLOCK + _ACTIVATIONS))


def _on(name: str, device: torch.device, denoiser: int, components: int | None) -> Memory:
    return Memory(name, denoiser, components, 0, 0, free_memory(device), total_memory(device))


def _values(path: Path) -> int:
    """How many values a safetensors file holds; 0 for any other file."""
    if path.suffix != WEIGHTS:
        return 0
    with safe_open(str(path), framework="numpy") as file:
        return sum(torch.Size(file.get_slice(key).get_shape()).numel() for key in file.offset_keys())
