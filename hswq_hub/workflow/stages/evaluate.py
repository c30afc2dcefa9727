"""The stage `evaluate`: one step, every file measured against the original."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ...common.identity import environment_fingerprint
from ...evaluation.evaluate import evaluate
from ...evaluation.examples import save_evaluation
from ...settings import EvaluationSettings
from ...sources.components import base_identity
from ...sources.source import Source
from ..steps import Step, Work

STAGE = "evaluate"
ROOMS = ("hswq_hub.generation", "hswq_hub.evaluation", __name__)
"""The code that decides the product."""


def evaluation_step(place: Path, source: Source, files: Mapping[str, Step], settings: EvaluationSettings) -> Step:
    """Measure the file of each of `files` (label -> the step that wrote it) against the source."""
    made_from = [
        environment_fingerprint(settings.device, *ROOMS),
        asdict(settings),
        source.prompts.evaluation,
        source.negative_prompt(settings.guidance),
        base_identity(source),
        [*files],
    ]

    def make(product: Path) -> None:
        paths = {label: next(step.folder.glob("*.safetensors")) for label, step in files.items()}
        save_evaluation(evaluate(source, paths, settings), product)

    def work() -> Work:
        pictures = (1 + len(files)) * settings.pairs
        calls = pictures * (settings.steps or source.architecture.steps) * source.architecture.passes(settings.guidance)
        moved = (1 + len(files)) * source.path.stat().st_size
        weights = sum(source.checkpoint.tensors[key].values for key in source.checkpoint.layers)
        expanded = calls * len(files) / (1 + len(files)) * weights
        return Work(calls, settings.device, settings.size, pictures=pictures, values=expanded, moved=moved)

    return Step(STAGE, STAGE, place, made_from, make, tuple(files.values()), work)
