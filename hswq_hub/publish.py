"""From a source to a finished folder: which steps there are, in which order, and what each is made from.

    source ─ calibrate ─ quantize (V1, V2, naive) ─ evaluate ─ record, card ─ folder

Each step's product is kept in the workspace under a name that says what it was made from, so a second run does
only what is missing. The folder appears whole, when everything is there.
"""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from hswq_runtime.formats import Format
from hswq_runtime.locate import MODEL_INDEX, PUBLISHED_SUFFIXES
from hswq_runtime.pipeline import component_folders

from . import __version__, plots
from .calibrate import Calibration, calibrate
from .card import CARD, IMAGES, METRICS, licence_text, write_card
from .evaluate import Evaluation, evaluate
from .files import file_sha256, write_atomically
from .hardware import describe, pick_device, pick_dtype, versions
from .pictures import comparison
from .quantize import (
    Plan,
    check_budget,
    check_memory,
    codes_of,
    keep,
    measure_errors,
    plan_everything,
    plan_naive,
    quantized_name,
    write_compensated,
    write_quantized,
)
from .settings import CalibrationSettings, EvaluationSettings, PublishSettings
from .sources import Source
from .sources.facts import licence_facts, source_facts
from .sources.licence import LICENCE_FILE
from .targets import CONTENTS, RECORD, check_room, check_same_source, check_target, list_contents, replace_folder
from .workspace import Workspace, code_digest, home

NAIVE = "naive FP8"
_SHOWN = 4
_EXAMPLES = "examples.json"


@dataclass(frozen=True)
class Published:
    """The finished folder and the figures in it."""

    folder: Path
    evaluation: Evaluation


def default_folder(source: Source) -> Path:
    """`hswq-published/<name>-hswq` below the working directory.

    Raises:
        TargetError: it holds what was made from another checkpoint.
    """
    folder = Path("hswq-published") / f"{source.name}-hswq"
    check_same_source(folder, source.sha256)
    return folder


def publish(source: Source, folder: Path, settings: PublishSettings | None = None, *, command: str = "") -> Published:
    """Calibrate, quantize, measure, and write `folder` as it would be uploaded.

    Args:
        source: what to quantize.
        folder: free, empty, or made by an earlier run, which is then replaced.
        settings: formats, recipe, calibration and evaluation.
        command: the command line that does the same, for the card.

    Raises:
        TargetError: the folder holds something else or cannot be made, or the disk has no room.
        ComponentError: the base lacks a component.
        DeviceError: CUDA asked for and absent.
        HSWQError: whatever the steps raise; the folder is then as it was.
    """
    settings = _settle(settings or PublishSettings(), source)
    _preflight(source, folder, settings)
    workspace = Workspace(source.name, source.sha256)
    device = settings.calibration.device
    calibration = _calibrated(workspace, source, settings.calibration)
    plans = plan_everything(source.checkpoint, calibration, settings.formats, settings.recipe, device)
    rounded = _rounded(workspace, source, calibration, plans, settings)
    plans = [
        keep(
            plan, source.checkpoint, settings.recipe, _errors(workspace, source, plan, rounded[plan.version], settings)
        )
        for plan in plans.values()
    ]
    naive = _quantized(workspace, source, plan_naive(source.checkpoint), f"{source.name}-naive.safetensors", device)
    files = {
        plan.version: _quantized(
            workspace, source, plan, quantized_name(source, plan.version), device, rounded[plan.version]
        )
        for plan in plans
    }
    candidates = {NAIVE: naive, **{version.label: path for version, path in files.items()}}
    measured = _measured(workspace, source, candidates, settings.evaluation)
    facts = {
        "tool": f"hswq-hub {__version__}",
        "name": source.name,
        "repo": folder.resolve().name,
        "architecture": source.checkpoint.architecture.name,
        "base": source.hub_base,
        "bundled": sorted(source.checkpoint.bundled),
        **licence_facts(source.licence),
        "source": source_facts(source),
        "command": command,
        "recipe": asdict(settings.recipe),
        "calibration": calibration.made_by,
        "files": {plan.version.value: _file_facts(files[plan.version], plan) for plan in plans},
        "layers": {plan.version.value: plan.as_rows() for plan in plans},
    }
    replace_folder(folder, lambda target: _fill(target, source, list(files.values()), measured, plans, facts))
    return Published(folder, Evaluation.load(folder / METRICS))


