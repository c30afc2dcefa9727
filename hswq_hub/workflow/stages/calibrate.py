"""The stage `calibrate`: one step, the statistics of every layer."""

from dataclasses import asdict
from pathlib import Path

from ...calibration.calibrate import calibrate
from ...common.identity import environment_fingerprint
from ...settings import CalibrationSettings
from ...sources.components import base_identity
from ...sources.source import Source
from ..steps import Step, Work

STAGE = "calibrate"
STATISTICS = "calibration.safetensors"
ROOMS = ("hswq_hub.generation", "hswq_hub.calibration", __name__)
"""The code that decides the product."""


def calibration_step(place: Path, source: Source, settings: CalibrationSettings) -> Step:
    """Gather the statistics. The product holds `STATISTICS`, and the same without the vectors as JSON."""
    made_from = [
        environment_fingerprint(settings.device, *ROOMS),
        asdict(settings),
        source.prompts.calibration,
        base_identity(source),
    ]

    def make(product: Path) -> None:
        calibrate(source, settings).save(product / STATISTICS)

    def work() -> Work:
        return Work(settings.samples * settings.steps_of(source.architecture.steps), settings.device, settings.size)

    return Step(STAGE, STAGE, place, made_from, make, work=work)
