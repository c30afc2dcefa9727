"""Makes the pictures of one comparison at a time. It yields events, and stops between two denoising steps.

The variants are in memory together where they fit. Otherwise they are loaded one after the other.
"""

import gc
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from hswq_hub.common.hardware import PeakMemory, free_memory, pick_device, pick_dtype
from hswq_hub.evaluation.evaluate import compare_samples
from hswq_hub.evaluation.results import PairResult
from hswq_hub.generation.generate import GenerationSettings, Sample, generate, takes_negative
from hswq_hub.generation.latent_preview import decode_preview
from hswq_hub.generation.pipelines import SharedPipeline
from hswq_runtime.checkpoints.base import configured
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import HSWQError
from hswq_runtime.formats import Reader
from hswq_runtime.layers.matmul import set_quantized_matmul

from ..models.lora import find_lora, lora_applied
from ..models.registry import MULTIPLIED, Model
from ..request import Request, RequestError, default_request
from ..zero import AHEAD, ON_ZERO_GPU, gpu
from .ahead import alike, as_written, compile_groups, load_groups

_PREVIEWS = 5
"""Previews of each picture, about: each costs a small decoding."""
_SHARE = 0.5
"""Of the free memory, what variants may take together; the rest is for computing."""


@dataclass(frozen=True)
class Note:
    """A sentence on what happens besides denoising. label: the variant it is about; None: it is about the whole run,
    and stays on the page."""

    text: str
    label: str | None = None


@dataclass(frozen=True)
class StepDone:
    """`label` has done `number` of `steps`. picture: what it looks like, uint8 [H, W, 3], now and then."""

    label: str
    number: int
    steps: int
    picture: np.ndarray | None


@dataclass(frozen=True)
class VariantDone:
    """A finished picture, uint8 [H, W, 3], and what was measured.

    figures: against the reference, which is equal to itself. peak_bytes: None where it cannot be measured.
    """

    label: str
    image: np.ndarray
    figures: PairResult
    peak_bytes: int | None
    weight_bytes: int
    file_bytes: int


_COMPILING = 1500
"""Seconds of a GPU that compiling a model's blocks may take."""

Event = Note | StepDone | VariantDone
Result = TypeVar("Result")


class Stopped(HSWQError):
    """The visitor did not want to wait for the rest."""


