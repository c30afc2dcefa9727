"""Measures quantized files against the original: same prompts, same noise, same run.

For every prompt and seed, the picture of each variant is compared with that of the original. Prompts of the calibration
are never used. The last one is the original itself with its denoiser in another dtype: the noise floor.

A file is measured with its weights expanded, as most readers compute it. Where ComfyUI on a GPU with FP8 or INT8
arithmetic rounds the inputs of its layers as well, it is measured so a second time; that is simulated to the bit, on
any device.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.formats import Metadata, Reader, layer_of
from hswq_runtime.layers.matmul import set_quantized_matmul
from hswq_runtime.layers.modules import HSWQLinear
from hswq_runtime.text import shown

from ..common.hardware import describe, pick_device, pick_dtype
from ..common.identity import versions
from ..common.pieces import Pieces
from ..common.progress import progress
from ..generation import metrics
from ..generation.generate import GenerationSettings, Sample, generate
from ..generation.pipelines import SharedPipeline
from ..settings import EvaluationSettings
from ..sources.components import base_identity
from ..sources.source import Source
from . import perceptual
from .noise import computing_in, other_dtype
from .results import ORIGINAL, Evaluation, NoiseFloor, PairResult, VariantResult


def evaluate(
    source: Source,
    files: dict[str, Path],
    settings: EvaluationSettings | None = None,
    device_memory: float | None = None,
    pieces: Pieces | None = None,
) -> Evaluation:
    """Measure each of `files` (label -> file) against the source.

    Pair i has the i-th evaluation prompt (the list starts over when it ends) and the seed `seed + i`. One
    denoiser is in memory at a time; the other components are loaded once. `device_memory`: GB of the device that they
    may take; None: most of what is free. `pieces`: where finished pictures are kept, and found; None: nowhere.

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
    architecture, negative = source.architecture, source.negative_prompt(settings.guidance)
    prompts = source.prompts.evaluation
    pairs = [(prompts[i % len(prompts)], settings.seed + i) for i in range(settings.pairs)]
    shared = SharedPipeline(architecture, source.base, device, dtype, settings.size, device_memory)
    protocol = {
        "settings": asdict(settings),
        "dtype": _name(dtype),
        "hardware": describe(device),
        "versions": versions(),
        "ssim": "Gaussian window 11x11, sigma 1.5, data range 255, decoded 8-bit pixels, float arithmetic",
    }
    measured = [[label, path.stat().st_size, path.stat().st_mtime_ns] for label, path in files.items()]
    made = _Pictures(
        pairs,
        pieces or Pieces(),
        protocol,
        negative,
        source.sha256,
        source.checkpoint.config,
        base_identity(source),
        measured,
    )
    variants, names = list[VariantResult](), tuple[str, ...]()
    for label, path in {ORIGINAL: source.path, **files}.items():
        checkpoint = Checkpoint(path, stated=source.checkpoint.stated)
        if label not in made.finished:
            pipeline = shared.pipeline_for(checkpoint)
            made.generation = GenerationSettings.of(
                architecture,
                pipeline.vae.config,
                steps=settings.steps,
                guidance=settings.guidance,
                size=settings.size,
                negative_prompt=negative,
            )
            names = perceptual.chosen(settings.perceptual, made.size)  # one that is missing is told before any picture
            made.make(pipeline, label)
            denoiser, rounded, arithmetic = getattr(pipeline, architecture.component), 0, ""
            # A folded file has other inputs there than here, unfolded; with errors measured it is exact anyway.
            folded = Metadata.FOLD.value in checkpoint.metadata
            if not folded and set_quantized_matmul(denoiser, reader=Reader.COMFYUI):
                rounded, arithmetic = _rounded(checkpoint, denoiser), _arithmetic(denoiser)
                made.make(pipeline, label, arithmetic)
                set_quantized_matmul(denoiser, False)
            made.finished[label] = [rounded, arithmetic]
        names = perceptual.chosen(settings.perceptual, made.size)
        variant, (rounded, arithmetic) = _result(label, checkpoint, made.compared(label, names)), made.finished[label]
        if rounded:
            rows = made.compared(label, names, arithmetic)
            variant = replace(variant, rounded_layers=rounded, rounded_pairs=rows, arithmetic=arithmetic)
        variants.append(variant)
    floor = None
    if settings.noise_floor:
        other = other_dtype(dtype)
        if not made.are_there(ORIGINAL, _name(other)):
            pipeline = shared.pipeline_for(source.checkpoint, other)
            with computing_in(getattr(pipeline, architecture.component), other, dtype):
                made.make(pipeline, ORIGINAL, _name(other))
        floor = NoiseFloor(made.compared(ORIGINAL, names, _name(other)), _name(other), _name(dtype))
    return Evaluation(
        protocol | {"generation": asdict(made.settings), "perceptual": perceptual.described(names)},
        variants,
        images={label: [sample.image for sample in made.samples[label, ""]] for label in (ORIGINAL, *files)},
        noise_floor=floor,
    )


