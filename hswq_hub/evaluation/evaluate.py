"""Measures quantized files against the original: same prompts, same noise, same run.

For every prompt and seed, the picture of each variant is compared with that of the original. Prompts of the calibration
are never used. The last one is the original itself with its denoiser in another dtype: the noise floor.

A file is measured with its weights expanded, as most readers compute it. Where ComfyUI on a GPU with FP8 arithmetic
rounds the inputs of its layers as well, it is measured so a second time; that is simulated to the bit, on any device.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.formats import Metadata, Reader, layer_of
from hswq_runtime.layers.matmul import set_fp8_matmul
from hswq_runtime.layers.modules import HSWQLinear

from ..common.hardware import describe, pick_device, pick_dtype
from ..common.identity import versions
from ..common.progress import progress
from ..generation import metrics
from ..generation.generate import GenerationSettings, Sample, generate
from ..generation.pipelines import SharedPipeline
from ..settings import EvaluationSettings
from ..sources.source import Source
from . import perceptual
from .noise import computing_in, other_dtype
from .results import ORIGINAL, Evaluation, NoiseFloor, PairResult, VariantResult


def evaluate(
    source: Source,
    files: dict[str, Path],
    settings: EvaluationSettings | None = None,
    device_memory: float | None = None,
) -> Evaluation:
    """Measure each of `files` (label -> file) against the source.

    Pair i has the i-th evaluation prompt (the list starts over when it ends) and the seed `seed + i`. One
    denoiser is in memory at a time; the other components are loaded once. `device_memory`: GB of the device that they
    may take; None: most of what is free.

    Raises:
        MetricError: a perceptual metric is asked for that cannot be measured here.
        DeviceError: CUDA asked for and absent, or not even a block of the model fits into its memory.
        FormatError: a file does not fit.
        ComponentError: the base lacks a component.
        HSWQError: a picture is not finite.
    """
    settings = settings or EvaluationSettings()
    if ORIGINAL in files:
        raise ValueError(f"{ORIGINAL!r} is the source's own label")
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    source.check_components()
    architecture = source.architecture
    prompts = source.prompts.evaluation
    pairs = [(prompts[i % len(prompts)], settings.seed + i) for i in range(settings.pairs)]
    shared = SharedPipeline(architecture, source.base, device, dtype, settings.size, device_memory)
    samples: dict[str, list[Sample]] = {}
    variants, names = list[VariantResult](), tuple[str, ...]()
    for label, path in {ORIGINAL: source.path, **files}.items():
        checkpoint = Checkpoint(path, stated=source.checkpoint.stated)
        pipeline = shared.pipeline_for(checkpoint)
        generation = GenerationSettings.of(
            architecture,
            pipeline.vae.config,
            steps=settings.steps,
            guidance=settings.guidance,
            size=settings.size,
            negative_prompt=source.negative_prompt(settings.guidance),
        )
        names = perceptual.chosen(settings.perceptual, generation.size)
        made = samples[label] = _pictures(pipeline, pairs, generation, label)
        originals = samples[ORIGINAL]
        variant = _result(label, checkpoint, _compared(pairs, originals, made, names))
        denoiser = getattr(pipeline, architecture.component)
        # A folded file computes with other inputs there than here, unfolded; with errors measured it is exact anyway.
        folded = Metadata.FOLD.value in checkpoint.metadata
        if not folded and set_fp8_matmul(denoiser, reader=Reader.COMFYUI):
            made, rounded = _pictures(pipeline, pairs, generation, f"{label} in FP8"), _rounded(checkpoint, denoiser)
            variant = replace(variant, fp8_layers=rounded, fp8_pairs=_compared(pairs, originals, made, names))
            set_fp8_matmul(denoiser, False)
        variants.append(variant)
    floor = None
    if settings.noise_floor:
        other = other_dtype(dtype)
        pipeline = shared.pipeline_for(source.checkpoint, other)
        with computing_in(getattr(pipeline, architecture.component), other, dtype):
            made = _pictures(pipeline, pairs, generation, f"{ORIGINAL} in {_name(other)}")
        floor = NoiseFloor(_compared(pairs, samples[ORIGINAL], made, names), _name(other), _name(dtype))
    return Evaluation(
        protocol={
            "settings": asdict(settings),
            "generation": asdict(generation),
            "dtype": _name(dtype),
            "hardware": describe(device),
            "versions": versions(),
            "ssim": "Gaussian window 11x11, sigma 1.5, data range 255, decoded 8-bit pixels, float arithmetic",
            "perceptual": perceptual.described(names),
        },
        variants=variants,
        images={label: [sample.image for sample in made] for label, made in samples.items()},
        noise_floor=floor,
    )


def label_files(files: Sequence[Path]) -> dict[str, Path]:
    """Each file under its name without suffix, or under its whole path where several share that."""
    stems = [file.stem for file in files]
    return {file.stem if stems.count(file.stem) == 1 and file.stem != ORIGINAL else str(file): file for file in files}


def _pictures(pipeline: Any, pairs: list[tuple[str, int]], generation: GenerationSettings, label: str) -> list[Sample]:
    return [
        generate(pipeline, prompt, seed, generation)
        for prompt, seed in progress(pairs, desc=f"measure {label}", unit="picture")
    ]


def _compared(
    pairs: list[tuple[str, int]], originals: list[Sample], samples: list[Sample], names: Sequence[str]
) -> list[PairResult]:
    """Several pairs at a time, but for metrics that take all cores for one pair."""
    together = [name for name in names if perceptual.METRICS[name].shares_cores]

    def compare(pair: tuple[str, int], original: Sample, sample: Sample) -> PairResult:
        return compare_samples(*pair, original, sample, together)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(compare, pairs, originals, samples))
    alone = [name for name in names if name not in together]
    for i, (original, sample) in enumerate(zip(originals, samples, strict=True)):
        seen = perceptual.measure(alone, original.image, sample.image) | found[i].perceptual
        found[i] = replace(found[i], perceptual={name: seen[name] for name in names})
    return found


def _rounded(checkpoint: Checkpoint, denoiser: torch.nn.Module) -> int:
    """How many of the file's layers multiply in FP8."""
    fast = {name for name, m in denoiser.named_modules() if isinstance(m, HSWQLinear) and m.fp8_matmul}
    return sum(any(layer_of(name) in fast for name in checkpoint.modules[key]) for key in checkpoint.quantized)


def _result(label: str, checkpoint: Checkpoint, pairs: list[PairResult]) -> VariantResult:
    return VariantResult(
        label=label,
        file=checkpoint.path.name,
        file_bytes=checkpoint.path.stat().st_size,
        weight_bytes=checkpoint.weight_bytes,
        kept_layers=sum(not checkpoint.held_as_fp8(key) for key in checkpoint.layers),
        layers=len(checkpoint.layers),
        pairs=pairs,
    )


def compare_samples(prompt: str, seed: int, original: Sample, sample: Sample, names: Sequence[str] = ()) -> PairResult:
    """The error of `sample` against the original's sample of the same prompt and noise. names: of perceptual metrics
    that are measured as well."""
    return PairResult(
        prompt=prompt,
        seed=seed,
        ssim=metrics.ssim(original.image, sample.image),
        psnr=metrics.psnr(original.image, sample.image),
        latent_mse=metrics.latent_mse(original.latents, sample.latents),
        seconds=sample.seconds,
        perceptual=perceptual.measure(names, original.image, sample.image),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
