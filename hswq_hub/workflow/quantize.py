"""From a full-precision checkpoint and its statistics to HSWQ files, without a folder around them."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import FormatError
from hswq_runtime.formats import Format

from ..calibration.calibrate import Calibration
from ..common.files import atomic_file
from ..common.hardware import pick_device
from ..common.targets import check_replaceable
from ..quantization.fold import check_fold
from ..quantization.keep import check_budget
from ..quantization.plan import Plan
from ..settings import CALIBRATION_MEMORY, CalibrationSettings, Recipe
from ..settings import recipe as recipe_of
from ..sources.source import Source
from .quantizing import STATISTICS, Quantization, plan_of, quantized_name
from .steps import Step, Tell, check_disks, make, open_steps, silent
from .workspace import Workspace


def quantize(
    source: Source,
    calibration: Calibration,
    formats: Sequence[Format],
    folder: Path,
    recipe: Recipe | None = None,
    device: str = "auto",
    memory: float = CALIBRATION_MEMORY,
    tell: Tell = silent,
    begin: Callable[[Quantization], None] = lambda _: None,
) -> list[tuple[Path, Plan]]:
    """Write `<folder>/<name>-hswq-<format>.safetensors`; returns path and plan of each format.

    The steps are those of `publish`; they are kept in the workspace, so that a run that was stopped goes on where it
    was. `tell`: see `steps.make`. `begin`: is told what is to be done once it is known that it can be.

    Raises:
        FormatError: the calibration was made from another file.
        DeviceError: CUDA asked for and absent.
        TargetError: another kind of file has that name already, or a disk has no room.
        HSWQError: the budget or the bound on memory cannot be met.
    """
    recipe = recipe or recipe_of()
    todo = _quantization(source, calibration, formats, recipe, device, memory)
    paths = {format: folder / quantized_name(source, format) for format in formats}
    for path in paths.values():
        check_replaceable(path, path.suffix, _require_quantized)
    check_fold(source.checkpoint, formats, recipe)
    for format in formats:
        check_budget(source.checkpoint, format, recipe)
    steps, writing = todo.steps()
    steps = [todo.statistics, *steps]
    check_disks(open_steps(steps), {folder: sum(step.work().kept for step in writing.values())})
    begin(todo)
    with Workspace(source.name, source.sha256).locked(tell):
        make(steps, tell)
        for format, path in paths.items():
            _copy(writing[format].folder / path.name, path)
    return [(path, plan_of(writing[format])) for format, path in paths.items()]


def _quantization(
    source: Source, calibration: Calibration, formats: Sequence[Format], recipe: Recipe, device: str, memory: float
) -> Quantization:
    made_by = calibration.made_by
    if made_by.get("source_sha256") != source.sha256:
        raise FormatError(
            f"the calibration was made from another file than {source.path.name}; run `hswq-hub calibrate` on it"
        )
    how = replace(CalibrationSettings(**made_by["settings"]), device=pick_device(device).type)
    place = Workspace(source.name, source.sha256).folder

    def take(product: Path) -> None:
        calibration.save(product / STATISTICS)

    given = Step("statistics", "calibrate", place, calibration.sha256, take)
    return Quantization(place, source, given, tuple(formats), recipe, how, memory)


def _copy(product: Path, path: Path) -> None:
    with product.open("rb") as file, atomic_file(path) as target:
        shutil.copyfileobj(file, target, 1 << 24)


def _require_quantized(path: Path) -> None:
    if not Checkpoint(path).quantized:
        raise FormatError(f"{path} is not quantized")
