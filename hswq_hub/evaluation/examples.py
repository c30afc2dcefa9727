"""Saves an evaluation: its figures, pictures side by side, and the list of what these show."""

import json
from pathlib import Path

from PIL import Image

from ..common.files import write_atomically
from ..common.layout import EXAMPLES, IMAGES, METRICS
from .pictures import comparison
from .results import Evaluation

_SHOWN = 4


def save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write all of it into `folder`. Shown are the first few pairs, and the worst of the last variant."""
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
    write_atomically(folder / EXAMPLES, json.dumps(examples).encode())
