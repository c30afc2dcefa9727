"""The tables of a report, and the comparison of one file with another."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from ..common.text import megabytes
from ..quantization.plan import Plan
from .compare import TensorComparison
from .evaluate import ORIGINAL, Evaluation, VariantResult

IN_FP8 = "multiplied in FP8"
"""What a file is called as ComfyUI computes it on a GPU with FP8 arithmetic."""
HEADINGS = ("format", "size", "weights", "SSIM mean", "SSIM worst", "PSNR", "latent MSE", "kept layers")


def table(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """A row of cells for each variant, under `HEADINGS`; one more where ComfyUI computes it in FP8."""
    rows = []
    for variant in evaluation.variants:
        rows.append(_row(variant))
        if rounded := variant.in_fp8:
            _, size, weights, *cells = _row(rounded)
            rows.append((f"{variant.label}, {IN_FP8}", size, weights, *cells))
    return rows


def _row(variant: VariantResult) -> tuple[str, ...]:
    if variant.label == ORIGINAL:
        fidelity: tuple[str, ...] = ("1 (reference)", "1", "∞", "0")
    else:
        fidelity = _fidelity(variant.ssim_mean, variant.ssim_worst, variant.psnr_mean, variant.latent_mse_mean)
    kept = f"{variant.kept_layers} of {variant.layers}"
    return (variant.label, megabytes(variant.file_bytes), megabytes(variant.weight_bytes), *fidelity, kept)


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
    return ("version", "file", "size", *HEADINGS[3:7], "pairs"), rows


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


@dataclass(frozen=True)
class Fp8Arithmetic:
    """What it costs that ComfyUI multiplies a file in FP8 where the hardware can.

    layers: how many it multiplies so. difference: mean SSIM, in FP8 − exact. latent_ratio: the latent MSE over that
    with exact products; None if that is 0.
    """

    label: str
    layers: int
    ssim_mean: float
    difference: float
    latent_ratio: float | None


def in_fp8(evaluation: Evaluation) -> list[Fp8Arithmetic]:
    """Of each file with such layers."""
    return [
        Fp8Arithmetic(
            exact.label,
            exact.fp8_layers,
            rounded.ssim_mean,
            rounded.ssim_mean - exact.ssim_mean,
            rounded.latent_mse_mean / exact.latent_mse_mean if exact.latent_mse_mean else None,
        )
        for exact in evaluation.variants
        if (rounded := exact.in_fp8)
    ]


@dataclass(frozen=True)
class Comparison:
    """Whether `better` really is closer to the original than `worse`, pair by pair in one run.

    difference: mean of the SSIM differences, better − worse. standard_error: of that mean; None for one pair.
    wins: pairs in which `better` has the higher SSIM, of `pairs`. latent_ratio: its latent MSE over the other's.
    """

    better: str
    worse: str
    difference: float
    standard_error: float | None
    wins: int
    pairs: int
    latent_ratio: float | None

    @property
    def holds(self) -> bool:
        return self.difference > 0

    @property
    def decided(self) -> bool:
        """Whether the difference exceeds twice its standard error."""
        return self.standard_error is not None and abs(self.difference) > 2 * self.standard_error


def comparisons(evaluation: Evaluation) -> list[Comparison]:
    """Each variant against the one before it, from the baseline upwards: V1 over naive, V2 over V1."""
    ranked = [variant for variant in evaluation.variants if variant.label != ORIGINAL]
    return [_compare(better, worse) for worse, better in itertools.pairwise(ranked)]


def _compare(better: VariantResult, worse: VariantResult) -> Comparison:
    differences = [b.ssim - w.ssim for b, w in zip(better.pairs, worse.pairs, strict=True)]
    error = stdev(differences) / sqrt(len(differences)) if len(differences) > 1 else None
    ratio = better.latent_mse_mean / worse.latent_mse_mean if worse.latent_mse_mean else None
    wins = sum(d > 0 for d in differences)
    return Comparison(better.label, worse.label, fmean(differences), error, wins, len(differences), ratio)


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
