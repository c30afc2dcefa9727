"""Everything that can be known to fail, before anything costs time."""

from collections.abc import Sequence
from pathlib import Path

from ..common.targets import check_target
from ..quantization.compensate import passes_of_rounding
from ..quantization.fold import check_fold
from ..quantization.keep import check_budget
from ..settings import COMPENSATED, PublishSettings
from ..sources.http import cache
from ..sources.source import Source
from .memory import Memory
from .steps import Log, Step, check_disks, silent


def preflight(
    source: Source,
    folder: Path,
    settings: PublishSettings,
    remaining: Sequence[Step],
    memories: Sequence[Memory],
    arriving: bool = False,
    log: Log = silent,
) -> None:
    """Check that `remaining` steps can be done: the target, the components, the recipe's limits, the disks, the memory.

    `memories`: what they need. `arriving`: the source's file is still to be fetched. `log`: is warned of what may be
    too little.

    Raises:
        TargetError: the folder holds something else or cannot be made, or a disk has no room.
        ComponentError: the base lacks a component.
        DeviceError: the model does not fit into memory.
        HSWQError: the budget or the bound on memory cannot be met.
    """
    check_target(folder)
    warn_of_guess(source, log)
    source.check_components()
    check_fold(source.checkpoint, settings.formats, settings.recipe)
    for format in settings.formats:
        check_budget(source.checkpoint, format, settings.recipe)
    if settings.recipe.rounding in COMPENSATED:
        passes_of_rounding(source.checkpoint, settings.recipe.rounding, settings.calibration_memory)
    check_disks(remaining, arriving_bytes(source) if arriving else {})
    for memory in memories:
        memory.check()
        if memory.is_tight:
            log(f"warning: this takes {memory.line}")


def warn_of_guess(source: Source, log: Log) -> None:
    """Say what of the model's configuration is guessed, if nothing states it."""
    if (guess := source.checkpoint.guess) is not None:
        log(f"warning: {guess}")


def arriving_bytes(source: Source) -> dict[Path, int]:
    """What its file takes once it is fetched, and where."""
    return {cache.folder(): source.path.stat().st_size}
