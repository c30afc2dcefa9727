"""The model that is shown when nobody names one: bundled, so that the page works offline and within seconds.

V1 and V2 are made when they are first asked for and kept in the workspace. It has to be quick: the method as
published (rounding to nearest), on few calibration pictures. `hswq-hub publish demo` takes its time and does better.
"""

import json
from pathlib import Path

from hswq_hub.calibrate import calibrate
from hswq_hub.files import write_atomically
from hswq_hub.quantize import Decision, Plan, plan_naive, quantize, quantized_name, write_quantized
from hswq_hub.settings import CalibrationSettings, recipe
from hswq_hub.sources import Source
from hswq_hub.targets import replace_folder
from hswq_hub.workspace import Workspace, code_digest
from hswq_runtime.checkpoint import Checkpoint
from hswq_runtime.formats import Format

QUICK = CalibrationSettings(samples=4, steps=9, calls=1, device="cpu")
"""On the CPU everywhere: ZeroGPU has no GPU while the page starts, and the model is tiny."""
_RECIPE = "hswq"
_PLANS = "plans.json"

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


def quick_files(source: Source) -> Path:
    """A folder with V1, V2 and the plans of both, made now if it is not in the workspace."""
    made_from = [code_digest(), _RECIPE, vars(QUICK)]
    folder = Workspace(source.name, source.sha256).product("page", made_from, "quick")
    if not folder.exists():
        replace_folder(folder, lambda target: _fill(source, target))
    return folder


def _fill(source: Source, folder: Path) -> None:
    made = quantize(source, calibrate(source, QUICK), tuple(Format), folder, recipe(_RECIPE), QUICK.device)
    plans = [plan for _, plan in made]
    rows = {plan.version.value: plan.as_rows() for plan in plans}
    write_atomically(folder / _PLANS, json.dumps(rows).encode())


def quick_file(source: Source, version: Format) -> Path:
    """The quantized file of `version`."""
    return quick_files(source) / quantized_name(source, version)


def quick_plans(source: Source) -> dict[Format, Plan]:
    """What was decided for each weight."""
    rows = json.loads((quick_files(source) / _PLANS).read_text(encoding="utf-8"))
    return {
        Format(version): Plan(Format(version), _RECIPE, tuple(Decision(**row) for row in decisions))
        for version, decisions in rows.items()
    }


def naive_file(original: Path, sha256: str) -> Path:
    """A plain cast of the original, in the workspace, made now if it is not there."""
    target = Workspace(original.stem, sha256).product("page", [code_digest(), "naive"], "naive.safetensors")
    if not target.exists():
        checkpoint = Checkpoint(original)
        write_quantized(checkpoint, plan_naive(checkpoint), target, source_sha256=sha256)
    return target
