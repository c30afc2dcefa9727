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
