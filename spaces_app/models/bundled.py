"""The bundled model, shown by default: the page needs no network and opens within seconds.

V1 and V2 are quantized at first use and kept in the workspace, by a quick recipe: rounding to nearest, few calibration
pictures. `hswq-hub publish demo` takes longer and comes closer to the original.
"""

from pathlib import Path

from hswq_hub.quantization.plan import Plan
from hswq_hub.settings import CALIBRATION_MEMORY, CalibrationSettings, recipe
from hswq_hub.sources.source import Source
from hswq_hub.workflow.stages.calibrate import calibration_step
from hswq_hub.workflow.stages.quantize import Quantization, naive_name, naive_step, plan_of, quantized_name
from hswq_hub.workflow.steps import Step, make, silent
from hswq_hub.workflow.workspace import Workspace
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.formats import Format

QUICK = CalibrationSettings(samples=4, steps=9, calls=1, device="cpu")
"""On the CPU everywhere: ZeroGPU has no GPU while the page starts, and the model is tiny."""
_RECIPE = "hswq"

ABOUT = f"""
## The bundled demo model

A small Z-Image, trained on drawn pictures: shapes of one colour on a background. It ships with `hswq-hub` so that this
page needs neither network nor GPU.

**What you compare.** *Original* is the full-precision checkpoint. *Naive FP8* is a plain cast of every layer. *V1* and
*V2* were quantized on this machine when the page started, with the method as published (recipe `{_RECIPE}`: rounding to
nearest, {QUICK.samples} calibration pictures), because that takes seconds. The default recipe of
`hswq-hub publish demo` takes about two minutes and comes closer to the original; to see its files here, run

    hswq-hub publish demo
    hswq-hub demo hswq-published/demo-hswq

Licence: Apache-2.0.
"""


def quick_file(source: Source, format: Format) -> Path:
    """The quantized file of `format`, made now if it is not in the workspace."""
    return _written(source)[format].folder / quantized_name(source.name, format)


def quick_plans(source: Source) -> dict[Format, Plan]:
    """What was decided for each weight."""
    return {format: plan_of(step) for format, step in _written(source).items()}


def naive_file(original: Checkpoint, sha256: str) -> Path:
    """A plain cast of the original, made now if it is not in the workspace."""
    name = original.path.stem
    workspace = Workspace(name, sha256)
    step = naive_step(workspace.folder, original, name, sha256=sha256)
    _make(workspace, [step])
    return step.folder / naive_name(name)


def _written(source: Source) -> dict[Format, Step]:
    """The steps that wrote V1 and V2; they are done."""
    workspace = Workspace(source.name, source.sha256)
    gathered = calibration_step(workspace.folder, source, QUICK)
    how = (tuple(Format), recipe(_RECIPE), QUICK, CALIBRATION_MEMORY)
    steps, writing = Quantization(workspace.folder, source, gathered, *how).steps()
    _make(workspace, [gathered, *steps])
    return writing


def _make(workspace: Workspace, steps: list[Step]) -> None:
    with workspace.locked(silent):
        workspace.note_need(f"the page, {steps[-1].name}", steps)
        make(steps, silent)
