"""What `publish` foretells of each step, from trials alone, against the time and memory that the step then takes.

    python benchmarks/forecast.py --work build/forecast

Three models: the bundled one, and two of random weights, whose pictures show nothing but cost what they cost: one that
is four times as wide and makes pictures of 384 pixels, one of Z-Image's published width with one block of each kind.
Each is published in a workspace of its own, so that nothing is known of it before. Memory is what a step took at its
peak beyond what the process had before. Run it on a machine that does nothing else; `--only` takes some of the models.
"""

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import psutil
import torch
from results import put_section
from safetensors.torch import save_file

from hswq_hub.common.hardware import PeakMemory, describe, pick_device
from hswq_hub.common.text import text_table
from hswq_hub.settings import GB, CalibrationSettings, ErrorSettings, EvaluationSettings, PublishSettings, recipe
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.publish import PublishPlan
from hswq_hub.workflow.steps import make
from hswq_runtime.checkpoints.configuration import as_text
from hswq_runtime.formats import Metadata

SECTION = "forecast"
WIDE = {
    "in_channels": 16,
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
    calibration=CalibrationSettings(samples=16, calls=16, size=384),
    evaluation=EvaluationSettings(pairs=2, size=384),
)
PUBLISHED = WIDE | {"dim": 3840, "n_layers": 1, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48]}
VERY_FEW = replace(
    FEW,
    calibration=CalibrationSettings(samples=4, calls=4, size=128),
    evaluation=EvaluationSettings(pairs=1, size=128),
)
MODELS = ("bundled", "wide", "published width")
HEADINGS = ("model", "step", "foretold, s", "taken, s", "taken / foretold")
MEMORY_HEADINGS = ("model", "step", "foretold, GB", "taken, GB", "taken / foretold")
_SHORT = 1.0
"""Steps of fewer seconds have no row: they are of no interest to who waits."""


def random_model(path: Path, config: dict[str, object]) -> Path:
    """A Z-Image of random weights for the bundled model's components, in diffusers' layout."""
    if not path.exists():
        torch.manual_seed(0)
        model = diffusers.ZImageTransformer2DModel(**config).to(torch.bfloat16)
        stated = as_text("ZImageTransformer2DModel", config)
        save_file(model.state_dict(), path, metadata={Metadata.CONFIG.value: stated})
    return path


def rows_of(name: str, plan: PublishPlan) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Rows of the table of times, and of that of memory."""
    foretold, memory = {step: plan.forecast.seconds(step) for step in plan.steps}, plan.memories[0]
    in_memory = {"calibrate": memory.pictures, "round": memory.rounding}
    held = []
    for step in plan.steps:
        before = psutil.Process().memory_info().rss
        with PeakMemory(torch.device("cpu")) as peak:
            make([step], print)
        if step.name in in_memory and peak.bytes is not None:
            known, taken_here = in_memory[step.name] / GB, (peak.bytes - before) / GB
            held.append((name, step.name, f"{known:.2f}", f"{taken_here:.2f}", f"{taken_here / known:.2f}"))
    taken = {step: step.require_made().seconds for step in plan.steps}
    rows = [
        (name, step.name, f"{foretold[step]:.1f}", f"{seconds:.1f}", f"{seconds / foretold[step]:.2f}")
        for step, seconds in taken.items()
        if max(seconds, foretold[step]) >= _SHORT
    ]
    whole, really = sum(foretold.values()), sum(taken.values())
    return [*rows, (name, "all", f"{whole:.1f}", f"{really:.1f}", f"{really / whole:.2f}")], held


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--work", type=Path, required=True, help="folder for the model and what is made of it")
    command.add_argument("--only", choices=MODELS, nargs="+", default=MODELS)
    args = command.parse_args()
    work = args.work
    work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work / "home", ignore_errors=True)
    os.environ["HSWQ_HOME"] = str((work / "home").absolute())
    demo = resolve("demo")
    rows, held = [], []
    for name, config, settings in (
        ("bundled", None, None),
        ("wide", WIDE, FEW),
        ("published width", PUBLISHED, VERY_FEW),
    ):
        if name not in args.only:
            continue
        source = demo
        if config is not None:
            file = random_model(work / f"{name.replace(' ', '-')}.safetensors", config)
            source = resolve(str(file), base=demo.base, licence="apache-2.0")
        times, memory = rows_of(name, PublishPlan.of(source, settings, work / name.replace(" ", "-")))
        rows, held = rows + times, held + memory
    print(text_table(HEADINGS, rows))
    print(text_table(MEMORY_HEADINGS, held))
    put_section(
        SECTION,
        [
            "## What was foretold, and what it took",
            "",
            f"`python benchmarks/forecast.py`, on {describe(pick_device('auto'))}. Steps below a second have no row.",
            "",
            *("| " + " | ".join(row) + " |" for row in (HEADINGS, ["---"] * len(HEADINGS), *rows)),
            "",
            *("| " + " | ".join(row) + " |" for row in (MEMORY_HEADINGS, ["---"] * len(MEMORY_HEADINGS), *held)),
        ],
    )


if __name__ == "__main__":
    main()
