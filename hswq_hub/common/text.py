"""Sizes, times, shares and tables as people read them; a stranger's text on one safe line."""

from collections.abc import Collection

from hswq_runtime.text import shown

_CELL = 120
"""Characters of a cell in a table."""


def megabytes(size: int) -> str:
    """A size as people read it: "9.3 MB", "6.16 GB"."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def share(part: int, whole: int) -> str:
    """A part as a share of a whole: "56 %"."""
    return f"{100 * part / whole:.0f} %"


def text_table(headings: tuple[str, ...], rows: list[tuple[str, ...]], left: Collection[str] = ()) -> str:
    """Aligned columns for a terminal: the first and those headed by one of `left` to the left, others to the right.

    Cells may hold names of strangers: each is cut and escaped.
    """
    rows = [tuple(shown(cell, _CELL) for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]

    to_left = {headings[0], *left}

    def line(cells: tuple[str, ...]) -> str:
        columns = zip(headings, cells, widths, strict=True)
        return "  ".join(c.ljust(w) if heading in to_left else c.rjust(w) for heading, c, w in columns).rstrip()

    return "\n".join([line(headings), "  ".join("-" * w for w in widths), *map(line, rows)])


def duration(seconds: float) -> str:
    """A time as people say it: "0.4 s", "48 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def roughly(seconds: float) -> str:
    """An estimated time, without seconds: "< 1 min", "~ 12 min"."""
    return "< 1 min" if seconds < 60 else f"~ {duration(max(seconds, 90))}"


def plain(text: object, length: int = 200) -> str | None:
    """A text from a stranger on one line, without control characters; None for anything else."""
    if not isinstance(text, str):
        return None
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:length] or None
