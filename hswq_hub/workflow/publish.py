"""From a source to a finished folder: one plan, made once, that says what it would do, what stops it, and does it.

source ─ calibrate ─ quantize (search, round, measure, write; naive) ─ evaluate ─ folder ─ Hub
"""

import os
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from ..common.hardware import pick_device, pick_dtype
from ..common.layout import METRICS
from ..common.speed.gpus import Gpu
from ..common.speed.rates import GpuRates
from ..common.targets import check_same_source
from ..common.text import duration, megabytes, roughly, text_table
from ..evaluation import perceptual
from ..evaluation.results import Evaluation
from ..generation.placement import USABLE
from ..hub.destination import Destination, check_upload
from ..hub.settings import UploadSettings
from ..hub.upload import Uploaded, upload_to
from ..quantization.choices.keep import settled
from ..settings import CalibrationSettings, EvaluationSettings, PublishSettings
from ..sources.source import NOT_LISTED, Source
from .estimate import estimate, time_line
from .forecast import Forecast, usual_size
from .memory import Memory, memory_of
from .preflight import arriving_bytes, check_weights, preflight, prompt_rows
from .recall import remember
from .stages.calibrate import calibration_step
from .stages.evaluate import evaluation_step
from .stages.folder import folder_step
from .stages.quantize import Quantization, naive_step
from .steps import Log, State, Step, disk_needs, forget, make, remaining_steps, silent
from .workspace import Workspace

Part = TypeVar("Part", CalibrationSettings, EvaluationSettings)
NAIVE = "naive FP8"
PLAN_HEADINGS = ("step", "state", "size", "time")
_WORTH_SAYING = 10.0
"""Seconds from which on people want to know how long it takes."""
STATUS_HEADINGS = ("step", "state", "size", "took", "made", "product")


@dataclass(frozen=True)
class Published:
    """The finished folder and the figures in it. uploaded: where it is on the Hub, if it went there."""

    folder: Path
    evaluation: Evaluation
    uploaded: Uploaded | None = None


