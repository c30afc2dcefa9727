"""Prefetches one item on a background thread while the caller works on the one before."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetched(items: Iterable[T], make: Callable[[T], R]) -> Iterator[R]:
    """The results of `make` for each item, in order, computed one item ahead on a background thread.

    At most two results exist at once. An exception of `make` is raised when its result is due.
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
