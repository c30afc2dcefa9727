"""The one look that all progress bars have, and times."""

from tqdm import tqdm


def progress(iterable=None, *, desc: str, total: int | None = None, unit: str = "it", initial: int = 0):
    """A tqdm bar on stderr, wrapped around `iterable` or updated by hand; silent where stderr is no terminal.

    With a total it shows speed and time left; `initial` is what an earlier run has done of it.
    """
    return tqdm(
        iterable,
        desc=desc,
        total=total,
        unit=unit,
        initial=initial,
        unit_scale=unit == "B",
        disable=None,
        leave=False,
        dynamic_ncols=True,
    )


def duration(seconds: float) -> str:
    """A time as people say it: "0.4 s", "48 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def roughly(seconds: float) -> str:
    """The same for an estimate, which says nothing of seconds."""
    return "< 1 min" if seconds < 60 else f"~ {duration(max(seconds, 90))}"
