"""The stage `evaluate`: one step, every file measured against the original."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from ...common.identity import environment_fingerprint
from ...common.pieces import Pieces
from ...evaluation import perceptual
from ...evaluation.evaluate import evaluate
from ...evaluation.examples import save_evaluation
from ...generation.placement import usable_memory
from ...settings import EvaluationSettings
from ...sources.components import base_identity
from ...sources.source import Source
from ..forecast import sizes_of
from ..steps import Step, Work

STAGE = "evaluate"
ROOMS = ("hswq_hub.generation", "hswq_hub.evaluation", __name__)
"""The code that decides the product."""
_WIDER = 2
"""Of the noise floor in float32, next to 16 bits: the bytes of the weights, and the time of a product in TF32."""


def evaluation_step(
    place: Path,
    source: Source,
    files: Mapping[str, Step],
    settings: EvaluationSettings,
    device_memory: float | None = None,
) -> Step:
    """Measure the file of each of `files` (label -> the step that wrote it) against the source. device_memory: see
    `PublishSettings`; it changes no bit."""
    made_from = [
        environment_fingerprint(settings.device, *ROOMS),
        asdict(settings),
        perceptual.described(settings.perceptual or ()),
        source.prompts.evaluation,
        source.negative_prompt(settings.guidance),
        base_identity(source),
        [*files],
    ]

    def make(product: Path, pieces: Pieces) -> None:
        paths = {label: next(step.folder.glob("*.safetensors")) for label, step in files.items()}
        save_evaluation(evaluate(source, paths, settings, device_memory, pieces), product)

    def work() -> Work:
        each = (
            settings.pairs
            * (settings.steps or source.architecture.steps)
            * source.architecture.passes(settings.guidance)
        )
        of_files = 2 * len(files)  # with exact products, and in FP8
        wider = settings.noise_floor and settings.dtype != "float32"
        floor = settings.noise_floor * (_WIDER if wider else 1)
        weights = sum(source.checkpoint.tensors[key].values for key in source.checkpoint.layers)
        memory = usable_memory(torch.device(settings.device), device_memory)
        whole = sizes_of(source, settings.dtype, settings.size)
        quantized = [whole.with_denoiser(min(step.work().kept, whole.denoiser)) for step in files.values()]
        sets = [whole, *quantized, *quantized]
        sets += [whole.with_denoiser((_WIDER if wider else 1) * whole.denoiser)] * settings.noise_floor
        return Work(
            (1 + of_files + floor) * each,
            settings.device,
            settings.size,
            pictures=len(sets) * settings.pairs,
            values=of_files * each * weights,
            moved=(1 + len(files) + settings.noise_floor) * source.path.stat().st_size,
            streamed=sum(s.streamed(s.placement(memory), each, settings.pairs, decoded=True) for s in sets),
        )

    return Step(STAGE, STAGE, place, made_from, make, tuple(files.values()), work)
