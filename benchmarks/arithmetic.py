"""What FP8 arithmetic costs: the error of files whose layers multiply in FP8, by the share of the work that does.

    python benchmarks/arithmetic.py make demo --seed 1 --work build/arithmetic/demo        for each seed
    python benchmarks/arithmetic.py make build/demo_unet/demo-sdxl.safetensors --base build/demo_unet/base \\
        --prompts hswq_hub/data/demo_model/prompts --guidance 3 --steps 12 --samples 64 --seed 1 \\
        --work build/arithmetic/sdxl                                                       a UNet, likewise
    python benchmarks/arithmetic.py report build/arithmetic/*     -> RESULTS.md, arithmetic.png

Files differ in nothing but which layers multiply in FP8, as `--speed` chooses them. What ComfyUI computes of them on a
GPU with FP8 arithmetic is simulated to the bit. Seeds and captions are those of `fidelity.py`. The reference is the
same file with exact products.
"""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from fidelity import fresh_captions
from results import HERE, put_section
from seeds import make_or_report

from hswq_hub.calibration.calibrate import Calibration, calibrate
from hswq_hub.evaluation.evaluate import evaluate
from hswq_hub.quantization.choices.keep import keep, settled
from hswq_hub.quantization.compensate import write_compensated
from hswq_hub.quantization.measure import measure_errors
from hswq_hub.quantization.plan import input_scales, plan_everything
from hswq_hub.quantization.writer import codes_of, write_quantized
from hswq_hub.settings import DEFAULT_FORMATS as FORMATS
from hswq_hub.settings import CalibrationSettings, EvaluationSettings, recipe
from hswq_hub.sources.source import Prompts, Source
from hswq_runtime import Format

SPEEDS = (None, 0.25, 0.5, 0.7, 0.9, 1.0)
"""None: the default."""
GOALS = ((0.5, 2.0), (0.9, 5.0))
"""At so much of the work in FP8 the error is at most so many times that of exact products."""


