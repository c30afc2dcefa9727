"""Parts of the page as HTML. Untrusted text is escaped here and nowhere else."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from hswq_hub.common.text import megabytes
from hswq_hub.evaluation.plots import by_sensitivity
from hswq_hub.quantization.plan import Plan

from ..comparison.runs import Run, png
from ..comparison.worker import VariantDone

_TILE_SIDE = 256
_HEADINGS = {
    "": "",
    "SSIM": "structural similarity to the reference, Gaussian window of 11 × 11; 1 is equal",
    "PSNR": "of the decoded pictures",
    "latent MSE": "mean squared difference of the latents before they are decoded",
    "seconds": "from prompt to picture",
    "peak memory": "the most in use meanwhile: of the GPU, or of this page's process",
    "weights": "of the denoiser in memory",
    "file": "on disk",
}


@dataclass(frozen=True)
class Tile:
    """One variant in the strip: how far it is, a small PNG of it, a line below its name."""

    label: str
    progress: float = 0.0
    picture: bytes | None = None
    caption: str = "waiting"


def strip(tiles: Sequence[Tile]) -> str:
    """All variants side by side, each with its progress."""
    return f'<div class="strip">{"".join(_tile(tile) for tile in tiles)}</div>'


def _tile(tile: Tile) -> str:
    image = f'<img alt="{escape(tile.label)}" src="{data_url(tile.picture)}">' if tile.picture else ""
    state = "done" if tile.progress >= 1 else "working" if tile.progress > 0 else "waiting"
    return (
        f'<figure class="tile {state}" data-variant="{escape(tile.label)}"><div class="frame">{image}</div>'
        f'<div class="bar"><i style="width:{100 * tile.progress:.0f}%"></i></div>'
        f"<figcaption><b>{escape(tile.label)}</b><span>{escape(tile.caption)}</span></figcaption></figure>"
    )


def small(image: np.ndarray) -> bytes:
    """A PNG for a tile: every n-th pixel of a large picture."""
    stride = max(1, math.ceil(max(image.shape[:2]) / _TILE_SIDE))
    return png(np.ascontiguousarray(image[::stride, ::stride]))


def finished(run: Run) -> str:
    """The strip of a finished run."""
    return strip(
        [Tile(made.label, 1.0, run.pictures[made.label], _closeness(made, run.request.reference)) for made in run.made]
    )


def _closeness(made: VariantDone, reference: str) -> str:
    return "reference" if made.label == reference else f"SSIM {made.figures.ssim:.4f}"


def measures(run: Run, query: str) -> str:
    """The table: how close each variant came, what it cost; and a link that shows the same comparison again."""
    rows = "".join(_row(made, run.request.reference) for made in run.made)
    cells = "".join(f'<th scope="col" title="{meaning}">{heading}</th>' for heading, meaning in _HEADINGS.items())
    request = run.request
    settings = (
        f"seed {request.seed} · {request.steps} steps · guidance {request.guidance:g} · {request.size} × {request.size}"
    )
    lora = f" · LoRA {escape(request.lora)}" if request.lora else ""
    return (
        f'<div class="measures"><table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="fine"><q>{escape(request.prompt)}</q> · {settings}{lora} · '
        f'<a class="share" href="{escape(query)}">link to this comparison</a></p>'
    )


def _row(made: VariantDone, reference: str) -> str:
    figures = made.figures
    if made.label == reference:
        closeness = ("reference", "", "")
    else:
        psnr = "∞" if figures.psnr is None else f"{figures.psnr:.1f} dB"
        closeness = (f"{figures.ssim:.4f}", psnr, f"{figures.latent_mse:.2e}")
    peak = "not measured" if made.peak_bytes is None else megabytes(made.peak_bytes)
    cells = (*closeness, f"{figures.seconds:.1f}", peak, megabytes(made.weight_bytes), megabytes(made.file_bytes))
    return (
        f'<tr data-variant="{escape(made.label)}"><th scope="row">{escape(made.label)}</th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
    )


def amplified(left: str, right: str, factor: int) -> str:
    """What the difference picture shows."""
    return f'<p class="fine">|{escape(left)} − {escape(right)}|, amplified × {factor}; black where they agree.</p>'


def status(text: str, kind: str = "info") -> str:
    """A line about what goes on; kind: "info", "error"."""
    return f'<p class="status {kind}" role="status">{escape(text)}</p>' if text else ""


def layers(plan: Plan) -> str:
    """What the plan does to each weight: a bar for its sensitivity, and why."""
    ranked, meaning = by_sensitivity(plan)
    values = [value for _, value in ranked if value > 0] or [1.0]
    low, high = math.log(min(values)) - 0.5, math.log(max(values)) + 0.1
    rows = "".join(
        f'<tr class="{"fp8" if decision.quantized else "kept"}"><th scope="row">{escape(decision.layer)}</th>'
        f"<td>{decision.number.name if decision.quantized else 'kept'}</td>"
        f'<td class="meter"><i style="width:{_length(value, low, high):.1f}%"></i></td><td>{value:.2e}</td>'
        f"<td>{escape(decision.reason)}</td></tr>"
        for decision, value in ranked
    )
    never = "".join(
        f'<tr class="kept"><th scope="row">{escape(d.layer)}</th><td>kept</td><td></td><td></td>'
        f"<td>{escape(d.reason)}</td></tr>"
        for d in plan.decisions
        if d.never
    )
    quantized, all_ = len(plan.quantized), len(plan.decisions)
    return (
        f'<p class="lead"><b>{quantized}</b> of {all_} weights are quantized in {plan.format.label}, '
        f"<b>{len(plan.kept)}</b> stay in full precision. The bars show the {escape(meaning)}, on a logarithmic "
        'scale.</p><div class="layers"><table><thead><tr><th scope="col">layer</th><th scope="col">stored as</th>'
        f'<th scope="col" colspan="2">sensitivity</th><th scope="col">why</th></tr></thead>'
        f"<tbody>{rows}{never}</tbody></table></div>"
    )


def _length(value: float, low: float, high: float) -> float:
    return 0.0 if value <= 0 else 100 * (math.log(value) - low) / (high - low)


def data_url(data: bytes) -> str:
    """A PNG file as an address."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def as_json(run: Run, query: str, *, pictures: bool = True) -> Mapping:
    """What the API answers: figures, and pictures as data URLs, so that no path of this machine is in it."""
    return {
        "prompt": run.request.prompt,
        "seed": run.request.seed,
        "link": query,
        "reference": run.request.reference,
        "variants": [
            {
                "label": made.label,
                "ssim": made.figures.ssim,
                "psnr": made.figures.psnr,
                "latent_mse": made.figures.latent_mse,
                "seconds": made.figures.seconds,
                "peak_bytes": made.peak_bytes,
                "weight_bytes": made.weight_bytes,
                "file_bytes": made.file_bytes,
                **({"picture": data_url(run.pictures[made.label])} if pictures else {}),
            }
            for made in run.made
        ],
    }
