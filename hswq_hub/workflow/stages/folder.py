"""The stage `folder`: what is uploaded.

Quantized files, figures, pictures, card, licence, and the components of a local base.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from hswq_runtime.checkpoints.configuration import CONFIG, as_text
from hswq_runtime.checkpoints.locate import MODEL_INDEX
from hswq_runtime.formats import Format, Number

from ... import __version__
from ...cards.card import write_card
from ...cards.facts import licence_facts, licence_text, source_facts
from ...common.files import write_atomically
from ...common.identity import code_digest
from ...common.layout import CARD, CONTENTS, EXAMPLES, IMAGES, LICENCE_FILE, METRICS, RECORD
from ...common.pieces import Pieces
from ...common.targets import list_contents, replace_folder
from ...evaluation import plots
from ...evaluation.digests import digests_of
from ...evaluation.report import floor_label
from ...evaluation.results import Evaluation
from ...evaluation.verdict import multiplied
from ...quantization.plan import Plan
from ...settings import Recipe
from ...sources.components import ignore_foreign, local_bytes, local_components
from ...sources.source import Source
from ..steps import PRODUCT_RECORD, Step, Work
from .calibrate import STATISTICS
from .quantize import plan_of

STAGE = "folder"
_DECIDING = ("generation", "calibration", "quantization", "evaluation", "cards")
ROOMS = (*(f"hswq_hub.{room}" for room in _DECIDING), __name__)
"""The code that decides the product."""
_STATE = "state.json"


def folder_step(
    place: Path,
    source: Source,
    folder: Path,
    recipe: Recipe,
    command: str,
    calibration: Step,
    writing: Mapping[Format, Step],
    measured: Step,
) -> Step:
    """Put `folder` together. The product in the workspace says only how it was left.

    `command` is shown by the card; a folder that another spelling of it made is as good.
    """
    facts = _facts_of(source, folder.resolve().name, recipe)

    def make(product: Path, _: Pieces) -> None:
        made_by = json.loads((calibration.folder / STATISTICS).with_suffix(".json").read_text())["made_by"]
        record = facts | {"command": command, "calibration": made_by}
        replace_folder(folder, lambda new: fill_folder(new, source, record, writing, measured.folder))
        write_atomically(product / _STATE, json.dumps(_state_of(folder)).encode())

    def holds(product: Path) -> bool:
        return bool(json.loads((product / _STATE).read_text()) == _state_of(folder))

    def work() -> Work:
        kept = sum(step.work().kept for step in writing.values()) + local_bytes(source)
        return Work(moved=2 * kept, kept=kept)

    made_from = [code_digest(*ROOMS), str(folder.resolve()), facts]
    inputs = (calibration, *writing.values(), measured)
    return Step(STAGE, STAGE, place, made_from, make, inputs, work, folder, holds)


def _facts_of(source: Source, repo: str, recipe: Recipe) -> dict[str, object]:
    """What the record says of the source and the settings. `repo`: the folder's name."""
    return {
        "tool": f"hswq-hub {__version__}",
        "name": source.name,
        "repo": repo,
        "architecture": source.checkpoint.architecture.name,
        "base": source.hub_base,
        "bundled": sorted(source.checkpoint.bundled),
        **licence_facts(source.licence),
        "source": source_facts(source),
        "prompts": source.prompts.facts(),
        "recipe": asdict(recipe),
    }


def fill_folder(
    target: Path, source: Source, facts: Mapping[str, object], writing: Mapping[Format, Step], measured: Path
) -> None:
    """Put the products together in `target`. facts: of the record. measured: what `save_evaluation` wrote."""
    plans = {format: plan_of(step) for format, step in writing.items()}
    for step in writing.values():
        for file in step.folder.glob("*.safetensors"):
            shutil.copyfile(file, target / file.name)
    shutil.copytree(measured, target, ignore=shutil.ignore_patterns(PRODUCT_RECORD), dirs_exist_ok=True)
    _draw(target, source, list(plans.values()))
    examples = json.loads((target / EXAMPLES).read_text(encoding="utf-8"))
    (target / EXAMPLES).unlink()
    if (text := licence_text(source.licence, source.licence_text)) is not None:
        write_atomically(target / LICENCE_FILE, text.encode())
    components = local_components(source)
    if components:
        shutil.copyfile(Path(source.base) / MODEL_INDEX, target / MODEL_INDEX)
    for component in components:
        shutil.copytree(component, target / component.name, ignore=ignore_foreign)
    checkpoint = source.checkpoint
    if components and checkpoint.stated is not None:  # for the original beside it, and for files of other tools
        place = target / checkpoint.architecture.component / CONFIG
        place.parent.mkdir()
        write_atomically(place, (as_text(checkpoint.architecture.model_class, checkpoint.whole_config) + "\n").encode())
    record = dict(facts) | {
        "files": {format.value: _file_facts(step, plans[format]) for format, step in writing.items()},
        "layers": {format.value: plan.as_rows() for format, plan in plans.items()},
        "examples": examples,
        CONTENTS: sorted([*list_contents(target), CARD]),
    }
    write_atomically(target / RECORD, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
    write_card(target)


def _state_of(folder: Path) -> dict[str, list[int]]:
    """Size and time of each file of `folder`: what tells whether it is as it was."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def _draw(target: Path, source: Source, plans: Sequence[Plan]) -> None:
    """What was decided in the last of the published files, and what all of them cost and give."""
    evaluation = Evaluation.load(target / METRICS)
    whole, *variants = evaluation.variants
    points = {v.label: (v.file_bytes / whole.file_bytes, v.latent_mse_mean) for v in variants}
    plots.save(plots.sensitivity(plans[-1]), target / IMAGES / plots.SENSITIVITY)
    fp8 = [plan for plan in plans if plan.quantized and plan.format.numbers == (Number.FP8,)]
    if fp8:
        plots.save(plots.weights(source.checkpoint, fp8[-1]), target / IMAGES / plots.WEIGHTS)
    floor = evaluation.noise_floor
    line = (floor_label(floor), floor.latent_mse_mean) if floor and floor.latent_mse_mean else None
    found = {plan.format.label: plots.curve(source.checkpoint, plan) for plan in plans}
    curves = {label: curve for label, curve in found.items() if curve}
    plots.save(plots.error_against_size(points, line, curves), target / IMAGES / plots.SIZES)
    if any(d.input_error is not None for plan in plans for d in plan.quantized):
        measured = {found.label: found.latent_ratio for found in multiplied(evaluation) if found.latent_ratio}
        plots.save(plots.arithmetic(plans, measured), target / IMAGES / plots.ARITHMETIC)


def _file_facts(step: Step, plan: Plan) -> dict[str, object]:
    made = step.require_made()
    file = next(step.folder.glob("*.safetensors"))
    return {
        "file": file.name,
        "sha256": made.files[file.name],
        "bytes": file.stat().st_size,
        **asdict(digests_of(file)),
        "kept_layers": len(plan.kept),
        "layers": len(plan.decisions),
    }
