"""From a checkpoint and given statistics to quantized files, without a folder around them."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import FormatError
from hswq_runtime.formats import Format

from ..calibration.calibrate import Calibration
from ..common.files import atomic_file
from ..common.hardware import pick_device
from ..common.pieces import Pieces
from ..common.targets import check_replaceable
from ..quantization.choices.best import check_best
from ..quantization.choices.keep import check_budget, settled
from ..quantization.fold import check_fold
from ..quantization.plan import Plan
from ..settings import CALIBRATION_MEMORY, CalibrationSettings, PublishSettings, Recipe, recipe
from ..sources.source import Source
from .estimate import estimate
from .forecast import Forecast
from .memory import memory_of
from .preflight import check_weights, warn_of_guess
from .publish import settle
from .recall import remember
from .stages.calibrate import STAGE, STATISTICS
from .stages.quantize import Quantization, plan_of, quantized_name
from .steps import Log, Step, check_disks, make, remaining_steps, silent
from .workspace import Workspace


def quantize(
    source: Source,
    calibration: Calibration,
    formats: Sequence[Format],
    folder: Path,
    how: Recipe | None = None,
    device: str = "auto",
    memory: float = CALIBRATION_MEMORY,
    log: Log = silent,
) -> list[tuple[Path, Plan]]:
    """Write `<folder>/<name>-hswq-<format>.safetensors`; returns path and plan of each format.

    The steps are those of `publish`; they are kept in the workspace, so that a run that was stopped goes on where it
    was.

    Args:
        calibration: the statistics of `source`.
        how: the recipe; None: the default one.
        device: one of `settings.DEVICES`.
        memory: GB that second moments may take at once.
        log: is told what it will take, then what becomes of each step.

    Raises:
        FormatError: the calibration was made from another file, or a weight holds NaN or infinity.
        DeviceError: CUDA asked for and absent.
        TargetError: another kind of file has that name already, or a disk has no room.
        HSWQError: the budget or the bound on memory cannot be met.
    """
    workspace = Workspace(source.name, source.sha256)
    how = settled(how or recipe(), source.checkpoint, formats)
    todo = _quantization(workspace.folder, source, calibration, formats, how, device, memory)
    paths = {format: folder / quantized_name(source.name, format) for format in formats}
    for path in paths.values():
        check_replaceable(path, path.suffix, _require_quantized)
    check_fold(source.checkpoint, formats, todo.recipe)
    check_best(formats, todo.recipe)
    for format in formats:
        check_budget(source.checkpoint, format, todo.recipe)
    steps, writing = todo.steps()
    steps = [todo.statistics, *steps]
    remaining = remaining_steps(steps)
    check_disks(remaining, {folder: sum(step.work().kept for step in writing.values())})
    warn_of_guess(source, log)
    log(_estimate(todo, remaining))
    with workspace.locked(log):
        remember(workspace, source)
        for path in paths.values():
            workspace.note_need(str(path.resolve()), steps)
        if remaining:
            check_weights(workspace, source, log)
        make(steps, log)
        for format, path in paths.items():
            _copy(writing[format].folder / path.name, path)
    return [(path, plan_of(writing[format])) for format, path in paths.items()]


def _quantization(
    place: Path,
    source: Source,
    calibration: Calibration,
    formats: Sequence[Format],
    how: Recipe,
    device: str,
    memory: float,
) -> Quantization:
    made_by = calibration.made_by
    if made_by.get("source_sha256") != source.sha256:
        raise FormatError(
            f"the calibration was made from another file than {source.path.name}; run `hswq-hub calibrate` on it"
        )
    if made_by.get("configuration") != source.checkpoint.config:
        here = source.checkpoint.stated.where if source.checkpoint.stated else "its shapes"
        raise FormatError(
            f"the calibration was made with another configuration of {source.path.name} than that of {here}; give the "
            "same --base, or run `hswq-hub calibrate` again"
        )
    made_with = CalibrationSettings(**made_by["settings"])
    if how.wants_statistics and not made_with.whole:
        raise FormatError(
            f"the recipe {how.label} needs statistics of whole pictures, and these end with the last recorded call; "
            "run `hswq-hub calibrate`"
        )
    settings = replace(made_with, device=pick_device(device).type, dtype=made_by["dtype"])

    def take(product: Path, _: Pieces) -> None:
        calibration.save(product / STATISTICS)

    given = Step("statistics", STAGE, place, calibration.sha256, take)
    on_gpu = settings.device != "cpu"
    return Quantization(place, source, given, tuple(formats), how, settings, memory, on_gpu=on_gpu)


def _estimate(work: Quantization, remaining: Sequence[Step]) -> str:
    asked = PublishSettings(work.formats, work.recipe, work.calibration, calibration_memory=work.memory)
    settings = settle(asked, work.source)
    return estimate(Forecast(work.source, settings, work.place), remaining, memory_of(work.source, settings))


def _copy(product: Path, path: Path) -> None:
    with product.open("rb") as file, atomic_file(path) as target:
        shutil.copyfileobj(file, target, 1 << 24)


def _require_quantized(path: Path) -> None:
    if not Checkpoint(path).quantized:
        raise FormatError(f"{path} is not quantized")
