"""One picture from one prompt and one seed, as calibration, evaluation and the demo page make it."""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from hswq_runtime.architectures import Architecture
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import HSWQError
from hswq_runtime.pipeline import assemble_pipeline

from ..common.threads import Threads
from .cost import TOKEN
from .placement import place, sizes_of, usable_memory

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class GenerationSettings:
    """What a pipeline is called with. :meth:`of` is the one place that decides it.

    steps: denoising steps. guidance: guidance scale. size: side of the square picture in pixels. guidance_argument:
    the pipeline's name for the scale. negative_prompt: None for the pipeline's own. call: further arguments.
    """

    steps: int
    guidance: float
    size: int
    guidance_argument: str = "guidance_scale"
    negative_prompt: str | None = None
    call: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        vae_config: Mapping[str, object],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        size: int | None = None,
        negative_prompt: str | None = None,
        recorded: Mapping[str, object] | None = None,
    ) -> "GenerationSettings":
        """The arguments given, then those that a record names (`protocol.generation` of metrics.json), then the
        architecture's; the size is the VAE's `sample_size` where that is smaller. `negative_prompt` None or "" means
        that it was not given.

        Raises:
            ValueError: a recorded setting has the wrong type.
        """
        trained = vae_config.get("sample_size")
        known: dict[str, object] = {
            "steps": architecture.steps,
            "guidance": architecture.guidance,
            "size": min(architecture.size, trained) if isinstance(trained, int) else architecture.size,
            "guidance_argument": architecture.guidance_argument,
            "negative_prompt": architecture.negative_prompt,
            "call": architecture.call,
        }
        known |= {name: value for name, value in (recorded or {}).items() if name in known}
        given = {"steps": steps or None, "guidance": guidance, "size": size or None, "negative_prompt": negative_prompt}
        match known | {name: value for name, value in given.items() if value not in (None, "")}:
            case {
                "steps": int(steps),
                "guidance": int() | float() as scale,
                "size": int(side),
                "guidance_argument": str(argument),
                "negative_prompt": (str() | None) as negative,
                "call": Mapping() as call,
            }:
                return cls(steps, float(scale), side, argument, negative, {str(k): v for k, v in call.items()})
            case found:
                raise ValueError(f"these are no generation settings: {found}")

    def arguments(self, prompts: str | Sequence[str]) -> dict[str, object]:
        """Arguments of the pipeline's call for one prompt, or for a batch of them."""
        negative: dict[str, object] = {}
        if self.negative_prompt is not None:
            one = isinstance(prompts, str)
            negative["negative_prompt"] = self.negative_prompt if one else [self.negative_prompt] * len(prompts)
        return {
            "prompt": prompts if isinstance(prompts, str) else list(prompts),
            "height": self.size,
            "width": self.size,
            "num_inference_steps": self.steps,
            self.guidance_argument: self.guidance,
            **negative,
            **self.call,
        }


@dataclass(frozen=True)
class Sample:
    """A generated picture.

    latents: float32 [C, h, w], on the CPU. image: uint8 [H, W, 3]. seconds: from prompt to picture.
    """

    latents: torch.Tensor
    image: NDArray[np.uint8]
    seconds: float


def open_pipeline(
    checkpoint: Checkpoint,
    denoiser: torch.nn.Module,
    base: str,
    device: torch.device,
    size: int | None = None,
    memory: float | None = None,
) -> "DiffusionPipeline":
    """The diffusers pipeline of `checkpoint` around `denoiser`, without progress bars of its own, which computes on
    `device`: as much of it is there at once as fits.

    Args:
        denoiser: made from `checkpoint`, on the CPU.
        size: pixels a side of its pictures; None: the model's own.
        memory: bytes of the device that it may take; None: see :func:`usable_memory`.

    Raises:
        ComponentError: a component cannot be loaded.
        DeviceError: not even a block at a time fits.
    """
    pipeline = assemble_pipeline(checkpoint, denoiser, base)
    pipeline.set_progress_bar_config(disable=True)
    put_on(pipeline, checkpoint, device, size, usable_memory(device) if memory is None else memory)
    return pipeline


