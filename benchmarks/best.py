"""Error against size of files that are V2, INT8, or in each linear layer whichever costs less (`--format best`).

    python benchmarks/best.py make demo --seed 1 --work build/best/demo                     for each seed
    python benchmarks/best.py make build/demo_unet/demo-sdxl.safetensors --base build/demo_unet/base \\
        --prompts hswq_hub/data/demo_model/prompts --guidance 3 --steps 12 --samples 64 --seed 1 \\
        --work build/best/sdxl                                                              a UNet, likewise
    python benchmarks/best.py report build/best/*                -> RESULTS.md, best.png

Of each format there is a file with nothing kept, one of the default budget, and two of larger ones. Seeds and captions
are those of `fidelity.py`; the reference is the original.
"""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from fidelity import fresh_captions
from matplotlib.figure import Figure
from results import put_section
from seeds import make_or_report

from hswq_hub.calibration.calibrate import calibrate
from hswq_hub.evaluation.evaluate import evaluate
from hswq_hub.evaluation.plots import save
from hswq_hub.quantization.choices.best import codes_of_best, plan_best
from hswq_hub.quantization.choices.keep import keep, settled
from hswq_hub.quantization.compensate import write_compensated
from hswq_hub.quantization.measure import measure_errors
from hswq_hub.quantization.plan import LINEAR, input_scales, plan_everything
from hswq_hub.quantization.writer import codes_of, write_quantized
from hswq_hub.settings import CalibrationSettings, EvaluationSettings, recipe
from hswq_hub.sources.source import Prompts, Source
from hswq_runtime import Format
from hswq_runtime.formats import Number

MADE = (Format.V2, Format.INT8)
FORMATS = (*MADE, Format.BEST)
MORE = (0.0, 0.08, 0.2)
"""Budgets, above the default one."""
COLOURS, WIDTHS = ("#4c72b0", "#9bd3ae", "#c44e52"), (1, 3.5, 1)
"""Of lines; a wide one can still be seen below another."""