class _Pictures:
    """The pictures of the pairs by what makes them: the label of a file, and the arithmetic or dtype that it is
    computed in for once, or "". What an earlier run kept is among them.

    generation: how they are made. finished: of each label that is done, how many layers multiply with rounded inputs,
    and in which arithmetic.
    """

    def __init__(self, pairs: list[tuple[str, int]], pieces: Pieces, *facts: object):
        self._pairs, self._pieces = pairs, pieces
        state = pieces.begin(pairs, *facts)
        self.generation = None if state is None else GenerationSettings(**state["generation"])
        self.finished: dict[str, Any] = {} if state is None else state["finished"]
        self.samples: dict[tuple[str, str], list[Sample]] = {}
        for label, how, latents, image, seconds in pieces.found():
            self.samples.setdefault((label, how), []).append(Sample(latents, image.numpy(), seconds))

    @property
    def settings(self) -> GenerationSettings:
        assert self.generation is not None, "it is decided with the original's pipeline"
        return self.generation

    @property
    def size(self) -> int:
        """Pixels a side."""
        return self.settings.size

    def are_there(self, label: str, how: str) -> bool:
        """Whether all of them are made."""
        return len(self.samples.get((label, how), ())) == len(self._pairs)

    def make(self, pipeline: Any, label: str, how: str = "") -> None:
        """Make those that are not there yet."""
        samples, count = self.samples.setdefault((label, how), []), len(self._pairs)
        todo, name = self._pairs[len(samples) :], f"{label} in {how}" if how else label
        for prompt, seed in progress(todo, total=count, initial=len(samples), desc=f"measure {name}", unit="picture"):
            sample = generate(pipeline, prompt, seed, self.settings)
            samples.append(sample)
            self._pieces.add([label, how, sample.latents, torch.from_numpy(sample.image), sample.seconds])
            done = f"{len(samples)} of {count} pictures of {shown(name)}"
            self._pieces.keep(done, partial(dict, generation=asdict(self.settings), finished=self.finished))

    def compared(self, label: str, names: Sequence[str], how: str = "") -> list[PairResult]:
        """The pictures against those of the original. names: of perceptual metrics."""
        return compare_pairs(self._pairs, self.samples[ORIGINAL, ""], self.samples[label, how], names)


def label_files(files: Sequence[Path]) -> dict[str, Path]:
    """Each file under its name without suffix, or under its whole path where several share that."""
    stems = [file.stem for file in files]
    return {file.stem if stems.count(file.stem) == 1 and file.stem != ORIGINAL else str(file): file for file in files}


def _arithmetic(denoiser: torch.nn.Module) -> str:
    """What its layers multiply in: FP8, INT8, or both."""
    fast = {m.number.name for m in denoiser.modules() if isinstance(m, HSWQLinear) and m.quantized_matmul}
    return " and ".join(sorted(fast))


def _rounded(checkpoint: Checkpoint, denoiser: torch.nn.Module) -> int:
    """How many of the file's layers multiply with rounded inputs."""
    fast = {name for name, m in denoiser.named_modules() if isinstance(m, HSWQLinear) and m.quantized_matmul}
    return sum(any(layer_of(name) in fast for name in checkpoint.modules[key]) for key in checkpoint.quantized)


def _result(label: str, checkpoint: Checkpoint, pairs: list[PairResult]) -> VariantResult:
    return VariantResult(
        label=label,
        file=checkpoint.path.name,
        file_bytes=checkpoint.path.stat().st_size,
        weight_bytes=checkpoint.weight_bytes,
        kept_layers=sum(not checkpoint.held_quantized(key) for key in checkpoint.layers),
        layers=len(checkpoint.layers),
        pairs=pairs,
    )


def compare_pairs(
    pairs: Sequence[tuple[str, int]], originals: Sequence[Sample], samples: Sequence[Sample], names: Sequence[str]
) -> list[PairResult]:
    """The errors of `samples` against `originals`, of prompts and seeds: several pairs at a time, but for metrics that
    take all cores for one. names: of perceptual metrics."""
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
