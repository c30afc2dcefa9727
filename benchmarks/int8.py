"""INT8 with rotation against rounding to nearest, and against V2: weights alone, and as readers multiply it.

    python benchmarks/int8.py make demo --seed 1 --work build/int8/demo                    for each seed
    python benchmarks/int8.py make build/demo_unet/demo-sdxl.safetensors --base build/demo_unet/base \\
        --prompts hswq_hub/data/demo_model/prompts --guidance 3 --steps 12 --samples 64 --seed 1 \\
        --work build/int8/sdxl                                                             a UNet, likewise
    python benchmarks/int8.py report build/int8/*                -> RESULTS.md

Of each way of rounding one file has nothing kept, and one is of the default budget, spent by the errors of its own
weights. Rounded to nearest, the latter is multiplied in INT8 wherever that can be; int8 where `hswq-hub` chooses it.
Convolutions are FP8, rounded in the same way. Seeds and captions are those of `fidelity.py`; the reference is the
original.
"""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from fidelity import fresh_captions
from results import put_section
from seeds import make_or_report

from hswq_hub.calibration.calibrate import Calibration, calibrate
from hswq_hub.evaluation.evaluate import evaluate
from hswq_hub.quantization.choices.keep import keep, settled
from hswq_hub.quantization.compensate import write_compensated
from hswq_hub.quantization.measure import measure_errors
from hswq_hub.quantization.plan import Plan, input_scales, plan_everything
from hswq_hub.quantization.writer import codes_of, write_quantized
from hswq_hub.settings import CalibrationSettings, EvaluationSettings, recipe
from hswq_hub.sources.source import Prompts, Source
from hswq_runtime import Format

PLAIN, TURNED, OURS = "nearest", "nearest, rotated", "int8"
EVERYTHING, BUDGET = "nothing kept", "default budget"
V2 = "V2, default"
GOALS = (
    (
        "weights alone, against nearest a row, nothing kept",
        "exact",
        f"{OURS}, {EVERYTHING}",
        f"{PLAIN}, {EVERYTHING}",
        0.2,
    ),
    ("weights alone, against nearest a row, same budget", "exact", f"{OURS}, {BUDGET}", f"{PLAIN}, {BUDGET}", 0.2),
    ("in INT8, against nearest rotated, same budget", "int8", f"{OURS}, {BUDGET}", f"{TURNED}, {BUDGET}", 0.5),
    ("in INT8, against V2 with exact products", "v2", f"{OURS}, {BUDGET}", V2, 1.5),
)
"""What is compared, how, the two files, and the most that their ratio may be."""