@dataclass(frozen=True)
class PublishPlan:
    """Everything that publishing one source with some settings consists of. :meth:`of` makes it and computes nothing.

    folder: what is made; is_default: nobody named it. settings: with nothing left open, see :func:`settle`. steps: in
    order. workspace: where their products are. again: stages to be done anew. destination: the Hub repo that the folder
    is uploaded to; None: it stays here. arriving: the source's file is still to be fetched, only its header is here.
    gpu: what it would take on this one is asked, which is not here: such a plan is to be read, not run.
    """

    source: Source
    folder: Path
    is_default: bool
    settings: PublishSettings
    steps: tuple[Step, ...]
    workspace: Workspace
    again: Collection[str] = ()
    destination: Destination | None = None
    arriving: bool = False
    gpu: Gpu | None = None

    @classmethod
    def of(
        cls,
        source: Source,
        settings: PublishSettings | None = None,
        folder: Path | None = None,
        *,
        command: str = "",
        again: Collection[str] = (),
        destination: Destination | None = None,
        arriving: bool = False,
        gpu: Gpu | None = None,
    ) -> "PublishPlan":
        """The plan for `source`.

        Args:
            source: what to quantize.
            settings: formats, recipe, calibration and evaluation; None: the defaults.
            folder: free, empty, or made by an earlier run, which is then replaced; None: `hswq-published/NAME-hswq`
                below the working directory.
            command: the command line that does the same, for the card.
            again: those of `settings.STAGES` whose products are made anew although they are there; after them, whatever
                was made from something that has changed.
            destination: see :func:`hswq_hub.hub.destination.check_upload`.
            arriving: `source` is a stand-in with nothing but a header.
            gpu: plan for this one in 16 bits instead of this machine's device.

        Raises:
            DeviceError: CUDA asked for and absent.
        """
        settings = settings or PublishSettings()
        settings = settle(settings if gpu is None else _for_gpu(settings, gpu), source)
        target = folder or Path("hswq-published") / f"{source.name}-hswq"
        workspace = Workspace(source.name, source.sha256)
        steps = tuple(_steps(workspace.folder, source, target, settings, command, gpu))
        return cls(source, target, folder is None, settings, steps, workspace, again, destination, arriving, gpu)

    def check(self, log: Log = silent) -> None:
        """Raise what is known to prevent it; `log` is warned of what may be too little, and told the prompts.

        Raises:
            TargetError: the folder holds something else or cannot be made, or a disk has no room.
            ComponentError: the base lacks a component.
            DeviceError: the model does not fit into memory.
            HSWQError: the budget or the bound on memory cannot be met.
        """
        if self.is_default and self.source.sha256 != NOT_LISTED:
            check_same_source(self.folder, self.source.sha256)
        preflight(self.source, self.folder, self.settings, self.remaining, self.memories, self.arriving, log)

    @cached_property
    def remaining(self) -> list[Step]:
        """The steps that were still to be done when this was asked first."""
        # What this machine made has its own bits.
        return remaining_steps(self.steps, self.again) if self.gpu is None else [*self.steps]

    @cached_property
    def forecast(self) -> Forecast:
        """How long steps take, here or on that GPU."""
        rates = None if self.gpu is None else GpuRates(self.gpu)
        return Forecast(self.source, self.settings, self.workspace.folder, rates)

    @cached_property
    def memories(self) -> list[Memory]:
        """What they need of the device and of the machine, and what these have."""
        return memory_of(self.source, self.settings, self.gpu)

    @cached_property
    def seconds(self) -> float:
        """Estimate for all that is still to be done."""
        return sum(self.forecast.seconds(step) for step in self.remaining)

    @property
    def estimate(self) -> str:
        """Time and memory of all that is still to be done, a line each."""
        return estimate(self.forecast, self.remaining, self.memories)

    def _left(self, taken: Mapping[Step, float]) -> str:
        """What is said of the time that is left, by what the steps in `taken` took."""
        seconds = self.forecast.left(self.remaining, taken)
        return f", {roughly(seconds)} left" if seconds >= _WORTH_SAYING else ""

    def lines(self) -> list[str]:
        """What it would do and what that takes, as people read it on a terminal."""
        parameters = sum(info.values for info in self.source.checkpoint.denoiser_tensors.values())
        guess = self.source.checkpoint.guess
        disks = disk_needs(self.remaining, arriving_bytes(self.source) if self.arriving else {})
        facts = [("model", f"{self.source.architecture.title}, {parameters / 1e6:.1f} million parameters")]
        facts += [("config", guess)] if guess is not None else []
        facts += prompt_rows(self.source, self.settings.calibration.guidance)
        facts += [
            ("disk", f"{megabytes(size)} at most, {megabytes(shutil.disk_usage(place).free)} free")
            for place, size in disks.items()
        ]
        facts += [("memory", memory.line) for memory in self.memories]
        if self.remaining:
            facts.append(("time", time_line(self.forecast, self.remaining)))
        facts.append(("folder", f"{self.folder}/, {megabytes(self.steps[-1].work().kept)} at most to upload"))
        rows = [self._plan_row(step) for step in self.steps]
        return [
            *(f"  {name:<12}{value}" for name, value in facts),
            "",
            text_table(PLAN_HEADINGS, rows, left=("state",)),
        ]

    def _plan_row(self, step: Step) -> tuple[str, ...]:
        if step not in self.remaining and (made := step.made) is not None:
            return step.name, "done", megabytes(step.size), duration(made.seconds)
        kept = step.work().kept
        return step.name, "to do", f"≤ {megabytes(kept)}" if kept else "", roughly(self.forecast.seconds(step))

    def status_lines(self) -> list[str]:
        """How far it is: each step, its product, its size and time. Nothing is computed."""
        file = self.source.path
        rows = [("source", "here", megabytes(file.stat().st_size), "", "", _short(file)), *map(_status_row, self.steps)]
        left = [step.name for step in self.steps if step.state is not State.DONE]
        lines = [text_table(STATUS_HEADINGS, rows, left=("state", "product")), ""]
        lines += [f"{name}: {value}" for name, value in prompt_rows(self.source, self.settings.calibration.guidance)]
        lines.append(f"work is kept in {_short(self.workspace.folder)}/")
        if others := self.workspace.products_besides(self.steps):
            size = megabytes(sum(product.bytes for product in others))
            lines.append(f"there are {len(others)} products of other settings or releases as well, {size}")
        return [*lines, f"to do: {', '.join(left)}" if left else "all is done"]

    def run(self, log: Log = silent) -> Published:
        """Do what is still to be done, each step once. `log`: see :func:`hswq_hub.workflow.steps.make`.

        Raises:
            UploadError: see :func:`hswq_hub.hub.upload.upload`.
            FormatError: a weight holds NaN or infinity.
            HSWQError: whatever the steps raise; the folder is then as it was.
        """
        with self.workspace.locked(log):
            remember(self.workspace, self.source)
            self.workspace.note_need(str(self.folder.resolve()), self.steps)
            forget(step for step in self.steps if step.stage in self.again)
            if self.remaining:
                check_weights(self.workspace, self.source, log)
            # Who is told nothing waits for no trial of the machine.
            make(self.steps, log, None if log is silent else self._left)
        uploaded = None if self.destination is None else upload_to(self.folder, self.destination)
        return Published(self.folder, Evaluation.load(self.folder / METRICS), uploaded)


