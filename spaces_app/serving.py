"""How a page is served, whichever it is."""

from gradio.queueing import Queue

from .page.theme import css, theme

HERE = "127.0.0.1"
_LOOK, _PROGRESS = 0.1, 1.0
"""Seconds between two looks of Gradio's queue: for whoever waits, and for progress bars, which no page has."""


def options() -> dict:
    """What Gradio's `launch` is told."""
    return {
        "theme": theme(),
        "css": css(),
        "max_file_size": 0,  # nothing is uploaded
        "run_history": False,
        "ssr_mode": False,
    }


def calm(queue: Queue) -> None:
    """What of Gradio's queue no argument sets. By itself it looks a thousand times a second, which takes several
    percent of a core for ever, and notes ten thousand requests, of which it makes a table anew after each."""
    queue.sleep_when_free, queue.progress_update_sleep_when_free = _LOOK, _PROGRESS
    queue.ANALYTICS_MAX_EVENTS = 0
