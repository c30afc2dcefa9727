"""The page under load, as it is served: everybody is answered, who leaves frees the place, and idle it does nothing."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.served_page import Visitor, served, wait_for

LONG = {"steps": 60, "size": 96}
"""Five pictures, which take many times as long as one small one."""
SMALL = {"steps": 1, "size": 64, "variants": ["original", "V2"]}
SOON = 15
"""Seconds within which a place is free, on a slow machine: a step, and a small comparison."""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with served(tmp_path_factory.mktemp("served")) as page:
        yield page


@pytest.fixture
def visitor(page):
    return Visitor(page.url)


def until(messages, kind: str) -> dict:
    return next(message for message in messages if message["msg"] == kind)


def test_idle_it_takes_no_time_that_counts(page):
    """Before anybody came, and after somebody has: Gradio's own queue would look a thousand times a second."""

    def idle() -> float:
        wait_for(lambda: page.cpu(1) < 0.1, 60)  # what it opens with may still be made
        return min(page.cpu(5) for _ in range(2))

    shares = [idle()]
    Visitor(page.url).compare("a star", **SMALL)
    shares.append(idle())
    assert max(shares) < 0.01, shares


def test_visitors_at_once_are_all_answered_and_memory_stays_flat(page):
    def ask(seed: int) -> tuple[int, float]:
        start = time.monotonic()
        answer = Visitor(page.url).compare("a star", seed=seed, **SMALL)
        return answer["seed"], time.monotonic() - start

    with ThreadPoolExecutor(10) as crowd:
        list(crowd.map(ask, range(20)))
        before = page.memory
        answers = list(crowd.map(ask, range(40)))
    assert [seed for seed, _ in answers] == list(range(40))
    assert max(seconds for _, seconds in answers) < 60
    assert page.memory < 1.05 * before


def test_who_leaves_while_the_pictures_are_made_frees_the_place(page, visitor):
    visitor.ask("somebody who leaves", **LONG)
    messages = visitor.messages()
    until(messages, "process_starts")
    messages.close()
    start = time.monotonic()
    Visitor(page.url).compare("the next", **SMALL)
    assert time.monotonic() - start < SOON


def test_who_leaves_the_page_itself_frees_the_place_too(page, visitor):
    """By the button's own function, which tells step by step, without the browser's farewell."""
    visitor.join(
        ["demo", "somebody", "", 1, 60, 0, 96, ["original", "naive FP8", "V1", "V2", "INT8"], "", []],
        visitor.functions()["_make"],
    )
    messages = visitor.messages()
    until(messages, "process_generating")
    messages.close()
    start = time.monotonic()
    Visitor(page.url).compare("the next", **SMALL)
    assert time.monotonic() - start < SOON


def test_who_leaves_while_waiting_is_passed_over(page):
    with ThreadPoolExecutor(1) as other:
        first = Visitor(page.url)
        first.ask("the first", steps=20)
        messages = first.messages()
        until(messages, "process_starts")
        answer = other.submit(lambda: until(messages, "process_completed"))
        for _ in range(10):
            leaving = Visitor(page.url)
            leaving.ask("one who does not wait", **LONG)
            waiting = leaving.messages()
            until(waiting, "estimation")
            waiting.close()
        last = Visitor(page.url)
        last.ask("the last", **SMALL)
        rank = until(last.messages(), "estimation")["rank"]
        assert rank == 0 and answer.result(60)["success"]