class Worker:
    """One pipeline at a time, and one thread that everything runs on.

    memory: free bytes of a device. pipelines: what is called as :class:`SharedPipeline` is.
    local: the visitor sits at this machine and may name its files.
    """

    def __init__(
        self,
        device: str = "auto",
        dtype: str = "auto",
        *,
        local: bool = False,
        memory: Callable[[torch.device], int] = free_memory,
        pipelines: Callable[..., SharedPipeline] = SharedPipeline,
    ):
        self.memory, self._pipelines = memory, pipelines
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.local = local
        self._shared: SharedPipeline | None = None
        self._model: str | None = None
        self._threads: dict[int, ThreadPoolExecutor] = {}

    def run(
        self, model: Model, request: Request, *, stop: threading.Event | None = None, local=None
    ) -> Iterator[Event]:
        """Make the pictures of `request`. Setting `stop`, or closing the iterator, ends it at the next step and frees
        its weights. `local`: overrides the worker's for this request.

        Raises:
            Stopped: it was stopped.
            HSWQError: anything else, as a sentence.
        """
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        stop = stop or threading.Event()
        local = self.local if local is None else local
        work = self._submit(lambda: self._work(model, request, local, events.put, stop))
        work.add_done_callback(lambda _: events.put(None))
        try:
            while (event := events.get()) is not None:
                yield event
            work.result()
        finally:
            stop.set()

    def call(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, run on the worker's thread after what was submitted before."""
        return self._submit(work).result()

    def preload(self, model: Model) -> None:
        """Get all files of `model`, and load those that fit together, on the thread that calls.

        ZeroGPU wants models placed while the page starts, before it forks.
        """
        checkpoints = [configured(Checkpoint(fetch()), model.base) for fetch in model.files.values()]
        shared = self._opened(model)
        shared.together = ON_ZERO_GPU or self._fit(checkpoints)
        for checkpoint in checkpoints if shared.together else ():
            pipeline = shared.pipeline_for(checkpoint)
            if AHEAD:
                self._compile(model, pipeline)

    def _compile(self, model: Model, pipeline) -> None:
        """Let the denoiser's blocks compute with programs, made by a call that has the GPU."""
        groups = alike(getattr(pipeline, model.architecture.component))
        request = default_request(model.limits, model.examples[0])
        settings = _settings(model, pipeline, request)
        folder = Path(tempfile.mkdtemp(prefix="hswq-compiled-"))

        @gpu(lambda: _COMPILING)
        def forms():
            return compile_groups(groups, lambda: generate(pipeline, request.prompt, request.seed, settings), folder)

        load_groups(groups, forms(), folder)

    def _submit(self, work: Callable[[], Result]) -> Future:
        # By process: ZeroGPU forks, and a thread does not live on in the fork.
        thread = self._threads.setdefault(os.getpid(), ThreadPoolExecutor(1, "worker"))
        return thread.submit(work)

    def _opened(self, model: Model) -> SharedPipeline:
        if self._model != model.reference:
            self._close()
            self._shared = self._pipelines(model.architecture, model.base, self.device, self.dtype)
            self._model = model.reference
        return self._shared

    @property
    def loaded(self) -> int:
        """How many denoisers are in memory."""
        return 0 if self._shared is None else self._shared.loaded

    def _fit(self, checkpoints: Iterable[Checkpoint]) -> bool:
        """Whether the variants fit into memory together, computed in up to 32 bits."""
        return 2 * sum(checkpoint.weight_bytes for checkpoint in checkpoints) < _SHARE * self.memory(self.device)

    def _close(self) -> None:
        self._shared, self._model = None, None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def _work(
        self, model: Model, request: Request, local: bool, emit: Callable[[Event], None], stop: threading.Event
    ) -> None:
        try:
            self._make(model, request, local, emit, stop)
        except torch.OutOfMemoryError as error:
            self._close()
            raise HSWQError("the GPU has not enough memory for this; choose a smaller size") from error
        finally:
            if self._shared is not None and not self._shared.together:
                self._shared.release()

    def _make(self, model: Model, request: Request, local: bool, emit, stop: threading.Event) -> None:
        _check(stop)
        lora = find_lora(request.lora, local=local)
        checkpoints = {}
        for label in request.variants:
            _check(stop)
            emit(Note(f"Getting {label}", label))
            checkpoints[label] = configured(Checkpoint(model.file(label)), model.base)
        if guess := next((checkpoint.guess for checkpoint in checkpoints.values() if checkpoint.guess), None):
            emit(Note(f"{guess[:1].upper()}{guess[1:]}."))
        shared = self._opened(model)
        if not shared.together:
            shared.together = self._fit({checkpoint.path: checkpoint for checkpoint in checkpoints.values()}.values())
        if not shared.together:
            emit(Note("The variants do not fit into memory together: they are loaded one after the other."))
        reference: Sample | None = None
        for label, checkpoint in checkpoints.items():
            _check(stop)
            emit(Note(f"Loading {label}", label))
            pipeline = shared.pipeline_for(checkpoint)
            if request.negative and not takes_negative(pipeline):
                raise RequestError(f"{model.architecture.title} takes no negative prompt; leave it empty")
            settings = _settings(model, pipeline, request)
            denoiser = getattr(pipeline, model.architecture.component)
            unusual = lora is not None or label.endswith(MULTIPLIED)
            with (
                as_written(denoiser) if unusual else nullcontext(),
                lora_applied(pipeline, lora),
                PeakMemory(self.device) as memory,
            ):
                set_quantized_matmul(denoiser, label.endswith(MULTIPLIED), reader=Reader.COMFYUI)
                sample = generate(
                    pipeline,
                    request.prompt,
                    request.seed,
                    settings,
                    on_step=_step_callback(pipeline, label, request.steps, emit, stop),
                )
            reference = reference or sample
            emit(
                VariantDone(
                    label,
                    sample.image,
                    compare_samples(request.prompt, request.seed, reference, sample),
                    memory.bytes,
                    checkpoint.weight_bytes,
                    checkpoint.path.stat().st_size,
                )
            )


def _settings(model: Model, pipeline, request: Request) -> GenerationSettings:
    return GenerationSettings.of(
        model.architecture,
        pipeline.vae.config,
        steps=request.steps,
        guidance=request.guidance,
        size=request.size,
        negative_prompt=request.negative,
        recorded=asdict(model.generation),
    )


def _step_callback(pipeline, label: str, steps: int, emit: Callable[[Event], None], stop: threading.Event):
    every = max(1, steps // _PREVIEWS)

    def on_step(step: int, latents: torch.Tensor) -> None:
        _check(stop)
        shown = (step + 1) % every == 0 and step + 1 < steps
        emit(StepDone(label, step + 1, steps, decode_preview(pipeline, latents) if shown else None))

    return on_step


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped("stopped")
