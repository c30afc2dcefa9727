"""Prefetches one item on a background thread while the caller works on the one before."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetched(items: Iterable[T], make: Callable[[T], R]) -> Iterator[R]:
    """What `make` makes of each item, in order, always one ahead of the caller, on another thread.

    No more than two results exist at once. What `make` raises is raised when its result would be due.
    """
    with ThreadPoolExecutor(max_workers=1) as other:
        due = None
        for item in items:
            coming = other.submit(make, item)
            if due is not None:
                yield due.result()
            due = coming
        if due is not None:
            yield due.result()
