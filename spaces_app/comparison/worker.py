"""Makes the pictures: one comparison at a time, told step by step, stopped between two steps.

The variants are held in memory together where they fit, otherwise they are loaded one after the other.
"""

import gc
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from hswq_hub.common.hardware import PeakMemory, free_memory, pick_device, pick_dtype
from hswq_hub.evaluation.evaluate import PairResult, compare_samples
from hswq_hub.generation.generate import GenerationSettings, Sample, generate, takes_negative
from hswq_hub.generation.latent_preview import preview
from hswq_hub.generation.pipelines import SharedPipeline
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import HSWQError

from ..models.lora import find_lora, wearing
from ..models.registry import Model
from ..request import Wish, WishError
from ..zero import ON_ZERO_GPU

_PREVIEWS = 5
"""Step previews of each picture, about: each costs a small decoding."""
_SHARE = 0.5
"""Of the free memory, what variants may take together; the rest is for computing."""


@dataclass(frozen=True)
class Note:
    """What is going on besides denoising, as a sentence. label: the variant that it is about; None: it is about all of
    the run, and worth being read afterwards."""

    text: str
    label: str | None = None


@dataclass(frozen=True)
class Step:
    """`label` has done `number` of `steps`. picture: what it looks like, uint8 [H, W, 3], now and then."""

    label: str
    number: int
    steps: int
    picture: np.ndarray | None


@dataclass(frozen=True)
class Made:
    """A finished picture, uint8 [H, W, 3], and what was measured.

    figures: against the reference, which is equal to itself. peak_bytes: None where nobody can tell.
    """

    label: str
    image: np.ndarray
    figures: PairResult
    peak_bytes: int | None
    weight_bytes: int
    file_bytes: int


Event = Note | Step | Made
Result = TypeVar("Result")


class Stopped(HSWQError):
    """The visitor did not want to wait for the rest."""


class Studio:
    """One pipeline at a time, and one thread that everything runs on.

    local: whoever wishes sits at this machine and may name files of it.
    """

    def __init__(self, device: str = "auto", dtype: str = "auto", *, local: bool = False):
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.local = local
        self._shared: SharedPipeline | None = None
        self._model: str | None = None
        self._threads: dict[int, ThreadPoolExecutor] = {}

    def run(self, model: Model, wish: Wish, *, stop: threading.Event | None = None, local=None) -> Iterator[Event]:
        """Make what is wished. Setting `stop`, or closing the iterator, ends it at the next step and lets go of what
        only it held. `local`: as for the studio, if this one wish is another case.

        Raises:
            Stopped: it was ended.
            HSWQError: whatever is wrong, as a sentence.
        """
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        stop = stop or threading.Event()
        local = self.local if local is None else local
        work = self._submit(lambda: self._work(model, wish, local, events.put, stop))
        work.add_done_callback(lambda _: events.put(None))
        try:
            while (event := events.get()) is not None:
                yield event
            work.result()
        finally:
            stop.set()

    def do(self, work: Callable[[], Result]) -> Result:
        """What `work` gives, on the studio's thread, after all that was asked for before."""
        return self._submit(work).result()

    def place(self, model: Model) -> None:
        """Get all files of `model`, and load those that fit together, on the thread that calls.

        ZeroGPU wants models placed while the page starts, before it forks.
        """
        checkpoints = [Checkpoint(fetch()) for fetch in model.files.values()]
        shared = self._opened(model)
        shared.together = ON_ZERO_GPU or _fit(checkpoints, self.device)
        for checkpoint in checkpoints if shared.together else ():
            shared.around(checkpoint)

    def _submit(self, work: Callable[[], Result]) -> Future:
        # By process: ZeroGPU forks, and a thread does not live on in the fork.
        thread = self._threads.setdefault(os.getpid(), ThreadPoolExecutor(1, "studio"))
        return thread.submit(work)

    def _opened(self, model: Model) -> SharedPipeline:
        if self._model != model.reference:
            self._close()
            self._shared = SharedPipeline(model.architecture, model.base, self.device, self.dtype)
            self._model = model.reference
        return self._shared

    def _close(self) -> None:
        self._shared, self._model = None, None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def _work(
        self, model: Model, wish: Wish, local: bool, tell: Callable[[Event], None], stop: threading.Event
    ) -> None:
        try:
            self._make(model, wish, local, tell, stop)
        except torch.OutOfMemoryError as error:
            self._close()
            raise HSWQError("the GPU has not enough memory for this; choose a smaller size") from error
        finally:
            if self._shared is not None and not self._shared.together:
                self._shared.release()

    def _make(self, model: Model, wish: Wish, local: bool, tell, stop: threading.Event) -> None:
        _check(stop)
        lora = find_lora(wish.lora, local=local)
        checkpoints = {}
        for label in wish.variants:
            _check(stop)
            tell(Note(f"Getting {label}", label))
            checkpoints[label] = Checkpoint(model.files[label]())
        shared = self._opened(model)
        if not shared.together:
            shared.together = _fit(checkpoints.values(), self.device)
        if not shared.together:
            tell(Note("The variants do not fit into memory together: they are loaded one after the other."))
        how = GenerationSettings(wish.steps, wish.guidance, wish.size)
        reference: Sample | None = None
        for label, checkpoint in checkpoints.items():
            _check(stop)
            tell(Note(f"Loading {label}", label))
            pipeline = shared.around(checkpoint)
            if wish.negative and not takes_negative(pipeline):
                raise WishError(f"{model.architecture.title} takes no negative prompt; leave it empty")
            with wearing(pipeline, lora), PeakMemory(self.device) as memory:
                sample = generate(
                    pipeline,
                    wish.prompt,
                    wish.seed,
                    how,
                    on_step=_teller(pipeline, label, wish.steps, tell, stop),
                    negative=wish.negative or None,
                )
            reference = reference or sample
            tell(
                Made(
                    label,
                    sample.image,
                    compare_samples(wish.prompt, wish.seed, reference, sample),
                    memory.bytes,
                    checkpoint.weight_bytes,
                    checkpoint.path.stat().st_size,
                )
            )


def _teller(pipeline, label: str, steps: int, tell: Callable[[Event], None], stop: threading.Event):
    every = max(1, steps // _PREVIEWS)

    def on_step(step: int, latents: torch.Tensor) -> None:
        _check(stop)
        shown = (step + 1) % every == 0 and step + 1 < steps
        tell(Step(label, step + 1, steps, preview(pipeline, latents) if shown else None))

    return on_step


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped("stopped")


def _fit(checkpoints, device: torch.device) -> bool:
    """Whether the variants fit into memory together, computed in up to 32 bits."""
    return 2 * sum(checkpoint.weight_bytes for checkpoint in checkpoints) < _SHARE * free_memory(device)