def _preflight(source: Source, folder: Path, settings: PublishSettings) -> None:
    """Everything that can be known to fail, before anything costs time."""
    check_target(folder)
    source.check_components()
    for version in settings.formats:
        check_budget(source.checkpoint, version, settings.recipe)
    if settings.recipe.rounding == "gptq":
        check_memory(source.checkpoint, settings.calibration_memory)
    size = source.path.stat().st_size
    components = sum(file.stat().st_size for file in _files(_local_components(source)))
    # Besides the published files the naive one, and for each format one with all weights rounded.
    rounded = len(settings.formats) if settings.recipe.rounding != "nearest" else 0
    check_room(home(), size * (len(settings.formats) + rounded + 1))
    check_room(folder, size * len(settings.formats) + components)


def _fill(target: Path, source: Source, files: list[Path], measured: Path, plans: list[Plan], facts: dict) -> None:
    """Put the products together as they are uploaded."""
    for file in files:
        shutil.copyfile(file, target / file.name)
    shutil.copytree(measured, target, dirs_exist_ok=True)
    _draw(target, source, plans)
    examples = json.loads((target / _EXAMPLES).read_text(encoding="utf-8"))
    (target / _EXAMPLES).unlink()
    if (text := licence_text(source.licence, source.licence_text)) is not None:
        write_atomically(target / LICENCE_FILE, text.encode())
    components = _local_components(source)
    if components:
        shutil.copyfile(Path(source.base) / MODEL_INDEX, target / MODEL_INDEX)
    for component in components:
        shutil.copytree(component, target / component.name, ignore=_ignore_foreign)
    record = facts | {"examples": examples, CONTENTS: sorted([*list_contents(target), CARD])}
    write_atomically(target / RECORD, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
    write_card(target)


def _draw(target: Path, source: Source, plans: list[Plan]) -> None:
    """What was decided in the last of the published files, and what all of them cost and give."""
    evaluation = Evaluation.load(target / METRICS)
    whole, *variants = evaluation.variants
    points = {v.label: (v.file_bytes / whole.file_bytes, v.latent_mse_mean) for v in variants}
    plots.save(plots.sensitivity(plans[-1]), target / IMAGES / plots.SENSITIVITY)
    if plans[-1].quantized:
        plots.save(plots.weights(source.checkpoint, plans[-1]), target / IMAGES / plots.WEIGHTS)
    plots.save(plots.error_against_size(points), target / IMAGES / plots.SIZES)


def _settle(settings: PublishSettings, source: Source) -> PublishSettings:
    """The settings with everything that was left open decided, as it will be recorded."""
    recipe = settings.recipe
    if recipe.keep_ratio is None and recipe.budget is None:
        recipe = replace(recipe, keep_ratio=source.checkpoint.architecture.keep_ratio)

    def decide(part):
        device = pick_device(part.device)
        dtype = str(pick_dtype(part.dtype, device)).removeprefix("torch.")
        return replace(part, device=device.type, dtype=dtype)

    return replace(
        settings, recipe=recipe, calibration=decide(settings.calibration), evaluation=decide(settings.evaluation)
    )


def _maker(device: str) -> list:
    """What a computed product depends on besides its inputs: our code, the libraries, the hardware."""
    return [code_digest(), versions(), describe(torch.device(device))]


def _calibrated(workspace: Workspace, source: Source, settings: CalibrationSettings) -> Calibration:
    made_from = [_maker(settings.device), asdict(settings), source.prompts.calibration, _base_identity(source)]
    path = workspace.product("calibration", made_from, "calibration.safetensors")
    if not path.exists():
        calibrate(source, settings).save(path)
    return Calibration.load(path)


def _rounded(
    workspace: Workspace, source: Source, calibration: Calibration, plans: dict[Format, Plan], settings: PublishSettings
) -> dict[Format, Path | None]:
    """By format the file with all weights rounded by the recipe; None where they are rounded when they are written."""
    recipe = settings.recipe
    if recipe.rounding == "nearest":
        return dict.fromkeys(plans)
    made_from = [
        _maker(settings.calibration.device),
        calibration.made_by,
        source.prompts.calibration,
        _base_identity(source),
        asdict(recipe.compensation),
    ]
    paths = {
        version: workspace.product("rounded", [made_from, version.value, plan.as_rows()], "rounded.safetensors")
        for version, plan in plans.items()
    }
    missing = {version: path for version, path in paths.items() if not path.exists()}
    if missing:
        write_compensated(
            source.checkpoint,
            calibration,
            {version: plans[version] for version in missing},
            missing,
            recipe.compensation,
            source_sha256=source.sha256,
            memory=settings.calibration_memory,
            device=settings.calibration.device,
        )
    return paths


def _errors(
    workspace: Workspace, source: Source, plan: Plan, rounded: Path | None, settings: PublishSettings
) -> dict[str, float] | None:
    """Measured error of each weight by key, if the recipe keeps by that."""
    recipe = settings.recipe
    if recipe.keep_by != "error":
        return None
    made_from = [
        _maker(settings.calibration.device),
        asdict(settings.calibration),
        asdict(recipe.measurement),
        source.prompts.calibration,
        _base_identity(source),
        rounded.parent.name if rounded else None,
        plan.version.value,
        plan.as_rows(),
    ]
    path = workspace.product("errors", made_from, "errors.json")
    if not path.exists():
        codes = codes_of(source.checkpoint, plan.version, rounded, settings.calibration.device)
        errors = measure_errors(source, plan, codes, settings.calibration, recipe.measurement)
        write_atomically(path, (json.dumps(errors, indent=2) + "\n").encode())
    return json.loads(path.read_text(encoding="utf-8"))


def _quantized(
    workspace: Workspace, source: Source, plan: Plan, name: str, device: str, rounded: Path | None = None
) -> Path:
    made_from = [
        code_digest(),
        plan.recipe,
        plan.version.value,
        plan.as_rows(),
        source.hub_base,
        rounded.parent.name if rounded else None,
    ]
    path = workspace.product("quantized", made_from, name)
    if not path.exists():
        write_quantized(
            source.checkpoint,
            plan,
            path,
            source_sha256=source.sha256,
            base=source.hub_base,
            rounded=rounded,
            device=device,
        )
    return path


def _measured(workspace: Workspace, source: Source, files: dict[str, Path], settings: EvaluationSettings) -> Path:
    """A folder with metrics.json, the pictures and the list of what they show."""
    made_from = [
        _maker(settings.device),
        asdict(settings),
        source.prompts.evaluation,
        _base_identity(source),
        {label: path.parent.name for label, path in files.items()},
    ]
    folder = workspace.product("evaluation", made_from, "measured")
    if not folder.exists():
        evaluation = evaluate(source, files, settings)
        replace_folder(folder, lambda target: _save_evaluation(evaluation, target))
    return folder


def _save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    evaluation.save(folder / METRICS)
    (folder / IMAGES).mkdir()
    best = evaluation.variants[-1]
    worst = min(range(len(best.pairs)), key=lambda i: best.pairs[i].ssim)
    shown = sorted({*range(min(_SHOWN - 1, len(best.pairs))), worst})
    examples = []
    for number, i in enumerate(shown, start=1):
        pictures = {label: images[i] for label, images in evaluation.images.items()}
        comparison(pictures).save(folder / IMAGES / f"compare-{number:02}.png")
        single = f"{IMAGES}/example-{number:02}.png"
        Image.fromarray(pictures[best.label]).save(folder / single)
        pair = best.pairs[i]
        examples.append({"prompt": pair.prompt, "seed": pair.seed, "image": single, "worst": i == worst})
    write_atomically(folder / _EXAMPLES, json.dumps(examples).encode())


def _file_facts(path: Path, plan: Plan) -> dict:
    return {
        "file": path.name,
        "sha256": file_sha256(path),
        "bytes": path.stat().st_size,
        "kept_layers": len(plan.kept),
        "layers": len(plan.decisions),
    }


def _local_components(source: Source) -> list[Path]:
    """Component folders that go into the published one: those of a local base. A Hub base is only named."""
    return [] if source.hub_base else component_folders(Path(source.base), source.checkpoint.architecture)


def _files(folders: list[Path]) -> list[Path]:
    """All files of component folders that are published."""
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file() and _publishable(path)]


def _publishable(path: Path) -> bool:
    """Weights, configurations and vocabularies; no pickles, caches or anything else that lies about."""
    return path.suffix in PUBLISHED_SUFFIXES and not path.name.startswith(".")


def _ignore_foreign(folder: str, names: list[str]) -> list[str]:
    """For `shutil.copytree`: what of `folder` stays behind."""
    paths = [Path(folder) / name for name in names]
    return [path.name for path in paths if path.name.startswith(".") or not (path.is_dir() or _publishable(path))]


def _base_identity(source: Source):
    """What tells this base from another: a Hub repo's name, or name, size and time of each of a folder's files."""
    if source.hub_base is not None:
        return source.hub_base
    base = Path(source.base)
    files = [base / MODEL_INDEX, *_files(_local_components(source))]
    return [[str(file.relative_to(base)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
