"""How far the work on a model is: its steps, their products, sizes and times. No host is asked, nothing is computed."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..common.text import duration, megabytes, text_table
from ..settings import PublishSettings
from ..sources.reference import DemoRef, LocalRef, parse
from ..sources.source import Source, resolve
from .outlook import Outlook
from .publish import usual_folder
from .recall import recall
from .steps import PRODUCT_RECORD, State, Step

HEADINGS = ("step", "state", "size", "took", "made", "product")
_NOWHERE = "0" * 64
"""Stands for the digest of a file that nothing was made from: no workspace has that name."""


def status_lines(
    reference: str,
    folder: Path | None,
    settings: PublishSettings,
    command: Callable[[Source], str],
    base: str | None = None,
    licence: str | None = None,
) -> list[str]:
    """The steps that `publish` with `settings` consists of, and what there is of each.

    Raises:
        HSWQError: the reference means nothing, or a file of this machine is no model.
    """
    source = _find(reference, base, licence)
    if source is None:
        return [f"nothing was made of {reference} here; `hswq-hub publish {reference} --dry-run` says what is to do"]
    steps = Outlook.of(source, folder or usual_folder(source), settings, command(source)).steps
    place = steps[0].place
    rows = [("source", "here", megabytes(source.path.stat().st_size), "", "", _short(source.path))]
    rows += [_row(step) for step in steps]
    left = [step.name for step in steps if step.state is not State.DONE]
    lines = [text_table(HEADINGS, rows, left=("state", "product")), "", f"work is kept in {_short(place)}/"]
    others = {path.parent for path in place.glob(f"*/{PRODUCT_RECORD}")} - {step.folder for step in steps}
    if others:
        size = megabytes(sum(path.stat().st_size for other in others for path in other.rglob("*") if path.is_file()))
        lines.append(f"there are {len(others)} products of other settings or releases as well, {size}")
    return [*lines, f"to do: {', '.join(left)}" if left else "all is done"]


def _find(reference: str, base: str | None, licence: str | None) -> Source | None:
    """The source, if that takes no more than a header to find out."""
    found = parse(reference)
    if isinstance(found, DemoRef):
        return resolve(reference, base)
    source = recall(reference, base)
    if source is None and isinstance(found, LocalRef) and found.path.is_file():
        return replace(resolve(reference, base, licence), digest=_NOWHERE)
    return source


def _row(step: Step) -> tuple[str, ...]:
    made, state = step.made, step.state
    if made is None or state is State.MISSING:
        return step.name, state.value, "", "", "", ""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(made.finished))
    return step.name, state.value, megabytes(step.size), duration(made.seconds), when, _product(step)


def _product(step: Step) -> str:
    return step.folder.name if step.target is None else _short(step.target)


def _short(path: Path) -> str:
    """A path as it is said: below the working directory or the home directory from there."""
    path = path.absolute()
    if path.is_relative_to(Path.cwd()):
        return os.path.relpath(path)
    return str(Path("~") / path.relative_to(Path.home())) if path.is_relative_to(Path.home()) else str(path)
