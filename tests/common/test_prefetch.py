"""One prefetched, in order, and no more than one."""

import threading

import pytest

from hswq_hub.common.prefetch import prefetched


def test_results_come_in_order_one_ahead_and_from_another_thread():
    made, seen = [], []

    def make(item):
        made.append(item)
        return item * 10, threading.get_ident()

    for value, thread in prefetched(iter(range(5)), make):
        seen.append(value)
        assert thread != threading.get_ident()
        assert len(made) <= len(seen) + 1, "more would be more memory"
    assert seen == [0, 10, 20, 30, 40] and made == [0, 1, 2, 3, 4]


def test_nothing_comes_of_nothing():
    assert list(prefetched([], lambda _: pytest.fail("made"))) == []


def test_what_goes_wrong_is_raised_where_it_would_be_due_and_what_was_made_before_comes():
    def make(item):
        if item == 2:
            raise ValueError("two")
        return item

    results = prefetched(range(5), make)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_it_really_is_two_things_at_once():
    """Each side waits for the other: alone, neither would get on."""
    working, written = threading.Event(), threading.Event()

    def make(item):
        if item == 1:
            working.set()
            assert written.wait(10)
        return item

    results = prefetched(range(2), make)
    assert next(results) == 0
    assert working.wait(10)
    written.set()
    assert next(results) == 1
