"""Measures the error that each weight makes: the change of the final latents when it alone is quantized.

Pictures use the calibration's prompts and seeds of their own, never those of the evaluation. They are generated in one
batch, once with the original and once for each weight.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.layers.fp8 import dequantize
from hswq_runtime.loading import load_model

from ..common.hardware import pick_device, pick_dtype
from ..common.progress import progress
from ..generation.generate import GenerationSettings, final_latents, open_pipeline
from ..generation.metrics import latent_mse
from ..settings import CalibrationSettings, ErrorSettings
from ..sources.source import Source
from .fold import moved
from .plan import Decision, Plan


def measure_errors(
    source: Source,
    plan: Plan,
    codes: Callable[[Decision], tuple[torch.Tensor, torch.Tensor]],
    calibration: CalibrationSettings,
    settings: ErrorSettings,
) -> dict[str, float]:
    """Latent MSE against the original, by key, with one weight of `plan` quantized at a time.

    `codes`: decision -> FP8 codes and scale, see `writer.codes_of`. `calibration`: device, dtype, seed, guidance and
    size. The number of denoising steps is that of `settings`, or else of the calibration, or else the model's default.
    """
    device = pick_device(calibration.device)
    dtype = pick_dtype(calibration.dtype, device)
    checkpoint = source.checkpoint
    denoiser = load_model(checkpoint, dtype, device=device)
    pipeline = open_pipeline(checkpoint, denoiser, source.base, device)
    generation = GenerationSettings.of(
        source.architecture,
        pipeline.vae.config,
        steps=settings.steps or calibration.steps,
        guidance=calibration.guidance,
        size=calibration.size,
        negative_prompt=source.negative_prompt(calibration.guidance),
    )
    prompts = [source.prompts.calibration[i % len(source.prompts.calibration)] for i in range(settings.samples)]
    seeds = [calibration.seed + settings.seed_offset + i for i in range(settings.samples)]
    reference = final_latents(pipeline, prompts, seeds, generation)
    errors = {}
    for decision in progress(plan.quantized, desc=f"error {plan.format.value}", unit="layer"):
        weight, scale = codes(decision)
        values = moved(dequantize(weight, scale if plan.format.scaled else None, dtype), decision.fold, back=True)
        with exchanged(denoiser, checkpoint, decision.key, values):
            errors[decision.key] = latent_mse(reference, final_latents(pipeline, prompts, seeds, generation))
    return errors


@contextmanager
def exchanged(denoiser: torch.nn.Module, checkpoint: Checkpoint, key: str, values: torch.Tensor) -> Iterator[None]:
    """While open, `denoiser` computes with `values` in place of the stored tensor `key`, in all its modules."""
    places = []
    for name in checkpoint.modules[key]:
        parameter, row = denoiser.get_parameter(name), 0
        for piece in checkpoint.parameters[name]:
            rows = piece.stop - piece.start
            if piece.key == key:
                places.append((parameter.data[row : row + rows], values[piece.start : piece.stop]))
            row += rows
    before = [target.clone() for target, _ in places]
    try:
        for target, wanted in places:
            target.copy_(wanted)
        yield
    finally:
        for (target, _), original in zip(places, before, strict=True):
            target.copy_(original)
