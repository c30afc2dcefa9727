"""The one look that all progress bars have, and what is said beside them."""

import sys
from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar, overload

from tqdm import tqdm

from hswq_runtime.text import LONGEST_SENTENCE, shown

T = TypeVar("T")


@overload
def progress(
    iterable: Iterable[T], *, desc: str, total: int | None = ..., unit: str = ..., initial: int = ...
) -> "tqdm[T]": ...
@overload
def progress(
    iterable: None = None, *, desc: str, total: int | None = ..., unit: str = ..., initial: int = ...
) -> "tqdm[NoReturn]": ...
def progress(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str,
    total: int | None = None,
    unit: str = "it",
    initial: int = 0,
) -> "tqdm[Any]":
    """A tqdm bar on stderr, wrapped around `iterable` or updated by hand; silent where stderr is no terminal.

    With a total it shows speed and time left; `initial` is what an earlier run has done of it. `desc`
    may hold a name of a stranger.
    """
    return tqdm(
        iterable,
        desc=shown(desc),
        total=total,
        unit=unit,
        initial=initial,
        unit_scale=unit == "B",
        disable=None,
        leave=False,
        dynamic_ncols=True,
    )


def remark(text: str) -> None:
    """Say something on stderr without tearing a bar apart; also where it is no terminal."""
    tqdm.write(shown(text, LONGEST_SENTENCE), file=sys.stderr)
