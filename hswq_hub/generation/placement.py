"""Where the parts of a pipeline are while it makes pictures, by what fits into the memory of the device.

    WHOLE       all of them are on the device
    COMPONENTS  one after the other, as each is needed: text encoders, denoiser, VAE (diffusers' model offloading)
    BLOCKS      the same, and of the denoiser one block after the other; on CUDA the next one arrives while one computes
                (diffusers' group offloading)

Weights are moved and nothing is computed otherwise, so pictures and statistics are the same to the bit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import DeviceError
from hswq_runtime.layers.modules import weight_bytes

from ..common.hardware import free_memory
from ..common.text import megabytes
from ..settings import GB
from .cost import call_values, denoiser_cost, picture_values, pixels_a_token

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

USABLE = 0.9
"""The share of a GPU's free memory that is planned with; the rest is for libraries' workspaces and for memory that lies
between other pieces. An assumption."""
_TOGETHER = 2
"""Blocks of the denoiser that are on the device at once: one that computes, and the next."""
_VAE = "vae"


class Placement(Enum):
    """How a pipeline is put on a device, in the order of preference; the values are how people read it."""

    WHOLE = "as a whole"
    COMPONENTS = "one component at a time"
    BLOCKS = "block by block"


@dataclass(frozen=True)
class Sizes:
    """Bytes that the parts of a pipeline take on a device.

    denoiser: all of it; blocks: what is there at once if it is put there block by block. components: of the others, by
    name. call, picture: what a call of the denoiser, and decoding a picture, hold besides the weights.
    """

    denoiser: int
    blocks: int
    components: Mapping[str, int]
    call: int
    picture: int

    def needed(self, placement: Placement) -> int:
        """Bytes in use at once, at most. Text encoders count together: with a negative prompt they take turns."""
        before = sum(size for name, size in self.components.items() if name != _VAE)
        others = max(before, self.components.get(_VAE, 0) + self.picture)
        if placement is Placement.WHOLE:
            return self.denoiser + sum(self.components.values()) + max(self.call, self.picture)
        return max((self.denoiser if placement is Placement.COMPONENTS else self.blocks) + self.call, others)

    def placement(self, memory: float) -> Placement:
        """The first that fits into `memory` bytes; BLOCKS, which needs least, if none does."""
        return next((found for found in Placement if self.needed(found) <= memory), Placement.BLOCKS)

    def check(self, memory: float) -> None:
        """Check that there is one that fits into `memory` bytes.

        Raises:
            DeviceError: there is none; the message says what would be needed.
        """
        least = min(map(self.needed, Placement))
        if least > memory:
            raise DeviceError(
                f"pictures take {megabytes(least)} on the device even with the denoiser there block by block, but "
                f"{megabytes(int(memory))} can be used; make smaller ones (--size), or take a larger GPU"
            )

    def streamed(self, placement: Placement, calls: int, pictures: int, decoded: bool) -> int:
        """Bytes of weights that move between the machine and the device for `pictures` made in `calls` of the denoiser.

        Components move to the device and back once a picture, the VAE if it is `decoded`; blocks move to the device
        once a call, and their originals stay where they are.
        """
        if placement is Placement.WHOLE:
            return 0
        moved = sum(size for name, size in self.components.items() if decoded or name != _VAE)
        if placement is Placement.COMPONENTS:
            return 2 * pictures * (self.denoiser + moved)
        return calls * self.denoiser + 2 * pictures * moved

    def with_denoiser(self, size: int) -> "Sizes":
        """The same with a denoiser of `size` bytes that has the same blocks."""
        return replace(self, denoiser=size, blocks=round(self.blocks / self.denoiser * size))


def usable_memory(device: torch.device, given: float | None = None) -> float:
    """Bytes of `device` that a pipeline may take: `given` GB, else a share of what is free. On a CPU, where the weights
    are anyway, there is no bound unless one is given."""
    if given is not None:
        return given * GB
    return inf if device.type == "cpu" else USABLE * free_memory(device)


def blocks_share(denoiser: nn.Module) -> float:
    """The share of a denoiser's weights that is on a device at once, block by block. `denoiser` may be empty.

    Blocks are what diffusers' group offloading takes for them: items of the lists of modules at the top.
    """
    lists = [child for child in denoiser.children() if isinstance(child, (nn.ModuleList, nn.Sequential))]
    blocks = sorted((weight_bytes(item) for found in lists for item in found), reverse=True)
    whole = weight_bytes(denoiser)
    return (whole - sum(blocks[_TOGETHER:])) / whole


def sizes_of(pipeline: "DiffusionPipeline", checkpoint: Checkpoint, size: int) -> Sizes:
    """Of a pipeline whose denoiser was made from `checkpoint`, for pictures of `size` pixels a side."""
    name = checkpoint.architecture.component
    denoiser = getattr(pipeline, name)
    config = pipeline.vae.config
    call = denoiser_cost(checkpoint, size, pixels_a_token(config))
    return Sizes(
        denoiser=weight_bytes(denoiser),
        blocks=round(blocks_share(denoiser) * weight_bytes(denoiser)),
        components={other: weight_bytes(module) for other, module in _modules(pipeline) if other != name},
        call=denoiser.dtype.itemsize * call_values(call),
        picture=pipeline.vae.dtype.itemsize * picture_values(config, size),
    )


def place(pipeline: "DiffusionPipeline", component: str, placement: Placement, device: torch.device) -> None:
    """Put a pipeline, whose denoiser is its `component`, on `device`. It may have been there in another way, with
    another denoiser."""
    pipeline.remove_all_hooks()
    if placement is Placement.WHOLE:
        pipeline.to(device)
    elif placement is Placement.COMPONENTS:
        pipeline.enable_model_cpu_offload(device=device)
    else:
        _place_blocks(pipeline, component, device)


def _place_blocks(pipeline: "DiffusionPipeline", component: str, device: torch.device) -> None:
    from accelerate import cpu_offload_with_hook
    from diffusers.hooks import apply_group_offloading

    others: list[Any] = []
    for name, module in _modules(pipeline):
        if name != component:
            others.append(cpu_offload_with_hook(module, device, others[-1] if others else None)[1])
    # The next picture begins with the first of them, when the last one is still there.
    others[0].hook.prev_module_hook = others[-1]
    denoiser = getattr(pipeline, component)
    apply_group_offloading(denoiser, device, num_blocks_per_group=1, use_stream=device.type == "cuda")

    def put_others_away(*_: object) -> None:
        for hook in others:
            hook.offload()

    denoiser.register_forward_pre_hook(put_others_away)


def _modules(pipeline: "DiffusionPipeline") -> Iterator[tuple[str, nn.Module]]:
    """The components with weights, in the order in which a picture needs them."""
    order = str(pipeline.model_cpu_offload_seq).split("->")
    found = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    yield from sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))
