"""What the perceptual metrics of a card add to measuring a file.

    python benchmarks/metrics.py [--pairs 16] [--size 1024]

Pictures of the demo model are enlarged to that size and changed a little, since what they show decides nothing about
time. SSIM, PSNR and latent error of all pairs, then the same with each metric, and with all; the median of three. Run
it on a machine that does nothing else.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from results import put_section

from hswq_hub.common.hardware import describe, pick_device
from hswq_hub.evaluation import perceptual
from hswq_hub.evaluation.evaluate import compare_pairs
from hswq_hub.generation.generate import Sample

RUNS = 3
IMAGES = Path(__file__).parents[1] / "model_cards/demo-hswq/images"


def pictures(count: int, size: int) -> tuple[list[Sample], list[Sample]]:
    """Originals, and the same with some noise."""
    names = sorted(IMAGES.glob("example-*.png"))
    generator, originals, changed = np.random.default_rng(0), [], []
    for index in range(count):
        with Image.open(names[index % len(names)]) as picture:
            image = np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
        noise = generator.normal(0, 2, image.shape)
        latents = torch.zeros(1, 16, size // 8, size // 8)
        originals.append(Sample(latents, image, 0.0))
        changed.append(Sample(latents + 0.1, np.clip(image + noise, 0, 255).astype(np.uint8), 0.0))
    return originals, changed


def seconds(originals: list[Sample], changed: list[Sample], names: list[str]) -> float:
    pairs, taken = [("", seed) for seed in range(len(originals))], []
    for _ in range(RUNS):
        begin = time.perf_counter()
        compare_pairs(pairs, originals, changed, names)
        taken.append(time.perf_counter() - begin)
    return median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--size", type=int, default=1024)
    asked = parser.parse_args()
    originals, changed = pictures(asked.pairs, asked.size)
    every = list(perceptual.chosen(None, asked.size))
    plain = seconds(originals, changed, [])
    rows = [(perceptual.METRICS[name].title, seconds(originals, changed, [name])) for name in every]
    rows.append(("all of these", seconds(originals, changed, every)))
    lines = [
        "## What perceptual metrics take",
        "",
        f"{asked.pairs} pairs of {asked.size} × {asked.size} pixels, {describe(pick_device('cpu'))}, the "
        f"median of {RUNS}. SSIM, PSNR and latent error alone: {plain:.1f} s.",
        "",
        "| with | seconds more |",
        "|---|---:|",
        *(f"| {title} | {taken - plain:.1f} |" for title, taken in rows),
    ]
    put_section("metrics", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
