"""How much memory a run needs at once, from headers and shapes; and how much there is."""

from dataclasses import dataclass

import torch

from hswq_runtime.checkpoints.mapped import MAPPED_BYTES
from hswq_runtime.errors import DeviceError

from ..common.hardware import dtype_named, free_memory, total_memory
from ..common.speed.gpus import Gpu
from ..common.text import megabytes
from ..generation.cost import DenoiserCost
from ..generation.placement import Placement, usable_memory
from ..quantization.compensate import ReplayMemory, replay_memory
from ..settings import COMPENSATED, PublishSettings
from ..sources.source import Source
from .forecast import cost_of, sizes_of, usual_size

_LAYERS_A_BLOCK, _ACTIVATIONS = 7, 80
"""Layers in a block of the denoiser, and inputs of its width that it holds for the gradient."""

_FLOOR = ", or --no-noise-floor: that has the denoiser there in float32"


@dataclass(frozen=True)
class Memory:
    """Bytes needed on `device`, and what it has.

    least: below this nothing goes: the model, or on a GPU what pictures take of it block by block. pictures: what
    making them takes, put there as `placement` says. rounding: the denoiser, second moments, the rounding workspace,
    and the layers' inputs while a call is replayed. free, total: of the device. complete: the components are counted,
    which they are not if they are in a Hub repo. instead: what else could be done if it has less.
    """

    device: str
    least: int
    pictures: int
    rounding: int
    free: int
    total: int
    complete: bool
    placement: Placement = Placement.WHOLE
    instead: str = ""

    @property
    def needed(self) -> int:
        """What is in use at once, at most."""
        return max(self.pictures, self.rounding)

    @property
    def is_tight(self) -> bool:
        """Whether other programs are in the way."""
        return self.needed > self.free

    @property
    def line(self) -> str:
        """What is needed and what there is, in one line."""
        components = "" if self.complete else " and the other components"
        placed = "" if self.placement is Placement.WHOLE else f" (pictures {self.placement.value})"
        tight = "; close other programs, or it may not suffice" if self.is_tight else ""
        return (
            f"{megabytes(self.needed)}{components}{placed}, on a {self.device} with {megabytes(self.free)} of "
            f"{megabytes(self.total)} free{tight}"
        )

    def check(self) -> None:
        """Check that it can do at all, whatever else is running.

        Raises:
            DeviceError: the device has less.
        """
        has = f"on the {self.device}, which has {megabytes(self.total)}"
        if self.least > self.total:
            raise DeviceError(f"the model takes {megabytes(self.least)} {has}; a larger one is needed{self.instead}")
        if self.needed > self.total:
            raise DeviceError(
                f"the model and what compensated rounding works with take {megabytes(self.needed)} {has}; lower "
                "--calibration-memory, or take --rounding nearest, which needs none of it"
            )


def memory_of(source: Source, settings: PublishSettings, gpu: Gpu | None = None) -> list[Memory]:
    """What is needed of the device that `settings`, settled ones, name; with CUDA, of the machine as well, since every
    model is read there before it moves. gpu: instead of this one alone, with nothing else on it."""
    calibration, rounding = settings.calibration, settings.recipe.rounding
    sizes = sizes_of(source, calibration.dtype, calibration.size)
    floor, said = sizes, ""
    if settings.evaluation.noise_floor and settings.evaluation.dtype in ("bfloat16", "float16"):
        floor, said = sizes.with_denoiser(2 * sizes.denoiser), _FLOOR
    model = floor.denoiser + sum(floor.components.values())
    complete, replayed = source.hub_base is None, 0
    if rounding in COMPENSATED or settings.recipe.keep_by == "error":
        replayed = replays_of(source, settings).needed
    if gpu is None and calibration.device != "cuda":
        pictures = floor.needed(Placement.WHOLE) + MAPPED_BYTES
        return [Memory("machine", model, pictures, replayed, *_of(torch.device("cpu")), complete, instead=said)]
    device = torch.device(calibration.device)
    placement = sizes.placement(usable_memory(device, settings.device_memory))
    least, pictures = floor.needed(Placement.BLOCKS), sizes.needed(placement)
    if gpu is not None:
        has = gpu.memory_bytes
        return [Memory(gpu.name, least, pictures, replayed, has, has, complete, placement, said)]
    return [
        Memory("GPU", least, pictures, replayed, *_of(device), complete, placement, said),
        Memory("machine", model, model + MAPPED_BYTES, 0, *_of(torch.device("cpu")), complete, instead=said),
    ]


def replays_of(source: Source, settings: PublishSettings) -> ReplayMemory:
    """How the device's memory is shared while recorded calls are replayed, with settled settings."""
    calibration, word = settings.calibration, dtype_named(settings.calibration.dtype).itemsize
    return replay_memory(
        source.checkpoint,
        settings.recipe.rounding,
        settings.calibration_memory,
        usable_memory(torch.device(calibration.device), settings.device_memory),
        word=word,
        call=word * replay_values(cost_of(source, calibration.size or usual_size(source))),
    )


def replay_values(call: DenoiserCost) -> int:
    """Values that are held at once while a call is replayed backwards with gradient checkpointing: the inputs of all
    blocks, and what one block computes."""
    return int(block_values(call) + call.tokens * call.width * _ACTIVATIONS)


def block_values(call: DenoiserCost) -> float:
    """Values that all blocks are given in a call."""
    return call.tokens * call.width * call.layers / _LAYERS_A_BLOCK


def _of(device: torch.device) -> tuple[int, int]:
    return free_memory(device), total_memory(device)