def put_on(
    pipeline: "DiffusionPipeline", checkpoint: Checkpoint, device: torch.device, size: int | None, memory: float
) -> None:
    """Put a pipeline, with a denoiser made from `checkpoint`, on `device`, within `memory` bytes of it. Other arguments
    and errors: see :func:`open_pipeline`."""
    settings = GenerationSettings.of(checkpoint.architecture, pipeline.vae.config, size=size)
    sizes = sizes_of(pipeline, checkpoint, settings.size)
    sizes.check(memory)
    place(pipeline, checkpoint.architecture.component, sizes.placement(memory), device)


def _threads(pipeline: "DiffusionPipeline", size: int, pictures: int = 1) -> Threads:
    """What computes pictures of `size` pixels a side."""
    denoiser = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    token = 2 * getattr(pipeline, "vae_scale_factor", TOKEN // 2)
    return Threads(0.0 if denoiser is None else pictures * product_flops(denoiser, size, token))


def product_flops(denoiser: torch.nn.Module, size: int, token: int = TOKEN) -> float:
    """Operations of a typical product in a call of the denoiser, for a picture of `size` pixels a side.

    `token`: pixels a side of a token. A typical product is that of the layer in which a typical weight is.
    """
    layers = (layer for layer in denoiser.modules() if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)))
    sizes = [layer.weight.numel() for layer in layers]
    return 2.0 * sum(n * n for n in sizes) / max(sum(sizes), 1) * (size / token) ** 2


def takes_negative(pipeline: "DiffusionPipeline") -> bool:
    """Whether the pipeline's call has a `negative_prompt`."""
    return "negative_prompt" in inspect.signature(type(pipeline).__call__).parameters


def generate(
    pipeline: "DiffusionPipeline",
    prompt: str,
    seed: int,
    settings: GenerationSettings,
    on_step: Callable[[int, torch.Tensor], None] | None = None,
) -> Sample:
    """One picture. The noise is drawn on the CPU: a seed gives the same noise on every device.

    Args:
        on_step: called after each denoising step with its number, from 0, and the current latents. An exception
            from it ends the picture.

    Raises:
        HSWQError: the latents are not finite; the picture would be black.
    """
    final: dict[str, torch.Tensor] = {}
    threads = _threads(pipeline, settings.size)

    def after_step(
        _pipeline: "DiffusionPipeline", step: int, _timestep: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        threads.adapt()
        final["latents"] = state["latents"]
        if on_step is not None:
            on_step(step, state["latents"])
        return {}

    start = time.perf_counter()
    with threads:
        image = pipeline(
            **settings.arguments([prompt]),
            generator=torch.Generator("cpu").manual_seed(seed),
            callback_on_step_end=after_step,
            output_type="np",
        ).images[0]
    seconds = time.perf_counter() - start
    latents = final["latents"][0].to("cpu", torch.float32)
    if not latents.isfinite().all():
        raise HSWQError(f"the picture of {prompt!r} came out as NaN or infinity; try --dtype bfloat16 or float32")
    pixels = (image * 255).round().astype(np.uint8)
    return Sample(latents, pixels, seconds)


def final_latents(
    pipeline: "DiffusionPipeline",
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: GenerationSettings,
    on_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """The final latents of `prompts` and `seeds`, made in one batch and not decoded: float32 on the CPU.

    `on_step`: called after each denoising step.
    """
    threads = _threads(pipeline, settings.size, len(prompts))

    def after_step(*_: object) -> dict[str, torch.Tensor]:
        threads.adapt()
        on_step()
        return {}

    with threads:
        latents: torch.Tensor = pipeline(
            **settings.arguments(prompts),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            callback_on_step_end=after_step,
            output_type="latent",
        ).images
    return latents.to("cpu", torch.float32)
