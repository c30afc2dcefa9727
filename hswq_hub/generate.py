"""Make one picture from one prompt and one seed: what calibration, evaluation and the demo page all do."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hswq_runtime.checkpoint import Checkpoint
from hswq_runtime.pipeline import assemble_pipeline


@dataclass(frozen=True)
class GenerationSettings:
    """`steps` denoising steps, guidance scale, and the side of the square picture in pixels."""

    steps: int
    guidance: float
    size: int


@dataclass(frozen=True)
class Sample:
    """A generated picture.

    latents: float32 [C, h, w], on the CPU. image: uint8 [H, W, 3]. seconds: from prompt to picture.
    """

    latents: torch.Tensor
    image: np.ndarray
    seconds: float


def open_pipeline(checkpoint: Checkpoint, denoiser: torch.nn.Module, base: str, device: torch.device):
    """The diffusers pipeline around `denoiser`, on `device`, without progress bars of its own."""
    pipeline = assemble_pipeline(checkpoint, denoiser, base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def default_settings(pipeline, checkpoint: Checkpoint, steps: int | None = None) -> GenerationSettings:
    """The architecture's defaults, at the picture size that the VAE was made for if that is smaller."""
    row = checkpoint.architecture
    return GenerationSettings(
        steps=steps or row.steps, guidance=row.guidance, size=min(row.size, pipeline.vae.config.sample_size)
    )


def generate(
    pipeline, prompt: str, seed: int, settings: GenerationSettings, on_step: Callable[[int], None] | None = None
) -> Sample:
    """One picture. The noise is drawn on the CPU, so a seed means the same noise on every device.

    `on_step` is called with the number of each finished denoising step, from 0.
    """
    final = {}

    def after_step(_pipeline, step, _timestep, state):
        final["latents"] = state["latents"]
        if on_step is not None:
            on_step(step)
        return {}

    start = time.perf_counter()
    image = pipeline(
        prompt=[prompt],
        height=settings.size,
        width=settings.size,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        generator=torch.Generator("cpu").manual_seed(seed),
        callback_on_step_end=after_step,
        output_type="np",
    ).images[0]
    seconds = time.perf_counter() - start
    pixels = (image * 255).round().astype(np.uint8)
    return Sample(final["latents"][0].to("cpu", torch.float32), pixels, seconds)