def make(source: Source, settings: CalibrationSettings, measured: EvaluationSettings, seed: int, work: Path) -> None:
    """Leaves `work`/seed-N.json."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, how = source.checkpoint, settled(recipe(), source.checkpoint, list(FORMATS))
    statistics = work / f"calibration-{seed}.safetensors"
    if not statistics.exists():
        calibrate(source, settings).save(statistics)
    calibration = Calibration.load(statistics)
    plans = plan_everything(checkpoint, calibration, list(FORMATS), how)
    rounded = {format: work / f"rounded-{seed}-{format.value}.safetensors" for format in FORMATS}
    write_compensated(
        checkpoint, calibration, plans, rounded, how.rounding, how.compensation, source_sha256=source.sha256
    )
    errors = measure_errors(
        checkpoint,
        calibration,
        plans,
        {format: codes_of(checkpoint, format, path) for format, path in rounded.items()},
        how.measurement,
        scales=input_scales(checkpoint, calibration, plans[Format.V1]),
        place=work,
    )
    files, shares = {}, {}
    for format, plan in plans.items():
        for speed in SPEEDS:
            chosen = keep(plan, checkpoint, replace(how, speed=speed), errors.weights[format], errors.inputs)
            label = f"{format.value} {speed}"
            files[label] = work / f"file-{seed}-{format.value}-{speed}.safetensors"
            shares[label] = sum(d.work for d in chosen.quantized if d.input_scale is not None)
            codes = codes_of(checkpoint, format, rounded[format])
            write_quantized(checkpoint, chosen, files[label], codes, source_sha256=source.sha256)
    captions = fresh_captions(source.prompts, measured.pairs, seed)
    source = replace(source, prompts=Prompts(source.prompts.calibration, captions))
    evaluation = evaluate(source, files, measured)
    rows = []
    for label, share in shares.items():
        exact = evaluation.variant(label)
        fast = exact.multiplied or exact
        row = {"label": label, "share": share, "layers": exact.rounded_layers, "exact": exact.latent_mse_mean}
        rows.append(row | {"fp8": fast.latent_mse_mean, "ssim": exact.ssim_mean, "fp8_ssim": fast.ssim_mean})
    facts = {"architecture": source.architecture.title, "sha256": source.sha256, "protocol": evaluation.protocol}
    document = {"seed": seed, "samples": settings.samples, **facts, "rows": rows}
    (work / f"seed-{seed}.json").write_text(json.dumps(document, indent=2))


def report(works: list[Path]) -> None:
    """A table for each model, the goals, and the curves."""
    lines, curves = ["## FP8 arithmetic", "", *_introduction()], {}
    for work in works:
        runs = [json.loads(path.read_text()) for path in sorted(work.glob("seed-*.json"))]
        first = runs[0]
        protocol = first["protocol"]
        lines += [
            "",
            f"### {work.name}",
            "",
            f"A trained {first['architecture']} (SHA-256 `{first['sha256'][:12]}`), {len(runs)} seeds, "
            f"{protocol['settings']['pairs']} captions each, {protocol['generation']['steps']} steps, "
            f"{protocol['dtype']}, {protocol['hardware']}, torch {protocol['versions']['torch']}. Calibration: "
            f"{first['samples']} pictures.",
            "",
            "| `--speed` | file | work in FP8 | latent MSE, exact | in FP8 | ratio, each seed | SSIM, exact | in FP8 |",
            "|---|---|---:|---:|---:|---:|---:|---:|",
        ]
        points: dict[str, list[tuple[float, float]]] = {}
        for number, row in enumerate(first["rows"]):
            rows = [run["rows"][number] for run in runs]
            mean = {name: fmean(r[name] for r in rows) for name in ("share", "exact", "fp8", "ssim", "fp8_ssim")}
            ratios = [r["fp8"] / r["exact"] for r in rows]
            format, speed = row["label"].split()
            points.setdefault(format.upper(), []).append((mean["share"], fmean(ratios)))
            lines.append(
                f"| {'default' if speed == 'None' else speed} | {format.upper()} | {mean['share']:.0%} | "
                f"{mean['exact']:.2e} | {mean['fp8']:.2e}{_spread([r['fp8'] for r in rows])} | "
                f"{', '.join(f'{ratio:.2f}' for ratio in ratios)} | {mean['ssim']:.4f} | {mean['fp8_ssim']:.4f} |"
            )
        lines += ["", *_goals(runs)]
        curves[work.name] = points
    _drawn(curves).savefig(HERE / "arithmetic.png", metadata={"Software": None})
    put_section("arithmetic", [*lines, "", "![error against the share of the work in FP8](arithmetic.png)"])
    print("\n".join(lines))


def _introduction() -> list[str]:
    return [
        "The latent error as ComfyUI computes a file on a GPU with FP8 arithmetic, simulated to the bit, over that of",
        "the same file with exact products. Work: multiplications of the linear layers that are FP8 or could be. Those",
        "with one row of input a call, that feed everything else, or that are kept are never in FP8, so that 1 is not",
        "reached. No GPU was used: nothing is said of time.",
    ]


def _spread(values: list[float]) -> str:
    return f" ± {stdev(values):.1e}" if len(values) > 1 else ""


def _goals(runs: list[dict]) -> list[str]:
    lines = ["| goal | reached | " + " | ".join(f"seed {run['seed']}" for run in runs) + " |"]
    lines.append("|---|---|" + "---:|" * len(runs))
    for speed, most in GOALS:
        for format in FORMATS:
            rows = [next(r for r in run["rows"] if r["label"] == f"{format.value} {speed}") for run in runs]
            ratios = [row["fp8"] / row["exact"] for row in rows]
            enough = all(row["share"] >= speed for row in rows)
            reached = "yes" if max(ratios) <= most and enough else "no" if min(ratios) > most else "in part"
            shown = " | ".join(f"{ratio:.2f} at {row['share']:.0%}" for ratio, row in zip(ratios, rows, strict=True))
            lines.append(f"| {format.label}: at most {most:g} × at {speed:.0%} of the work | {reached} | {shown} |")
    return lines


def _drawn(curves: dict[str, dict[str, list[tuple[float, float]]]]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(curves), 4), dpi=110, layout="constrained")
    for axes, (name, formats) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for format, points in formats.items():
            ordered = [(0.0, 1.0), *sorted(points)]
            axes.plot([100 * x for x, _ in ordered], [y for _, y in ordered], marker="o", markersize=3, label=format)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("work in FP8, %")
        axes.set_ylabel("latent MSE over that with exact products")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    make_or_report(__doc__, make, report)
