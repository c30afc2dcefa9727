"""From a source to a finished folder: which steps there are, in which order, and what each is made from.

    source ─ calibrate ─ quantize (search, round, measure, write; naive) ─ evaluate ─ folder

How they are done is in `steps.py`: each once, its product kept in the workspace.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hswq_runtime.formats import Format

from ..calibration.calibrate import calibrate
from ..common.files import write_atomically
from ..common.hardware import pick_device, pick_dtype
from ..common.identity import code_digest, environment_fingerprint
from ..common.layout import METRICS
from ..common.targets import check_same_source, replace_folder
from ..evaluation.evaluate import Evaluation, evaluate
from ..evaluation.examples import save_evaluation
from ..hub.destination import check_upload
from ..hub.upload import Uploaded, upload
from ..settings import CalibrationSettings, EvaluationSettings, PublishSettings, UploadSettings
from ..sources.components import base_identity, local_bytes
from ..sources.source import Source
from . import steps
from .folder import facts_of, fill_folder, state_of
from .preflight import preflight
from .quantizing import STATISTICS, Quantization, naive_cast
from .recall import remember
from .steps import Step, Tell, Work, silent
from .workspace import Workspace

NAIVE = "naive FP8"
_STATE = "state.json"


@dataclass(frozen=True)
class Published:
    """The finished folder and the figures in it. uploaded: where it is on the Hub, if it went there."""

    folder: Path
    evaluation: Evaluation
    uploaded: Uploaded | None = None


def default_folder(source: Source) -> Path:
    """`hswq-published/<name>-hswq` below the working directory.

    Raises:
        TargetError: it holds what was made from another checkpoint.
    """
    folder = usual_folder(source)
    check_same_source(folder, source.sha256)
    return folder


def usual_folder(source: Source) -> Path:
    """The same, whatever it holds."""
    return Path("hswq-published") / f"{source.name}-hswq"


def publish(
    source: Source,
    folder: Path,
    settings: PublishSettings | None = None,
    *,
    command: str = "",
    again: Collection[str] = (),
    hub: UploadSettings | None = None,
    tell: Tell = silent,
) -> Published:
    """Calibrate, quantize, measure, and write `folder` as it would be uploaded.

    Args:
        source: what to quantize.
        folder: free, empty, or made by an earlier run, which is then replaced.
        settings: formats, recipe, calibration and evaluation.
        command: the command line that does the same, for the card.
        again: those of `settings.STAGES` whose products are made anew although they are there; after them, whatever
            was made from something that is now another.
        hub: the repo that the folder is uploaded to; None: it stays here.
        tell: see `steps.make`.

    Raises:
        UploadError: see :func:`hswq_hub.hub.upload.upload`.
        TargetError: the folder holds something else or cannot be made, or the disk has no room.
        ComponentError: the base lacks a component.
        DeviceError: CUDA asked for and absent, or the model does not fit into memory.
        HSWQError: whatever the steps raise; the folder is then as it was.
    """
    settings = settle(settings or PublishSettings(), source)
    todo = publication(source, folder, settings, command)
    if hub is not None:
        check_upload(hub)
    preflight(source, folder, settings, todo, again, tell=tell)
    workspace = Workspace(source.name, source.sha256)
    with workspace.locked(tell):
        remember(workspace, source)
        steps.forget(step for step in todo if step.stage in again)
        steps.make(todo, tell)
    uploaded = None if hub is None else upload(folder, hub)
    return Published(folder, Evaluation.load(folder / METRICS), uploaded)


def publication(source: Source, folder: Path, settings: PublishSettings, command: str) -> list[Step]:
    """All steps, in order. `settings`: settled ones."""
    place = Workspace(source.name, source.sha256).folder
    calibration = calibration_step(place, source, settings.calibration)
    quantizing, writing = Quantization(
        place, source, calibration, settings.formats, settings.recipe, settings.calibration, settings.calibration_memory
    ).steps()
    naive = naive_cast(place, source, settings.calibration.device)
    labelled = {NAIVE: naive, **{format.label: step for format, step in writing.items()}}
    measured = evaluation_step(place, source, labelled, settings.evaluation)
    facts = facts_of(source, folder.resolve().name, settings.recipe, command)
    filled = folder_step(place, source, folder, calibration, writing, measured, facts)
    return [calibration, *quantizing, naive, measured, filled]


def calibration_step(place: Path, source: Source, settings: CalibrationSettings) -> Step:
    """Gather the statistics. The product holds `STATISTICS`, and the same without the vectors as JSON."""
    made_from = [
        environment_fingerprint(settings.device),
        asdict(settings),
        source.prompts.calibration,
        base_identity(source),
    ]

    def make(product: Path) -> None:
        calibrate(source, settings).save(product / STATISTICS)

    def work() -> Work:
        return Work(settings.samples * settings.steps_of(source.architecture.steps), settings.device, settings.size)

    return Step("calibrate", "calibrate", place, made_from, make, work=work)


def evaluation_step(place: Path, source: Source, files: Mapping[str, Step], settings: EvaluationSettings) -> Step:
    """Measure the file of each of `files` (label -> the step that wrote it) against the source."""
    made_from = [
        environment_fingerprint(settings.device),
        asdict(settings),
        source.prompts.evaluation,
        base_identity(source),
        [*files],
    ]

    def make(product: Path) -> None:
        paths = {label: next(step.folder.glob("*.safetensors")) for label, step in files.items()}
        save_evaluation(evaluate(source, paths, settings), product)

    def work() -> Work:
        steps = settings.steps or source.architecture.steps
        return Work((1 + len(files)) * settings.pairs * steps, settings.device, settings.size)

    return Step("evaluate", "evaluate", place, made_from, make, tuple(files.values()), work)


def folder_step(
    place: Path,
    source: Source,
    folder: Path,
    calibration: Step,
    writing: Mapping[Format, Step],
    measured: Step,
    facts: dict,
) -> Step:
    """Put `folder` together. The product in the workspace says only how it was left."""

    def make(product: Path) -> None:
        made_by = json.loads((calibration.folder / STATISTICS).with_suffix(".json").read_text())["made_by"]
        replace_folder(folder, lambda new: fill_folder(new, source, made_by, writing, measured.folder, facts))
        write_atomically(product / _STATE, json.dumps(state_of(folder)).encode())

    def holds(product: Path) -> bool:
        return json.loads((product / _STATE).read_text()) == state_of(folder)

    def work() -> Work:
        kept = sum(step.work().kept for step in writing.values()) + local_bytes(source)
        return Work(moved=2 * kept, kept=kept)

    made_from = [code_digest(), str(folder.resolve()), facts]
    return Step(
        "folder", "folder", place, made_from, make, (calibration, *writing.values(), measured), work, folder, holds
    )


def settle(settings: PublishSettings, source: Source) -> PublishSettings:
    """The settings with everything that was left open decided, as it will be recorded."""
    recipe = settings.recipe
    if recipe.keep_ratio is None and recipe.budget is None:
        recipe = replace(recipe, keep_ratio=source.architecture.keep_ratio)

    def decide(part):
        device = pick_device(part.device)
        dtype = str(pick_dtype(part.dtype, device)).removeprefix("torch.")
        return replace(part, device=device.type, dtype=dtype)

    return replace(
        settings, recipe=recipe, calibration=decide(settings.calibration), evaluation=decide(settings.evaluation)
    )
