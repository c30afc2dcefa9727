"""From a source to a finished folder: which steps there are, in which order, and what each is made from.

    source ─ calibrate ─ quantize (V1, V2, naive) ─ evaluate ─ record, card ─ folder

Each step's product is kept in the workspace under a name that says what it was made from, so a second run does
only what is missing. The folder appears whole, when everything is there.
"""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from PIL import Image

from hswq_runtime.pipeline import MODEL_INDEX

from . import __version__
from .calibrate import Calibration, calibrate
from .card import IMAGES, LICENCE_FILE, METRICS, licence_text, write_card
from .evaluate import Evaluation, evaluate
from .files import write_atomically
from .hardware import pick_device, pick_dtype
from .pictures import comparison
from .quantize import Plan, plan_hswq, plan_naive, quantized_name, write_quantized
from .settings import CalibrationSettings, EvaluationSettings, PublishSettings
from .sources import Source
from .sources.source import file_sha256
from .targets import RECORD, check_room, check_target, replace_folder
from .workspace import Workspace

NAIVE = "naive FP8"
_SHOWN = 4
_EXAMPLES = "examples.json"


@dataclass(frozen=True)
class Published:
    """The finished folder and the figures in it."""

    folder: Path
    evaluation: Evaluation


def default_folder(source: Source) -> Path:
    """`hswq-published/<name>-hswq` below the working directory."""
    return Path("hswq-published") / f"{source.name}-hswq"


def publish(source: Source, folder: Path, settings: PublishSettings | None = None, *, command: str = "") -> Published:
    """Calibrate, quantize, measure, and write `folder` as it would be uploaded.

    Args:
        source: what to quantize.
        folder: free, empty, or made by an earlier run, which is then replaced.
        settings: formats, recipe, calibration and evaluation.
        command: the command line that does the same, for the card.

    Raises:
        TargetError: the folder holds something else, or the disk has no room.
        DeviceError: CUDA asked for and absent.
        HSWQError: whatever the steps raise; the folder is then as it was.
    """
    check_target(folder)
    settings = _settle(settings or PublishSettings(), source)
    workspace = Workspace(source.name, source.sha256)
    size = source.path.stat().st_size
    check_room(workspace.folder, size * (len(settings.formats) + 1))
    check_room(folder, size * len(settings.formats))

    device = settings.calibration.device
    calibration = _calibrated(workspace, source, settings.calibration)
    plans = [
        plan_hswq(source.checkpoint, calibration, version, settings.recipe, device) for version in settings.formats
    ]
    files = {
        NAIVE: _quantized(workspace, source, plan_naive(source.checkpoint), f"{source.name}-naive.safetensors", device)
    }
    for plan in plans:
        files[plan.version.label] = _quantized(workspace, source, plan, quantized_name(source, plan.version), device)
    measured = _measured(workspace, source, files, settings.evaluation)

    def fill(target: Path) -> None:
        for plan in plans:
            shutil.copyfile(files[plan.version.label], target / files[plan.version.label].name)
        shutil.copytree(measured, target, dirs_exist_ok=True)
        examples = json.loads((target / _EXAMPLES).read_text(encoding="utf-8"))
        (target / _EXAMPLES).unlink()
        record = {
            "tool": f"hswq-hub {__version__}",
            "name": source.name,
            "architecture": source.checkpoint.architecture.name,
            "base": source.hub_base,
            "licence": source.licence,
            "source": {"origin": source.origin, "file": source.path.name, "sha256": source.sha256},
            "command": command,
            "recipe": asdict(settings.recipe),
            "calibration": calibration.made_by,
            "files": {plan.version.value: _file_facts(files[plan.version.label], plan) for plan in plans},
            "examples": examples,
            "layers": {plan.version.value: plan.as_rows() for plan in plans},
        }
        write_atomically(target / RECORD, (json.dumps(record, indent=2) + "\n").encode())
        if (text := licence_text(source.licence)) is not None:
            write_atomically(target / LICENCE_FILE, text.encode())
        if source.hub_base is None:
            _copy_components(Path(source.base), target, source.checkpoint.architecture.component)
        write_card(target)

    replace_folder(folder, fill)
    return Published(folder, Evaluation.load(folder / METRICS))


def _settle(settings: PublishSettings, source: Source) -> PublishSettings:
    """The settings with everything that was left open decided, as it will be recorded."""
    recipe = settings.recipe
    if recipe.keep_ratio is None:
        recipe = replace(recipe, keep_ratio=source.checkpoint.architecture.keep_ratio)

    def decide(part):
        device = pick_device(part.device)
        dtype = str(pick_dtype(part.dtype, device)).removeprefix("torch.")
        return replace(part, device=device.type, dtype=dtype)

    return replace(
        settings, recipe=recipe, calibration=decide(settings.calibration), evaluation=decide(settings.evaluation)
    )


def _calibrated(workspace: Workspace, source: Source, settings: CalibrationSettings) -> Calibration:
    made_from = [__version__, asdict(settings), source.prompts.calibration, source.base]
    path = workspace.product("calibration", made_from, "calibration.safetensors")
    if not path.exists():
        calibrate(source, settings).save(path)
    return Calibration.load(path)


def _quantized(workspace: Workspace, source: Source, plan: Plan, name: str, device: str) -> Path:
    made_from = [__version__, plan.recipe, plan.version.value, plan.as_rows(), source.hub_base]
    path = workspace.product(plan.recipe, made_from, name)
    if not path.exists():
        write_quantized(source.checkpoint, plan, path, source_sha256=source.sha256, base=source.hub_base, device=device)
    return path


def _measured(workspace: Workspace, source: Source, files: dict[str, Path], settings: EvaluationSettings) -> Path:
    """A folder with metrics.json, the pictures and the list of what they show."""
    made_from = [
        __version__,
        asdict(settings),
        source.prompts.evaluation,
        source.base,
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


def _copy_components(base: Path, target: Path, denoiser: str) -> None:
    """Everything of a diffusers folder but its denoiser, so that the published folder is complete by itself."""
    shutil.copyfile(base / MODEL_INDEX, target / MODEL_INDEX)
    names = [name for name, value in json.loads((base / MODEL_INDEX).read_text()).items() if isinstance(value, list)]
    for name in names:
        if name != denoiser and (base / name).is_dir():
            shutil.copytree(base / name, target / name)