def make(source: Source, settings: CalibrationSettings, measured: EvaluationSettings, seed: int, work: Path) -> None:
    """Leaves `work`/seed-N.json."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, formats = source.checkpoint, [Format.V2, Format.INT8]
    how = settled(recipe(), checkpoint, formats)
    statistics = work / f"calibration-{seed}.safetensors"
    if not statistics.exists():
        calibrate(source, settings).save(statistics)
    calibration = Calibration.load(statistics)
    plans = plan_everything(checkpoint, calibration, formats, how)
    rounded = {format: work / f"rounded-{seed}-{format.value}.safetensors" for format in formats}
    write_compensated(
        checkpoint, calibration, plans, rounded, how.rounding, how.compensation, source_sha256=source.sha256
    )
    nearest = plan_everything(checkpoint, calibration, [Format.INT8], replace(how, rounding="nearest"))[Format.INT8]
    ways: dict[str, tuple[Plan, Path | None]] = {
        PLAIN: (_unrotated(nearest), None),
        TURNED: (nearest, None),
        OURS: (plans[Format.INT8], rounded[Format.INT8]),
        V2: (plans[Format.V2], rounded[Format.V2]),
    }
    files, shares, of_layers = {}, {}, {}
    for name, (plan, path) in ways.items():
        errors = measure_errors(
            checkpoint,
            calibration,
            {plan.format: plan},
            {plan.format: codes_of(checkpoint, plan.format, path)},
            how.measurement,
            scales=input_scales(checkpoint, calibration, plan),
            place=work,
        )
        of_layers[name] = errors.weights[plan.format]
        products = replace(how, speed=1.0) if path is None else how  # other tools mark no layer as exact
        chosen = keep(plan, checkpoint, products, errors.weights[plan.format], errors.inputs)
        files_of = {f"{name}, {EVERYTHING}": plan, f"{name}, {BUDGET}": chosen}
        for label, one in ({V2: chosen} if name == V2 else files_of).items():
            files[label] = work / f"file-{seed}-{len(files)}.safetensors"
            shares[label] = sum(d.work or 0.0 for d in one.quantized if d.rounds_input)
            codes = codes_of(checkpoint, plan.format, path)
            write_quantized(checkpoint, one, files[label], codes, source_sha256=source.sha256)
    captions = fresh_captions(source.prompts, measured.pairs, seed)
    source = replace(source, prompts=Prompts(source.prompts.calibration, captions))
    evaluation = evaluate(source, files, measured)
    rows = []
    for label, share in shares.items():
        exact = evaluation.variant(label)
        fast = exact.multiplied or exact
        row = {"label": label, "share": share, "bytes": files[label].stat().st_size, "exact": exact.latent_mse_mean}
        rows.append(row | {"int8": fast.latent_mse_mean, "ssim": exact.ssim_mean, "int8_ssim": fast.ssim_mean})
    closer = sum(error < of_layers[OURS][key] for key, error in of_layers[V2].items())
    facts = {"architecture": source.architecture.title, "sha256": source.sha256, "protocol": evaluation.protocol}
    document = {"seed": seed, "samples": settings.samples, **facts, "rows": rows}
    document |= {"layers": len(of_layers[OURS]), "closer_in_fp8": closer}
    (work / f"seed-{seed}.json").write_text(json.dumps(document, indent=2))


def _unrotated(plan: Plan) -> Plan:
    return replace(plan, decisions=tuple(replace(decision, group=None) for decision in plan.decisions))


def report(works: list[Path]) -> None:
    """A table for each model, and the goals."""
    lines = ["## INT8", "", *_introduction()]
    for work in works:
        runs = [json.loads(path.read_text()) for path in sorted(work.glob("seed-*.json"))]
        first = runs[0]
        protocol = first["protocol"]
        lines += [
            "",
            f"### {work.name}, INT8",
            "",
            f"A trained {first['architecture']} (SHA-256 `{first['sha256'][:12]}`), {len(runs)} seeds, "
            f"{protocol['settings']['pairs']} captions each, {protocol['generation']['steps']} steps, "
            f"{protocol['dtype']}, {protocol['hardware']}, torch {protocol['versions']['torch']}. Calibration: "
            f"{first['samples']} pictures.",
            "",
            "| file | size | latent MSE, weights alone | as multiplied | SSIM, weights alone | as multiplied |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for number, row in enumerate(first["rows"]):
            rows = [run["rows"][number] for run in runs]
            mean = {name: fmean(r[name] for r in rows) for name in ("bytes", "exact", "int8", "ssim", "int8_ssim")}
            lines.append(
                f"| {row['label']} | {mean['bytes'] / 1e6:.2f} MB | {mean['exact']:.2e}{_spread(rows, 'exact')} | "
                f"{mean['int8']:.2e}{_spread(rows, 'int8')} | {mean['ssim']:.4f} | {mean['int8_ssim']:.4f} |"
            )
        closer = ", ".join(f"{run['closer_in_fp8']} of {run['layers']}" for run in runs)
        lines += [
            "",
            *_goals(runs),
            "",
            f"Weights whose error in the V2 file is below that in the INT8 file, by seed: {closer}. Convolutions,",
            "FP8 in both and without a scale in the latter, are among them.",
        ]
    put_section("int8", lines)
    print("\n".join(lines))


def _introduction() -> list[str]:
    return [
        "Nearest: the nearest code, one scale for each row, which maps its largest weight to 127. Rotated: each group",
        "of inputs by a regular Hadamard matrix first (ConvRot). int8: rotated, rounded by curvature, with each row's",
        "scale chosen by what it costs. As readers multiply it: ComfyUI's arithmetic, simulated to the bit; files",
        "with nothing kept are multiplied in INT8 without exception, those of the default budget wherever that can be,",
        "and int8 with it in nine tenths of the work, the default. No GPU was used: nothing is said of time.",
    ]


def _spread(rows: list[dict], name: str) -> str:
    return f" ± {stdev(row[name] for row in rows):.1e}" if len(rows) > 1 else ""


def _goals(runs: list[dict]) -> list[str]:
    lines = ["| goal | reached | " + " | ".join(f"seed {run['seed']}" for run in runs) + " |"]
    lines.append("|---|---|" + "---:|" * len(runs))
    for title, how, ours, other, most in GOALS:
        ratios = []
        for run in runs:
            rows = {row["label"]: row for row in run["rows"]}
            mine, theirs = ("int8", "exact") if how == "v2" else (how, how)
            ratios.append(rows[ours][mine] / rows[other][theirs])
        reached = "yes" if max(ratios) <= most else "no" if min(ratios) > most else "in part"
        lines.append(f"| {title}: at most {most:g} | {reached} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")
    return lines


if __name__ == "__main__":
    make_or_report(__doc__, make, report)