def publish(
    source: Source,
    folder: Path | None = None,
    settings: PublishSettings | None = None,
    *,
    command: str = "",
    again: Collection[str] = (),
    upload: UploadSettings | None = None,
    log: Log = silent,
) -> Published:
    """Calibrate, quantize, measure, write `folder` as it would be uploaded, and upload it if that is asked for.

    `upload`: see :func:`hswq_hub.hub.upload.upload`. Other arguments and errors: see :meth:`PublishPlan.of`,
    :meth:`PublishPlan.check` and :meth:`PublishPlan.run`.
    """
    destination = None if upload is None else check_upload(upload)
    plan = PublishPlan.of(source, settings, folder, command=command, again=again, destination=destination)
    plan.check(log)
    return plan.run(log)


def settle(settings: PublishSettings, source: Source) -> PublishSettings:
    """The settings with everything that was left open decided, as it will be recorded."""
    recipe = settled(settings.recipe, source.checkpoint, settings.formats)
    calibration, evaluation = _on_device(settings.calibration), _on_device(settings.evaluation)
    calibration = replace(calibration, whole=recipe.wants_statistics)
    metrics = perceptual.chosen(evaluation.perceptual, evaluation.size or usual_size(source))
    evaluation = replace(evaluation, perceptual=metrics)
    return replace(settings, recipe=recipe, calibration=calibration, evaluation=evaluation)


def _for_gpu(settings: PublishSettings, gpu: Gpu) -> PublishSettings:
    """The settings for a GPU that is not here, computing in bfloat16 unless they say otherwise."""
    calibration, evaluation = _in_16_bits(settings.calibration), _in_16_bits(settings.evaluation)
    memory = USABLE * gpu.memory if settings.device_memory is None else settings.device_memory
    return replace(settings, calibration=calibration, evaluation=evaluation, device_memory=memory)


def _in_16_bits(part: Part) -> Part:
    return replace(part, device="cpu", dtype="bfloat16" if part.dtype == "auto" else part.dtype)


def _on_device(part: Part) -> Part:
    device = pick_device(part.device)
    return replace(part, device=device.type, dtype=str(pick_dtype(part.dtype, device)).removeprefix("torch."))


def _steps(
    place: Path, source: Source, folder: Path, settings: PublishSettings, command: str, gpu: Gpu | None
) -> list[Step]:
    calibration = calibration_step(place, source, settings.calibration, settings.device_memory)
    quantizing, writing = Quantization(
        place,
        source,
        calibration,
        settings.formats,
        settings.recipe,
        settings.calibration,
        settings.calibration_memory,
        settings.device_memory,
        on_gpu=gpu is not None or settings.calibration.device != "cpu",
    ).steps()
    naive = naive_step(
        place,
        source.checkpoint,
        source.name,
        sha256=source.sha256,
        base=source.hub_base,
        device=settings.calibration.device,
    )
    labelled = {NAIVE: naive, **{format.label: step for format, step in writing.items()}}
    measured = evaluation_step(place, source, labelled, settings.evaluation, settings.device_memory)
    filled = folder_step(place, source, folder, settings.recipe, command, calibration, writing, measured)
    return [calibration, *quantizing, naive, measured, filled]


def _status_row(step: Step) -> tuple[str, ...]:
    made, state = step.made, step.state
    if made is None or state is State.MISSING:
        return step.name, state.value, "", "", "", ""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(made.finished))
    product = step.folder.name if step.target is None else _short(step.target)
    return step.name, state.value, megabytes(step.size), duration(made.seconds), when, product


def _short(path: Path) -> str:
    """A path as it is said: below the working directory or the home directory from there."""
    path = path.absolute()
    if path.is_relative_to(Path.cwd()):
        return os.path.relpath(path)
    return str(Path("~") / path.relative_to(Path.home())) if path.is_relative_to(Path.home()) else str(path)
