"""What `publish` foretells of each step, from trials alone, against what the step then takes.

    python benchmarks/forecast.py --work build/forecast

Two models: the bundled one, and one of random weights that is four times as wide and makes pictures of 192 pixels (its
pictures show nothing; what they cost is real). Each is published in a workspace of its own, so that nothing is known of
it before. Run it on a machine that does nothing else.
"""

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import torch
from results import put_section
from safetensors.torch import save_file

from hswq_hub.common.hardware import describe, pick_device
from hswq_hub.common.text import text_table
from hswq_hub.settings import CalibrationSettings, ErrorSettings, EvaluationSettings, PublishSettings, recipe
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.publish import PublishPlan
from hswq_hub.workflow.steps import make
from hswq_runtime.checkpoints.configuration import as_text
from hswq_runtime.formats import Metadata

SECTION = "forecast"
WIDE = {
    "in_channels": 8,
    "dim": 768,
    "n_layers": 3,
    "n_refiner_layers": 1,
    "n_heads": 12,
    "n_kv_heads": 12,
    "cap_feat_dim": 128,
    "axes_dims": [16, 24, 24],
    "axes_lens": [1024, 512, 512],
}
FEW = PublishSettings(
    recipe=replace(recipe(), measurement=ErrorSettings(calls=4)),
    calibration=CalibrationSettings(samples=16, calls=16, size=192),
    evaluation=EvaluationSettings(pairs=2, size=192),
)
HEADINGS = ("model", "step", "foretold, s", "taken, s", "taken / foretold")
_SHORT = 1.0
"""Steps of fewer seconds have no row: they are of no interest to who waits."""


def wide_model(folder: Path) -> Path:
    """A Z-Image of random weights for the bundled model's components, in diffusers' layout."""
    path = folder / "wide.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        model = diffusers.ZImageTransformer2DModel(**WIDE).to(torch.bfloat16)
        stated = as_text("ZImageTransformer2DModel", WIDE)
        save_file(model.state_dict(), path, metadata={Metadata.CONFIG.value: stated})
    return path


def rows_of(name: str, plan: PublishPlan) -> list[tuple[str, ...]]:
    foretold = {step: plan.forecast.seconds(step) for step in plan.steps}
    make(plan.steps, print)
    taken = {step: step.require_made().seconds for step in plan.steps}
    rows = [
        (name, step.name, f"{foretold[step]:.1f}", f"{seconds:.1f}", f"{seconds / foretold[step]:.2f}")
        for step, seconds in taken.items()
        if max(seconds, foretold[step]) >= _SHORT
    ]
    whole, really = sum(foretold.values()), sum(taken.values())
    return [*rows, (name, "all", f"{whole:.1f}", f"{really:.1f}", f"{really / whole:.2f}")]


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--work", type=Path, required=True, help="folder for the model and what is made of it")
    work = command.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work / "home", ignore_errors=True)
    os.environ["HSWQ_HOME"] = str((work / "home").absolute())
    demo = resolve("demo")
    wide = resolve(str(wide_model(work)), base=demo.base, licence="apache-2.0")
    rows = rows_of("bundled", PublishPlan.of(demo, folder=work / "demo"))
    rows += rows_of("wide", PublishPlan.of(wide, FEW, work / "wide"))
    print(text_table(HEADINGS, rows))
    put_section(
        SECTION,
        [
            "## What was foretold, and what it took",
            "",
            f"`python benchmarks/forecast.py`, on {describe(pick_device('auto'))}. Steps below a second have no row.",
            "",
            *("| " + " | ".join(row) + " |" for row in (HEADINGS, ["---"] * len(HEADINGS), *rows)),
        ],
    )


if __name__ == "__main__":
    main()
