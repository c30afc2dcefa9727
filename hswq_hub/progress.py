"""The one look that all progress bars have."""

from tqdm import tqdm


def progress(iterable=None, *, desc: str, total: int | None = None, unit: str = "it"):
    """A tqdm bar on stderr, wrapped around `iterable` or updated by hand; silent where stderr is no terminal."""
    return tqdm(
        iterable,
        desc=desc,
        total=total,
        unit=unit,
        unit_scale=unit == "B",
        disable=None,
        leave=False,
        dynamic_ncols=True,
    )
