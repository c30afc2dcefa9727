"""Make one picture from one prompt and one seed: what calibration, evaluation and the demo page all do."""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from hswq_runtime.architectures import Architecture
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import HSWQError
from hswq_runtime.pipeline import assemble_pipeline


@dataclass(frozen=True)
class GenerationSettings:
    """`steps` denoising steps, guidance scale, and the side of the square picture in pixels.

    guidance_argument: what the pipeline calls the scale. negative_prompt: None for the pipeline's own. call: further
    arguments of its call.
    """

    steps: int
    guidance: float
    size: int
    guidance_argument: str = "guidance_scale"
    negative_prompt: str | None = None
    call: dict[str, object] = field(default_factory=dict)

    def arguments(self, prompts: Sequence[str]) -> dict:
        """Arguments of the pipeline's call for a batch of `prompts`."""
        negative = {} if self.negative_prompt is None else {"negative_prompt": [self.negative_prompt] * len(prompts)}
        return {
            "prompt": list(prompts),
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
    image: np.ndarray
    seconds: float


def open_pipeline(checkpoint: Checkpoint, denoiser: torch.nn.Module, base: str, device: torch.device):
    """The diffusers pipeline of `checkpoint` around `denoiser`, on `device`, without progress bars of its own."""
    pipeline = assemble_pipeline(checkpoint, denoiser, base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def takes_negative(pipeline) -> bool:
    """Whether the pipeline has a use for a negative prompt."""
    return "negative_prompt" in inspect.signature(type(pipeline).__call__).parameters


def generation_settings(
    pipeline,
    architecture: Architecture,
    steps: int | None = None,
    guidance: float | None = None,
    size: int | None = None,
) -> GenerationSettings:
    """What is given, and the architecture's defaults for the rest."""
    return GenerationSettings(
        steps=steps or architecture.steps,
        guidance=architecture.guidance if guidance is None else guidance,
        size=size or default_size(architecture, pipeline.vae.config),
        guidance_argument=architecture.guidance_argument,
        negative_prompt=architecture.negative_prompt,
        call=dict(architecture.call),
    )


def default_size(architecture: Architecture, vae_config: Mapping) -> int:
    """Pixels a side: the architecture's, or what the VAE's configuration says it was made for, if that is smaller."""
    return min(architecture.size, vae_config.get("sample_size", architecture.size))


def generate(
    pipeline,
    prompt: str,
    seed: int,
    settings: GenerationSettings,
    on_step: Callable[[int, torch.Tensor], None] | None = None,
    negative: str | None = None,
) -> Sample:
    """One picture. The noise is drawn on the CPU, so a seed means the same noise on every device.

    Args:
        on_step: called after each denoising step with its number, from 0, and the latents as they are then; what it
            raises ends the picture.
        negative: what the picture should not show, for pipelines that :func:`takes_negative`.

    Raises:
        HSWQError: the latents are not finite; a black picture would pass for a result otherwise.
    """
    final = {}

    def after_step(_pipeline, step, _timestep, state):
        final["latents"] = state["latents"]
        if on_step is not None:
            on_step(step, state["latents"])
        return {}

    start = time.perf_counter()
    image = pipeline(
        **settings.arguments([prompt]) | ({} if negative is None else {"negative_prompt": [negative]}),
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


def final_latents(pipeline, prompts: Sequence[str], seeds: Sequence[int], settings: GenerationSettings) -> torch.Tensor:
    """The latents that `prompts` and `seeds` end in, made in one batch and not decoded: float32 on the CPU."""
    return pipeline(
        **settings.arguments(prompts),
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="latent",
    ).images.to("cpu", torch.float32)
