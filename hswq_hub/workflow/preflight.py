"""Everything that can be known to fail, before anything costs time."""

from collections.abc import Sequence
from pathlib import Path

from hswq_runtime.text import several

from ..calibration.weights import empty_weights
from ..common.targets import check_target
from ..common.text import plain
from ..quantization.choices.best import check_best
from ..quantization.choices.keep import check_budget
from ..quantization.compensate import passes_of_rounding
from ..quantization.fold import check_fold
from ..settings import COMPENSATED, PublishSettings
from ..sources.http import cache
from ..sources.prompts.prompts import Share
from ..sources.source import Source
from .memory import Memory
from .steps import Log, Step, check_disks, silent
from .workspace import Workspace

_SHOWN = 80
"""Characters of a negative prompt that are shown."""


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
    too little, and told which prompts are used.

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
    check_best(settings.formats, settings.recipe)
    for format in settings.formats:
        check_budget(source.checkpoint, format, settings.recipe)
    if settings.recipe.rounding in COMPENSATED:
        passes_of_rounding(source.checkpoint, settings.recipe.rounding, settings.calibration_memory)
    check_disks(remaining, arriving_bytes(source) if arriving else {})
    for memory in memories:
        memory.check()
        if memory.is_tight:
            log(f"warning: this takes {memory.line}")
    say_prompts(source, log, guidance=settings.calibration.guidance)


def warn_of_guess(source: Source, log: Log) -> None:
    """Say what of the model's configuration is guessed, if nothing states it."""
    if (guess := source.checkpoint.guess) is not None:
        log(f"warning: {guess}")


def say_prompts(
    source: Source, log: Log, *, guidance: float | None = None, calibrates: bool = True, measures: bool = True
) -> None:
    """Say what calibrates and what is measured on, where it is from, and what was left out."""
    for name, value in prompt_rows(source, guidance, calibrates=calibrates, measures=measures):
        log(f"{name}: {value}")


def prompt_rows(
    source: Source, guidance: float | None, *, calibrates: bool = True, measures: bool = True
) -> list[tuple[str, str]]:
    """A name and what it is: the prompts that calibrate, those to measure on, the negative one, what was left out."""
    prompts, rows = source.prompts, list[tuple[str, str]]()
    if calibrates:
        rows.append(("prompts", _shares(prompts.calibration_from, prompts.calibration)))
    if measures:
        rows.append(("measured on", _shares(prompts.evaluation_from, prompts.evaluation)))
    if (negative := source.negative_prompt(guidance)) is not None:
        rows.append(("negative", f"{plain(negative, _SHOWN)!r}, the most common one of {source.offered.examples.page}"))
    return [*rows, *(("left out", note) for note in prompts.notes)]


def _shares(shares: Sequence[Share], prompts: Sequence[str]) -> str:
    return ", ".join(map(str, shares)) or f"{len(prompts)}"


def arriving_bytes(source: Source) -> dict[Path, int]:
    """What its file takes once it is fetched, and where."""
    return {cache.folder(): source.path.stat().st_size}


def check_weights(workspace: Workspace, source: Source, log: Log) -> None:
    """Check all weights of `source` before anything is made of them, once for each file; `log` is warned of zeros.

    The digest of a source knows nothing of its values, so this reads the denoiser once more, as long as a copy of the
    file takes. What was found is kept in the workspace, which belongs to that digest: later runs read nothing.

    Raises:
        FormatError: a tensor holds NaN or infinity.
    """
    empty = workspace.empty_weights()
    if empty is None:
        empty = empty_weights(source.checkpoint)
        workspace.note_weights(empty)
    warn_of_zeros(empty, log)


def warn_of_zeros(empty: Sequence[str], log: Log) -> None:
    """Say which weights are all zeros: layers that do nothing yet, or a damaged file."""
    if empty:
        log(f"warning: nothing but zeros in {several(empty)}")
