"""The stage `evaluate`: one step, every file measured against the original."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from ...common.identity import environment_fingerprint
from ...common.pieces import Pieces
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
        source.prompts.evaluation,
        source.negative_prompt(settings.guidance),
        base_identity(source),
        [*files],
    ]

    def make(product: Path, pieces: Pieces) -> None:
        paths = {label: next(step.folder.glob("*.safetensors")) for label, step in files.items()}
        save_evaluation(evaluate(source, paths, settings, device_memory, pieces), product)

    def work() -> Work:
        runs = 1 + 2 * len(files)  # of a file with exact products, and in FP8
        pictures = runs * settings.pairs
        calls = pictures * (settings.steps or source.architecture.steps) * source.architecture.passes(settings.guidance)
        moved = (1 + len(files)) * source.path.stat().st_size
        weights = sum(source.checkpoint.tensors[key].values for key in source.checkpoint.layers)
        expanded = calls * (runs - 1) / runs * weights
        memory = usable_memory(torch.device(settings.device), device_memory)
        whole = sizes_of(source, settings.dtype, settings.size)
        quantized = [whole.with_denoiser(min(step.work().kept, whole.denoiser)) for step in files.values()]
        of_files = [whole, *quantized, *quantized]
        each = calls // runs
        streamed = sum(s.streamed(s.placement(memory), each, settings.pairs, decoded=True) for s in of_files)
        return Work(
            calls,
            settings.device,
            settings.size,
            pictures=pictures,
            values=expanded,
            moved=moved,
            streamed=streamed,
        )

    return Step(STAGE, STAGE, place, made_from, make, tuple(files.values()), work)
