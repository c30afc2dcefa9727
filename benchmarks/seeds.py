"""Benchmarks of several seeds: their options, and what a seed decides.

Each seed calibrates with pictures and measures on noise of its own.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hswq_hub.settings import CalibrationSettings, EvaluationSettings
from hswq_hub.sources.find import resolve
from hswq_hub.sources.source import Prompts, Source

_APART = 10_000
"""How far the seeds of pictures are apart."""


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Which model, with which prompts and seed, and where the work is."""
    command.add_argument("reference")
    command.add_argument("--base")
    command.add_argument("--prompts", type=Path, help="folder with calibration.txt and evaluation.txt")
    command.add_argument("--work", type=Path, required=True)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--steps", type=int, help="of a picture that is measured on")
    command.add_argument("--guidance", type=float)


def source_of(arguments: argparse.Namespace) -> Source:
    """The model that these options name, with its own prompts or theirs."""
    source = resolve(arguments.reference, arguments.base)
    return replace(source, prompts=Prompts.read(arguments.prompts)) if arguments.prompts else source


def calibration_of(arguments: argparse.Namespace, *, whole: bool = True) -> CalibrationSettings:
    """What these options calibrate with."""
    return CalibrationSettings(
        arguments.samples, seed=_APART * arguments.seed, guidance=arguments.guidance, whole=whole
    )


def evaluation_of(arguments: argparse.Namespace) -> EvaluationSettings:
    """What these options measure by: errors of files alone."""
    return EvaluationSettings(
        arguments.pairs,
        arguments.steps,
        1000 + _APART * arguments.seed,
        guidance=arguments.guidance,
        perceptual=(),
        noise_floor=False,
    )


def make_or_report(
    description: str | None,
    make: Callable[[Source, CalibrationSettings, EvaluationSettings, int, Path], None],
    report: Callable[[list[Path]], None],
) -> None:
    """The command line of a benchmark that does all of a seed in one go: `make`, and `report` of several folders."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("report").add_argument("works", type=Path, nargs="+")
    command = commands.add_parser("make")
    add_model_options(command)
    command.add_argument("--samples", type=int, default=CalibrationSettings().samples)
    command.add_argument("--pairs", type=int, default=EvaluationSettings().pairs)
    arguments = parser.parse_args()
    if arguments.command == "report":
        report(arguments.works)
        return
    source, calibration = source_of(arguments), calibration_of(arguments, whole=False)
    make(source, calibration, evaluation_of(arguments), arguments.seed, arguments.work)
