"""Measures quantized files against the original: same prompts, same noise, same run.

For every prompt and seed, the picture of each variant is compared with that of the original. Prompts of the calibration
are never used.

A file is measured with its weights expanded, as most readers compute it. Where ComfyUI on a GPU with FP8 arithmetic
rounds the inputs of its layers as well, it is measured so a second time; that is simulated to the bit, on any device.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import FormatError
from hswq_runtime.formats import Metadata, Reader, layer_of
from hswq_runtime.layers.matmul import set_fp8_matmul
from hswq_runtime.layers.modules import HSWQLinear
from hswq_runtime.text import shown

from ..common.files import write_atomically
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

ORIGINAL = "original"


@dataclass(frozen=True)
class PairResult:
    """One variant's picture of one prompt and seed against the original's. `psnr` None: they are equal."""

    prompt: str
    seed: int
    ssim: float
    psnr: float | None
    latent_mse: float
    seconds: float


@dataclass(frozen=True)
class VariantResult:
    """What was measured of one file. `pairs` is in the order of the protocol's pairs.

    file_bytes: on disk. weight_bytes: the denoiser in memory, see `Checkpoint.weight_bytes`. kept_layers: linear
    and convolution layers that are not FP8, of `layers`. fp8_layers: those that ComfyUI multiplies in FP8 where the
    hardware can. fp8_pairs: what comes of that; empty where there are none, and of figures from before it was measured.
    """

    label: str
    file: str
    file_bytes: int
    weight_bytes: int
    kept_layers: int
    layers: int
    pairs: list[PairResult]
    fp8_layers: int = 0
    fp8_pairs: list[PairResult] = field(default_factory=list)

    @property
    def in_fp8(self) -> "VariantResult | None":
        """The same file as ComfyUI computes it on a GPU with FP8 arithmetic; None if that is no different."""
        return replace(self, pairs=self.fp8_pairs, fp8_pairs=[]) if self.fp8_pairs else None

    @property
    def ssim_mean(self) -> float:
        return fmean(pair.ssim for pair in self.pairs)

    @property
    def ssim_worst(self) -> float:
        return min(pair.ssim for pair in self.pairs)

    @property
    def psnr_mean(self) -> float | None:
        """Mean in dB over the pairs that differ; None if none does."""
        values = [pair.psnr for pair in self.pairs if pair.psnr is not None]
        return fmean(values) if values else None

    @property
    def latent_mse_mean(self) -> float:
        return fmean(pair.latent_mse for pair in self.pairs)

    @property
    def seconds_mean(self) -> float:
        return fmean(pair.seconds for pair in self.pairs)


@dataclass(frozen=True)
class Evaluation:
    """All variants of one run, the original first, and the protocol they were measured by."""

    protocol: dict[str, Any]
    variants: list[VariantResult]
    images: dict[str, list[NDArray[np.uint8]]] = field(default_factory=dict, repr=False, compare=False)
    """Label -> pictures in the order of the pairs, uint8 [H, W, 3]. Not saved with the figures."""

    def variant(self, label: str) -> VariantResult | None:
        return next((v for v in self.variants if v.label == label), None)

    def save(self, path: Path) -> None:
        """Write the figures as JSON, with the means beside the pairs they are made of."""
        document = {"protocol": self.protocol, "variants": [self._as_dict(v) for v in self.variants]}
        write_atomically(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())

    @staticmethod
    def _as_dict(variant: VariantResult) -> dict[str, Any]:
        means = ("ssim_mean", "ssim_worst", "psnr_mean", "latent_mse_mean", "seconds_mean")
        fields = asdict(variant)
        pairs, fp8_pairs = fields.pop("pairs"), fields.pop("fp8_pairs")
        fields |= {name: getattr(variant, name) for name in means} | {"pairs": pairs}
        if rounded := variant.in_fp8:
            fields["fp8"] = {name: getattr(rounded, name) for name in means} | {"pairs": fp8_pairs}
        return fields

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """Read what :meth:`save` wrote; the means are computed anew from the pairs.

        Raises:
            FormatError: the file does not exist, or is something else.
        """
        if not path.exists():
            raise FormatError(f"{path} does not exist; make one with `hswq-hub evaluate`")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            return cls._from_dict(document)
        except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
            raise FormatError(f"{path} holds no figures of ours") from error

    @classmethod
    def _from_dict(cls, document: dict[str, Any]) -> "Evaluation":
        names = VariantResult.__dataclass_fields__
        variants = []
        for row in document["variants"]:
            pairs = {
                "pairs": [PairResult(**pair) for pair in row["pairs"]],
                "fp8_pairs": [PairResult(**pair) for pair in row.get("fp8", {}).get("pairs", [])],
            }
            variants.append(VariantResult(**{k: v for k, v in row.items() if k in names} | pairs))
        return cls(document["protocol"], variants)


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
        "dtype": str(dtype).removeprefix("torch."),
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
    variants = []
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
            made.make(pipeline, label)
            denoiser, rounded = getattr(pipeline, architecture.component), 0
            # A folded file has other inputs there than here, unfolded; with errors measured it is exact anyway.
            folded = Metadata.FOLD.value in checkpoint.metadata
            if not folded and set_fp8_matmul(denoiser, reader=Reader.COMFYUI):
                made.make(pipeline, label, in_fp8=True)
                rounded = _rounded(checkpoint, denoiser)
                set_fp8_matmul(denoiser, False)
            made.finished[label] = rounded
        variant = _result(label, checkpoint, made.compared(label))
        if (label, True) in made.samples:
            rounded_pairs = made.compared(label, in_fp8=True)
            variant = replace(variant, fp8_layers=made.finished[label], fp8_pairs=rounded_pairs)
        variants.append(variant)
    assert made.generation is not None, "the original is always measured"
    return Evaluation(
        protocol | {"generation": asdict(made.generation)},
        variants,
        images={variant.label: [sample.image for sample in made.samples[variant.label, False]] for variant in variants},
    )


class _Pictures:
    """The pictures of the pairs by what makes them: the label of a file, and whether that multiplies in FP8. What an
    earlier run kept is among them.

    generation: how they are made. finished: of each label that is done, how many layers multiply in FP8.
    """

    def __init__(self, pairs: list[tuple[str, int]], pieces: Pieces, *facts: object):
        self._pairs, self._pieces = pairs, pieces
        state = pieces.begin(pairs, *facts)
        self.generation = None if state is None else GenerationSettings(**state["generation"])
        self.finished: dict[str, int] = {} if state is None else state["finished"]
        self.samples: dict[tuple[str, bool], list[Sample]] = {}
        for label, in_fp8, latents, image, seconds in pieces.found():
            self.samples.setdefault((label, in_fp8), []).append(Sample(latents, image.numpy(), seconds))

    def make(self, pipeline: Any, label: str, *, in_fp8: bool = False) -> None:
        """Make those that are not there yet."""
        assert self.generation is not None, "it is decided with the pipeline"
        samples, count = self.samples.setdefault((label, in_fp8), []), len(self._pairs)
        todo, name = self._pairs[len(samples) :], f"{label} in FP8" if in_fp8 else label
        for prompt, seed in progress(todo, total=count, initial=len(samples), desc=f"measure {name}", unit="picture"):
            sample = generate(pipeline, prompt, seed, self.generation)
            samples.append(sample)
            self._pieces.add([label, in_fp8, sample.latents, torch.from_numpy(sample.image), sample.seconds])
            done = f"{len(samples)} of {count} pictures of {shown(name)}"
            self._pieces.keep(done, partial(dict, generation=asdict(self.generation), finished=self.finished))

    def compared(self, label: str, *, in_fp8: bool = False) -> list[PairResult]:
        """The pictures against those of the original."""
        both = zip(self._pairs, self.samples[ORIGINAL, False], self.samples[label, in_fp8], strict=True)
        return [compare_samples(prompt, seed, original, sample) for (prompt, seed), original, sample in both]


def label_files(files: Sequence[Path]) -> dict[str, Path]:
    """Each file under its name without suffix, or under its whole path where several share that."""
    stems = [file.stem for file in files]
    return {file.stem if stems.count(file.stem) == 1 and file.stem != ORIGINAL else str(file): file for file in files}


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


def compare_samples(prompt: str, seed: int, original: Sample, sample: Sample) -> PairResult:
    """The error of `sample` against the original's sample of the same prompt and noise."""
    return PairResult(
        prompt=prompt,
        seed=seed,
        ssim=metrics.ssim(original.image, sample.image),
        psnr=metrics.psnr(original.image, sample.image),
        latent_mse=metrics.latent_mse(original.latents, sample.latents),
        seconds=sample.seconds,
    )
