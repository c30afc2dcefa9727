"""How close quantized UNets are to their original: the small trained SDXL of tools/train_demo_unet.py.

    python tools/train_demo_unet.py --out build/demo_unet
    python benchmarks/unet.py build/demo_unet

Files and figures are those of `hswq-hub publish`, with the prompts of the bundled demo model: they are captions of the
kind that the UNet was trained with. The section in RESULTS.md is written by this script.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from results import put_section

from hswq_hub.evaluation.report import HEADINGS, table
from hswq_hub.settings import (
    CalibrationSettings,
    ErrorSettings,
    EvaluationSettings,
    PublishSettings,
    RoundingSettings,
    recipe,
)
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.publish import publish
from hswq_runtime.formats import Reader

QUICK = {
    "measurement": ErrorSettings(samples=2, steps=4),
    "compensation": RoundingSettings(sweeps=1),
}
RECIPES = {
    "hswq": recipe("hswq"),
    "measured": replace(recipe(), **QUICK),
    "measured, for ComfyUI": replace(recipe(reader=Reader.COMFYUI), **QUICK),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--out", type=Path, default=Path("build/unet"))
    args = parser.parse_args()
    source = resolve(str(args.model / "demo-sdxl.safetensors"), str(args.model / "base"))
    source = replace(source, prompts=resolve("demo").prompts)
    pictures = {"guidance": args.guidance, "dtype": "float32"}
    rows, protocol = [], None
    for name in args.recipes:
        settings = PublishSettings(
            recipe=RECIPES[name],
            calibration=CalibrationSettings(samples=args.samples, steps=args.steps, calls=32, **pictures),
            evaluation=EvaluationSettings(pairs=args.pairs, steps=args.steps, **pictures),
        )
        evaluation = publish(source, args.out / name.replace(", ", "-").replace(" ", "-"), settings).evaluation
        protocol = evaluation.protocol
        first = 0 if not rows else 2  # the original and the naive cast are the same each time
        rows += [(name if i > 1 else "", *row) for i, row in enumerate(table(evaluation)) if i >= first]
    trained = torch.load(args.model / "training.pt", weights_only=True)["step"]
    channels = source.checkpoint.config["block_out_channels"]
    made, versions = protocol["generation"], protocol["versions"]
    lines = [
        "## A small SDXL",
        "",
        f"A UNet with SDXL's blocks ({channels} channels), trained for {trained} steps by `tools/train_demo_unet.py`, "
        "as a full checkpoint with text encoders and VAE: `size` is that of the whole file. "
        f"{args.pairs} held-out pairs, {made['size']} × {made['size']} pixels, {made['steps']} steps, guidance "
        f"{made['guidance']:g}, {protocol['dtype']}; {args.samples} calibration pictures of {args.steps} steps; what a "
        f"layer's error is measured on: {QUICK['measurement'].samples} pictures of {QUICK['measurement'].steps} steps; "
        f"sweeps: {QUICK['compensation'].sweeps}. On {protocol['hardware']}; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}.",
        "",
        "| recipe | " + " | ".join(HEADINGS) + " |",
        "|---|---|" + "---:|" * (len(HEADINGS) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    put_section("unet", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
