"""Turns a request into progress and a finished run, for the page's buttons and for its API."""

import logging
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

from hswq_runtime.errors import HSWQError

from ..comparison.runs import Run
from ..comparison.worker import Event, Note, StepDone, Stopped, VariantDone, Worker
from ..models.registry import Model, ModelRegistry
from ..request import Request, default_request
from ..zero import ON_ZERO_GPU, gpu
from . import view
from .view import Tile

_log = logging.getLogger(__name__)
_QUICK_BYTES = 256 << 20
"""Models up to this size make a first picture on the CPU while the page starts."""


@dataclass(frozen=True)
class Progress:
    """Where a run is: a sentence, and a tile for each variant."""

    text: str
    tiles: tuple[Tile, ...]


def user_message(error: Exception) -> str:
    """The message shown to a visitor: that of an `HSWQError`; any other error is only logged."""
    if isinstance(error, HSWQError):
        text = " ".join(str(error).split())
        repo = "/" in text.split(" ")[0]  # a name, to be read as it is
        return (text if repo else text[:1].upper() + text[1:]) + ("" if text.endswith((".", "?")) else ".")
    _log.error("a run failed", exc_info=error)
    return "Something went wrong here, and it is not your doing; the log of this page says what."


class Controller:
    """Passes requests for registered models to the worker."""

    def __init__(self, registry: ModelRegistry, worker: Worker):
        self.registry, self.worker = registry, worker
        self._stops: dict[str, threading.Event] = {}
        self._generate = gpu(_duration)(self._events)
        self._first: Future[Run | None] | None = None

    def open(self) -> None:
        """Load the first model in the background. A small one also makes the comparison that the page opens with."""
        model = self.registry.model()
        if ON_ZERO_GPU:
            self.worker.preload(model)
            return
        starter = ThreadPoolExecutor(1, "first")
        self._first = starter.submit(self._make_first, model)
        starter.shutdown(wait=False)

    def first(self) -> Run | None:
        """Waits for the comparison that the page opens with; None if there is none."""
        return None if self._first is None else self._first.result()

    def _make_first(self, model: Model) -> Run | None:
        try:
            self.worker.call(lambda: self.worker.preload(model))
            sizes = [fetch().stat().st_size for fetch in model.files.values()]
            if self.worker.device.type == "cpu" and sum(sizes) > _QUICK_BYTES:
                return None
            return self.run(model, default_request(model.limits, model.examples[0]))
        except Exception as error:  # the page starts without it, and says why when somebody asks for a picture
            user_message(error)
            return None

    def run(self, model: Model, request: Request, left: Callable[[], bool] = lambda: False) -> Run:
        """The finished run. left: asked after each step whether nobody waits for it any more."""
        with closing(self.steps(model, request)) as steps:
            for step in steps:
                if isinstance(step, Run):
                    return step
                if left():
                    raise Stopped("stopped")
        raise HSWQError("the run ended without a result")

    def steps(self, model: Model, request: Request, session: str = "") -> Generator[Progress | Run, None, None]:
        """Progress after each event; the last item is the finished run.

        `session`: the visitor's, for :meth:`stop`; without one no local files may be named.
        """
        tiles = {label: Tile(label) for label in request.variants}
        made: list[VariantDone] = []
        remark = ""
        stop = self._stops[session] = threading.Event()
        events = self._generate(model.reference, request, session)
        try:
            for event in events:
                if stop.is_set():
                    raise Stopped("stopped")
                if isinstance(event, VariantDone):
                    made.append(event)
                if isinstance(event, Note) and event.label is None:
                    remark = event.text
                text = _update_tiles(event, tiles, request)
                yield Progress(text, tuple(tiles.values()))
            yield Run.of(model.reference, request, made, remark)
        finally:
            events.close()
            if self._stops.get(session) is stop:
                del self._stops[session]

    def stop(self, session: str) -> None:
        """Stop the run of `session`."""
        if session in self._stops:
            self._stops[session].set()

    def _events(self, reference: str, request: Request, session: str) -> Iterator[Event]:
        """Runs in the process that has the GPU: arguments have to be picklable, so `stop` is looked up here."""
        model, stop = self.registry.model(reference), self._stops.get(session)
        yield from self.worker.run(model, request, stop=stop, local=None if session else False)


def _update_tiles(event: Event, tiles: dict[str, Tile], request: Request) -> str:
    """Update the tiles; returns a sentence about the event."""
    if isinstance(event, VariantDone):
        closeness = "reference" if event.label == request.reference else f"SSIM {event.figures.ssim:.4f}"
        tiles[event.label] = Tile(event.label, 1.0, view.small(event.image), closeness)
        return f"{event.label} is done."
    if isinstance(event, StepDone):
        tile = tiles[event.label]
        picture = tile.picture if event.picture is None else view.small(event.picture)
        caption = f"step {event.number} of {event.steps}"
        # Decoding comes after the last step: the bar is full when the picture is there.
        tiles[event.label] = Tile(event.label, 0.98 * event.number / event.steps, picture, caption)
        return f"{event.label}: {caption}"
    assert isinstance(event, Note)
    if event.label is not None:
        tiles[event.label] = replace(tiles[event.label], caption=event.text.removesuffix(f" {event.label}").lower())
    return event.text


def _duration(reference: str, request: Request, session: str) -> int:
    """Seconds of GPU time to ask ZeroGPU for: a guess from a large model's second a step, guidance doubling it."""
    step = 2 if request.guidance > 0 else 1
    return min(120, 10 + len(request.variants) * (3 + request.steps * step))