def make(source: Source, settings: CalibrationSettings, measured: EvaluationSettings, seed: int, work: Path) -> None:
    """Leaves `work`/seed-N.json."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, statistics = source.checkpoint, work / f"calibration-{seed}.safetensors"
    default = settled(recipe(), checkpoint, FORMATS)
    calibration = calibrate(source, settings)
    calibration.save(statistics)
    plans = plan_everything(checkpoint, calibration, MADE, default)
    rounded = {format: work / f"rounded-{seed}-{format.value}.safetensors" for format in MADE}
    write_compensated(
        checkpoint, calibration, plans, rounded, default.rounding, default.compensation, source_sha256=source.sha256
    )
    codes = {format: codes_of(checkpoint, format, path) for format, path in rounded.items()}
    scales = input_scales(checkpoint, calibration, plans[Format.V2])
    errors = measure_errors(checkpoint, calibration, plans, codes, default.measurement, scales=scales, place=work)
    codes[Format.BEST] = codes_of_best(checkpoint, rounded)
    budgets = [recipe(keep_ratio=0.0), *(replace(default, budget=default.budget + more) for more in MORE)]
    files, rows = {}, []
    for number, how in enumerate(budgets):
        for format in FORMATS:
            if format is Format.BEST:
                plan = plan_best(plans, checkpoint, how, errors)
            else:
                plan = keep(plans[format], checkpoint, how, errors.weights[format], errors.inputs)
            label = f"{format.label} {number}"
            files[label] = work / f"file-{seed}-{number}-{format.value}.safetensors"
            write_quantized(checkpoint, plan, files[label], codes[format], source_sha256=source.sha256)
            linear = [d for d in plan.quantized if d.kind == LINEAR]
            fp8 = sum(d.number is Number.FP8 for d in linear)
            rows.append({"label": label, "format": format.value, "number": number, "fp8": fp8, "linear": len(linear)})
    captions = fresh_captions(source.prompts, measured.pairs, seed)
    evaluation = evaluate(replace(source, prompts=Prompts(source.prompts.calibration, captions)), files, measured)
    whole = source.path.stat().st_size
    for row in rows:
        exact = evaluation.variant(row["label"])
        fast = exact.multiplied or exact
        row |= {"size": files[row["label"]].stat().st_size / whole, "ssim": exact.ssim_mean}
        row |= {"exact": exact.latent_mse_mean, "multiplied": fast.latent_mse_mean}
    facts = {"architecture": source.architecture.title, "sha256": source.sha256, "protocol": evaluation.protocol}
    document = {"seed": seed, "samples": settings.samples, **facts, "rows": rows}
    (work / f"seed-{seed}.json").write_text(json.dumps(document, indent=2))


def report(works: list[Path]) -> None:
    """A table for each model, and the drawing."""
    lines = ["## One budget, several formats", "", *_introduction(), "", "![Error against size](best.png)"]
    figure = Figure(figsize=(5 * len(works), 4), dpi=120, layout="constrained")
    for work, axes in zip(works, figure.subplots(1, len(works), squeeze=False)[0], strict=True):
        runs = [json.loads(path.read_text()) for path in sorted(work.glob("seed-*.json"))]
        first, protocol = runs[0], runs[0]["protocol"]
        pairs, steps = protocol["settings"]["pairs"], protocol["generation"]["steps"]
        lines += [
            "",
            f"### {work.name}, formats",
            "",
            f"A trained {first['architecture']} (SHA-256 `{first['sha256'][:12]}`), seeds "
            f"{', '.join(str(run['seed']) for run in runs)}, {pairs} captions each, {steps} steps, "
            f"{protocol['dtype']}, {protocol['hardware']}, torch {protocol['versions']['torch']}. "
            f"Calibration: {first['samples']} pictures.",
            "",
            "| file | size | linear layers in FP8 | latent MSE, weights alone | as multiplied |",
            "|---|---:|---:|---:|---:|",
        ]
        for number, row in enumerate(first["rows"]):
            rows = [run["rows"][number] for run in runs]
            fp8 = ", ".join(f"{r['fp8']} of {r['linear']}" for r in rows)
            lines.append(
                f"| {_name(row)} | {100 * fmean(r['size'] for r in rows):.1f} % | {fp8} | {_cell(rows, 'exact')} | "
                f"{_cell(rows, 'multiplied')} |"
            )
        lines += ["", *_ratios(runs)]
        _draw(axes, work.name, runs)
    save(figure, Path(__file__).with_name("best.png"))
    put_section("best", lines)
    print("\n".join(lines))


def _introduction() -> list[str]:
    return [
        "V2, INT8, and for each linear layer whichever of the two changes it less (*Best*), at four sizes: nothing",
        "kept, the default budget, and 8 and 20 points more of the size in 16 bits. Rounded by curvature, kept by",
        "error. As readers multiply it: ComfyUI's arithmetic, simulated to the bit, in as many layers as by default.",
        "The mean of the seeds; in brackets the lowest and the highest. Where *Best* has no layer in FP8, each of them",
        "loses less in INT8, and the two lines are one.",
    ]


def _name(row: dict) -> str:
    budget = "nothing kept" if row["number"] == 0 else f"default budget + {MORE[row['number'] - 1]:g}"
    return f"{Format(row['format']).label}, {budget.removesuffix(' + 0')}"


def _cell(rows: list[dict], name: str) -> str:
    values = [row[name] for row in rows]
    spread = f" [{min(values):.2e}, {max(values):.2e}]" if len(values) > 1 else ""
    return f"{fmean(values):.2e}{spread}"


def _ratios(runs: list[dict]) -> list[str]:
    """Best over the better one of the two, at each size, by seed."""
    lines = ["| Best over the better of V2 and INT8 | " + " | ".join(f"seed {run['seed']}" for run in runs) + " |"]
    lines.append("|---|" + "---:|" * len(runs))
    for number in range(len(MORE) + 1):
        for how in ("exact", "multiplied"):
            cells = []
            for run in runs:
                found = {row["format"]: row[how] for row in run["rows"] if row["number"] == number}
                cells.append(f"{found['best'] / min(found['v2'], found['int8']):.2f}")
            title = _name({"format": "best", "number": number}).removeprefix("Best, ")
            lines.append(f"| {title}, {'weights alone' if how == 'exact' else 'as multiplied'} | {' | '.join(cells)} |")
    return lines


def _draw(axes, title: str, runs: list[dict]) -> None:
    for format, colour, width in zip(FORMATS, COLOURS, WIDTHS, strict=True):
        for how, line in (("exact", "-"), ("multiplied", "--")):
            points = []
            for number in range(len(MORE) + 1):
                rows = [r for run in runs for r in run["rows"] if (r["format"], r["number"]) == (format.value, number)]
                points.append((100 * fmean(r["size"] for r in rows), fmean(r[how] for r in rows)))
            label = format.label if how == "exact" else f"{format.label}, as multiplied"
            axes.plot(
                *zip(*points, strict=True), line, color=colour, marker="o", markersize=3, linewidth=width, label=label
            )
    axes.set_yscale("log")
    axes.set_xlabel("size of the file, % of the original", fontsize=8)
    axes.set_ylabel("latent MSE", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.legend(frameon=False, fontsize=6)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    make_or_report(__doc__, make, report)
