"""Everything that can be known to fail, before anything costs time."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from .memory import memory_of
from .quantize import check_budget, check_fold, check_memory
from .settings import PublishSettings
from .sources import Source, cache
from .steps import Step, open_steps
from .targets import check_room, check_target, nearest_existing


def preflight(
    source: Source,
    folder: Path,
    settings: PublishSettings,
    steps: Sequence[Step],
    again: Collection[str] = (),
    arriving: bool = False,
) -> None:
    """Check that `steps` can be done: the target, the components, the recipe's limits, the disks, the memory.

    `arriving`: the source's file is still to be fetched.

    Raises:
        TargetError: the folder holds something else or cannot be made, or a disk has no room.
        ComponentError: the base lacks a component.
        DeviceError: the model does not fit into memory.
        HSWQError: the budget or the bound on memory cannot be met.
    """
    check_target(folder)
    source.check_components()
    check_fold(source.checkpoint, settings.formats, settings.recipe)
    for version in settings.formats:
        check_budget(source.checkpoint, version, settings.recipe)
    if settings.recipe.rounding == "gptq":
        check_memory(source.checkpoint, settings.calibration_memory)
    for place, needed in disk_needs(open_steps(steps, again), source.path if arriving else None).items():
        check_room(place, needed)
    for memory in memory_of(source, settings):
        memory.check()


def disk_needs(steps: Sequence[Step], arriving: Path | None = None) -> dict[Path, int]:
    """Bytes that the products of `steps` take at most, by a folder on each disk that they go to; and a file as large
    as `arriving`, which goes to the cache."""
    wanted = [(step.target or step.place, step.work().kept) for step in steps]
    if arriving is not None:
        wanted.append((cache.folder(), arriving.stat().st_size))
    disks: dict[int, Path] = {}
    needs: dict[Path, int] = {}
    for folder, size in wanted:
        place = nearest_existing(folder.absolute())
        place = disks.setdefault(os.stat(place).st_dev, place)
        needs[place] = needs.get(place, 0) + size
    return needs
