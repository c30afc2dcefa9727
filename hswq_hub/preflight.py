"""Everything that can be known to fail, before anything costs time."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from .memory import memory_of
from .quantize import check_budget, check_memory
from .settings import PublishSettings
from .sources import Source
from .steps import Step, open_steps
from .targets import check_room, check_target, nearest_existing


def preflight(
    source: Source, folder: Path, settings: PublishSettings, steps: Sequence[Step], again: Collection[str] = ()
) -> None:
    """Check that `steps` can be done: the target, the components, the recipe's limits, the disks, the memory.

    Raises:
        TargetError: the folder holds something else or cannot be made, or a disk has no room.
        ComponentError: the base lacks a component.
        DeviceError: the model does not fit into memory.
        HSWQError: the budget or the bound on memory cannot be met.
    """
    check_target(folder)
    source.check_components()
    for version in settings.formats:
        check_budget(source.checkpoint, version, settings.recipe)
    if settings.recipe.rounding == "gptq":
        check_memory(source.checkpoint, settings.calibration_memory)
    for place, needed in disk_needs(open_steps(steps, again)).items():
        check_room(place, needed)
    for memory in memory_of(source, settings):
        memory.check()


def disk_needs(steps: Sequence[Step]) -> dict[Path, int]:
    """Bytes that the products of `steps` take, by a folder on each disk that they go to."""
    disks: dict[int, Path] = {}
    needs: dict[Path, int] = {}
    for step in steps:
        place = nearest_existing((step.target or step.place).absolute())
        place = disks.setdefault(os.stat(place).st_dev, place)
        needs[place] = needs.get(place, 0) + step.work().kept
    return needs
