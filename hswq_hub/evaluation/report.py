"""The tables of a report."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..common.text import megabytes
from ..quantization.plan import Plan
from .compare import TensorComparison
from .digests import Difference
from .intervals import Interval
from .perceptual import METRICS
from .results import ORIGINAL, Evaluation, Measured, NoiseFloor
from .verdict import ratio

MULTIPLIED = "multiplied in"
"""What a file is called as ComfyUI computes it on a GPU with FP8 or INT8 arithmetic: with the name of it."""
_FIDELITY = ("SSIM mean", "SSIM worst", "PSNR", "latent MSE")
_SHORT = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"}


def headings(evaluation: Evaluation) -> tuple[str, ...]:
    """Of :func:`table`."""
    *seen, latent = _FIDELITY
    titles = [METRICS[name].title for name in evaluation.perceptual]
    noise = ("× noise floor",) if evaluation.noise_floor else ()
    return ("format", "size", "weights", *seen, *titles, latent, *noise, "kept layers")


def table(evaluation: Evaluation, *, intervals: bool = False) -> list[tuple[str, ...]]:
    """A row of cells for each variant, under :func:`headings`; one more where ComfyUI computes it otherwise, and one
    for the noise floor. intervals: means have their intervals below them, on a line of their own."""
    floor, rows = evaluation.noise_floor, list[tuple[str, ...]]()
    for variant in evaluation.variants:
        facts = (variant.label, megabytes(variant.file_bytes), megabytes(variant.weight_bytes))
        kept = f"{variant.kept_layers} of {variant.layers}"
        if variant.label == ORIGINAL:
            best = (f"{METRICS[name].best:g}" for name in evaluation.perceptual)
            rows.append((*facts, "1 (reference)", "1", "∞", *best, "0", *(("0",) if floor else ()), kept))
            if floor:
                rows.append((floor_label(floor), "", "", *_cells(floor, evaluation, intervals), "1", ""))
            continue
        for row in (variant, variant.multiplied):
            if row is not None:
                label = variant.label if row is variant else f"{variant.label}, {MULTIPLIED} {variant.arithmetic}"
                cells = _cells(row, evaluation, intervals), _against(floor, row, intervals)
                rows.append((label, *facts[1:], *cells[0], *cells[1], kept))
    return rows


def short(dtype: str) -> str:
    """torch's name of a dtype as people write it: \"BF16\"."""
    return _SHORT.get(dtype, dtype)


def floor_label(floor: NoiseFloor) -> str:
    """What its row is called."""
    return f"{ORIGINAL} in {short(floor.dtype)} instead of {short(floor.instead_of)}"


def _cells(row: Measured, evaluation: Evaluation, intervals: bool) -> tuple[str, ...]:
    """The means of one row, and their intervals if they are wanted and there are any."""
    ssim, worst, psnr, latent = _fidelity(row.ssim_mean, row.ssim_worst, row.psnr_mean, row.latent_mse_mean)
    means, found = row.perceptual_mean, row.intervals if intervals else {}
    seen = [(name, f".{METRICS[name].digits}f") for name in evaluation.perceptual]
    return (
        _with(ssim, found.get("ssim_mean"), ".4f"),
        worst,
        psnr,
        *(_with(f"{means[name]:{form}}", found.get(name), form) for name, form in seen),
        _with(latent, found.get("latent_mse_mean"), ".2e"),
    )


def _against(floor: Measured | None, row: Measured, intervals: bool) -> tuple[str, ...]:
    """Its latent error over the noise floor's, in one cell; in none without a floor."""
    if floor is None:
        return ()
    times, interval = ratio(row, floor)
    return ("∞" if times is None else _with(f"{times:.3g}", interval if intervals else None, ".3g"),)


def _with(cell: str, interval: Interval | None, form: str) -> str:
    return cell if interval is None else f"{cell}\n[{interval.low:{form}}, {interval.high:{form}}]"


def earlier_table(earlier: Sequence[Mapping[str, Any]], repo: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and a row of Markdown for each file of earlier versions, as `history.earlier_versions` lists them."""
    rows = [
        (
            f"[`{entry['tag']}`](https://huggingface.co/{repo}/tree/{entry['tag']})",
            f"`{file['file']}`" + (", still here" if file.get("here") else ""),
            megabytes(file["bytes"]),
            *_fidelity(file["ssim_mean"], file["ssim_worst"], file["psnr_mean"], file["latent_mse_mean"]),
            str(entry["pairs"]),
        )
        for entry in earlier
        for file in entry["files"].values()
    ]
    return ("version", "file", "size", *_FIDELITY, "pairs"), rows


def _fidelity(ssim_mean: float, ssim_worst: float, psnr_mean: float | None, latent_mse_mean: float) -> tuple[str, ...]:
    psnr = "∞" if psnr_mean is None else f"{psnr_mean:.1f} dB"
    return (f"{ssim_mean:.4f}", f"{ssim_worst:.4f}", psnr, f"{latent_mse_mean:.2e}")


def protocol_table(evaluation: Evaluation) -> list[tuple[str, str]]:
    """How the figures were measured, a name and what it was in each row."""
    protocol, pairs = evaluation.protocol, evaluation.variants[0].pairs
    made = protocol["generation"]
    return [
        ("pairs", f"{len(pairs)}, seeds {pairs[0].seed} to {pairs[-1].seed}"),
        (
            "picture",
            f"{made['size']} × {made['size']} pixels, {made['steps']} steps, guidance {made['guidance']:g}",
        ),
        ("computed in", protocol["dtype"]),
        ("hardware", protocol["hardware"]),
        ("SSIM", protocol["ssim"]),
        *((METRICS[name].title, said) for name, said in protocol.get("perceptual", {}).items() if name in METRICS),
        ("versions", ", ".join(f"{name} {version}" for name, version in protocol["versions"].items())),
    ]


def pair_table(evaluation: Evaluation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and a row for each prompt and seed: the SSIM of every variant."""
    measured = [variant for variant in evaluation.variants if variant.label != ORIGINAL]
    rows = [
        (pairs[0].prompt, str(pairs[0].seed), *(f"{pair.ssim:.4f}" for pair in pairs))
        for pairs in zip(*(variant.pairs for variant in measured), strict=True)
    ]
    return ("prompt", "seed", *(variant.label for variant in measured)), rows


def plan_table(plan: Plan) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and a row for each weight of `plan`: what happens to it, and why.

    "error": latent MSE when it alone is quantized. "range": the found amax over max|w|.
    """
    rows: list[tuple[str, ...]] = [
        (
            d.layer,
            d.number_format,
            d.rounding or "",
            "" if d.sensitivity is None else f"{d.sensitivity:.3g}",
            "" if d.error is None else f"{d.error:.2e}",
            f"{d.amax / d.maximum:.4f}" if d.maximum and d.amax is not None else "",
            f"{d.scale:.3g}" if d.scale is not None else "",
            d.reason,
        )
        for d in plan.decisions
    ]
    return ("layer", "stored as", "rounding", "output variance", "error", "range", "scale", "why"), rows


def compare_table(found: list[TensorComparison]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and a row for each weight of two files."""
    rows: list[tuple[str, ...]] = [
        (
            tensor.layer,
            *tensor.stored,
            "" if tensor.codes is None else f"{tensor.codes:.1%}",
            f"{tensor.difference:.2e}",
        )
        for tensor in found
    ]
    return ("layer", "A", "B", "codes that differ", "|A - B| / |A|"), rows


def differences_table(found: list[Difference]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and a row for each tensor and metadata entry that is not as recorded."""
    return ("what", "name", "against the record"), [(one.kind, one.name, one.how) for one in found]
