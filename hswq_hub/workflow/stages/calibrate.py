"""The stage `calibrate`: one step, the statistics of every layer."""

from dataclasses import asdict
from pathlib import Path

import torch

from ...calibration.calibrate import calibrate, steps_made
from ...common.identity import environment_fingerprint
from ...common.pieces import Pieces
from ...generation.placement import usable_memory
from ...settings import CalibrationSettings
from ...sources.components import base_identity
from ...sources.source import Source
from ..forecast import cost_of, sizes_of, usual_size
from ..steps import Step, Work

STAGE = "calibrate"
STATISTICS = "calibration.safetensors"
ROOMS = ("hswq_hub.generation", "hswq_hub.calibration", __name__)
"""The code that decides the product."""
_LAUNCHES = 10
"""Small operations that the statistics of one layer take in one call."""


def calibration_step(
    place: Path, source: Source, settings: CalibrationSettings, device_memory: float | None = None
) -> Step:
    """Gather the statistics. The product holds `STATISTICS`, and the same without the vectors as JSON. device_memory:
    see `PublishSettings`; it changes no bit."""
    made_from = [
        environment_fingerprint(settings.device, *ROOMS),
        asdict(settings),
        source.prompts.calibration,
        source.negative_prompt(settings.guidance),
        base_identity(source),
    ]

    def make(product: Path, pieces: Pieces) -> None:
        calibrate(source, settings, device_memory, pieces).save(product / STATISTICS)

    def work() -> Work:
        steps = sum(steps_made(settings, source.architecture.steps))
        calls = steps * source.architecture.passes(settings.guidance)
        launches = calls * sum(map(len, source.checkpoint.modules.values())) * _LAUNCHES
        moved = source.path.stat().st_size
        seen = [source.checkpoint.tensors[key] for key in source.checkpoint.layers]
        values = sum(info.shape[0] + info.values // info.shape[0] for info in seen)  # inputs and outputs of a token
        tokens = cost_of(source, settings.size or usual_size(source)).tokens
        sizes = sizes_of(source, settings.dtype, settings.size)
        placement = sizes.placement(usable_memory(torch.device(settings.device), device_memory))
        return Work(
            calls,
            settings.device,
            settings.size,
            launches=launches,
            values=calls * tokens * values,
            moved=moved,
            streamed=sizes.streamed(placement, calls, settings.samples, decoded=False),
        )

    return Step(STAGE, STAGE, place, made_from, make, work=work)
