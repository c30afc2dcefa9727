"""The bundled model, shown by default: the page needs no network and opens within seconds.

Its files are what `hswq-hub publish demo` has made on this machine, or else what it made when this release was: those
ship with the package.
"""

import json
from functools import cache
from pathlib import Path

from hswq_hub.cards.record import PublishedRecord
from hswq_hub.common.layout import RECORD
from hswq_hub.quantization.plan import Plan
from hswq_hub.settings import DEFAULT_FORMATS
from hswq_hub.sources.source import Source
from hswq_hub.workflow.publish import PublishPlan
from hswq_hub.workflow.stages.quantize import naive_name, naive_step, plan_of, quantized_name
from hswq_hub.workflow.steps import Step, make, silent
from hswq_hub.workflow.workspace import Workspace
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.formats import Format

SHIPPED = Path(__file__).parents[1] / "bundled"
"""Files and record of a published folder of the bundled model; `make cards` puts them there."""

ABOUT = """
## The bundled demo model

A small Z-Image, trained on drawn scenes of 128 pixels: a house, a boat or a tent in a landscape, under a sky. It ships
with `hswq-hub` so that this page needs neither network nor GPU.

**What you compare.** *Original* is the full-precision checkpoint. *Naive FP8* is a plain cast of every layer. *V1* and
*V2*, in FP8, are what `hswq-hub publish demo` makes with the default recipe: on this machine, or, before you run it,
files that ship with this release. *INT8* is what `--format int8` makes, in ComfyUI's format. To see its figures and
card here, run

    hswq-hub publish demo
    hswq-hub demo hswq-published/demo-hswq

Licence: Apache-2.0.
"""


def quantized_file(source: Source, format: Format) -> Path:
    """The quantized file of `format`."""
    if format in (made := made_here(source)):
        return made[format].folder / quantized_name(source.name, format)
    return SHIPPED / shipped_record().files[format].file


def plans(source: Source) -> dict[Format, Plan]:
    """What was decided for each weight."""
    made = {format: plan_of(step) for format, step in made_here(source).items()}
    return {format: made.get(format, plan) for format, plan in shipped_record().plans.items()}


def made_here(source: Source) -> dict[Format, Step]:
    """The steps of `publish`, as it is without options, that wrote files; none if not all of them are done."""
    steps = {step.name: step for step in PublishPlan.of(source).steps}
    writing = {format: steps[f"write {format.value}"] for format in DEFAULT_FORMATS}
    return writing if all(step.made is not None for step in writing.values()) else {}


@cache
def shipped_record() -> PublishedRecord:
    """The record of the files that ship with the package."""
    return PublishedRecord.from_document(json.loads((SHIPPED / RECORD).read_text(encoding="utf-8")))


def naive_file(original: Checkpoint, sha256: str) -> Path:
    """A plain cast of the original, made now if it is not in the workspace."""
    name = original.path.stem
    workspace = Workspace(name, sha256)
    step = naive_step(workspace.folder, original, name, sha256=sha256)
    with workspace.locked(silent):
        workspace.note_need(f"the page, {step.name}", [step])
        make([step], silent)
    return step.folder / naive_name(name)
