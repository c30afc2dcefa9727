"""How close each way to quantize comes to the original, and how large its file is.

    python benchmarks/fidelity.py make demo --seed 1 --work build/fidelity/demo       for each seed
    python benchmarks/fidelity.py measure demo --seed 1 --work build/fidelity/demo
    python benchmarks/fidelity.py make build/second/demo.safetensors --base build/second/components \\
        --prompts build/second/prompts --budget 0.59 --seed 1 --work build/fidelity/second    another model, likewise
    python benchmarks/fidelity.py report build/fidelity/demo build/fidelity/second    -> RESULTS.md, fidelity.png

A seed decides the calibration's noise and, apart from it, that of the evaluation. What is measured on are captions
that are drawn anew for each seed and are in no list of prompts: no setting was chosen by them. Files of ours are
written and loaded as users get them. INT8 and the other tools' formats are simulated: a file holds the values that
their weights stand for, in float32, and its size is counted by their layout. Tools that are not installed are left out,
with a sentence. A run that was stopped goes on where it was.

The models have to understand the captions of tools/demo_pictures.py: see tools/train_demo_model.py.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from results import HERE, put_section
from safetensors.torch import load_file, save_file

from hswq_hub.calibration.calibrate import Calibration, calibrate
from hswq_hub.common.files import write_atomically
from hswq_hub.evaluation.evaluate import evaluate
from hswq_hub.quantization.compensate import write_compensated
from hswq_hub.quantization.keep import keep
from hswq_hub.quantization.measure import measure_errors
from hswq_hub.quantization.plan import Plan, plan_everything, plan_naive
from hswq_hub.quantization.writer import codes_of, write_quantized
from hswq_hub.settings import RECIPES, CalibrationSettings, EvaluationSettings, Recipe, recipe
from hswq_hub.sources.find import resolve
from hswq_hub.sources.source import Prompts, Source
from hswq_runtime import Format

sys.path.insert(0, str(HERE.parent / "tools"))
import demo_pictures

BASELINE, REFERENCE = "--recipe hswq", "INT8, a scale a row, nearest"
LEARNED_STEPS = 500
"""Of its own default of 4000."""


def make(source: Source, seed: int, samples: int, budget: float | None, work: Path, goals: bool) -> None:
    """The files of one seed, in `work`/files-N; with `goals` only those that the goals compare, in half the time."""
    settings = CalibrationSettings(samples=samples, seed=10_000 * seed)
    variants = _Variants(source, work / f"files-{seed}", settings, recipe(budget=budget))
    variants.published()
    variants.compensated()
    variants.others({REFERENCE: int8_row})
    if not goals:
        variants.gptq()
        variants.folded()
        variants.nearest()
        variants.by_row()
        variants.others(dict(peers()))


def measure(source: Source, seed: int, pairs: int, work: Path) -> None:
    """What :func:`make` made against the original; leaves `work`/seed-N.json."""
    folder = work / f"files-{seed}"
    state = json.loads((folder / "state.json").read_text())
    files = {label: folder / entry["file"] for label, entry in state["variants"].items()}
    source = replace(source, prompts=Prompts(source.prompts.calibration, fresh_captions(source.prompts, pairs, seed)))
    evaluation = evaluate(source, files, EvaluationSettings(pairs=pairs, seed=1000 + 10_000 * seed))
    rows = []
    for v in evaluation.variants:
        made = state["variants"].get(v.label, {"bytes": v.file_bytes, "seconds": None})
        figures = {"latent_mse": v.latent_mse_mean, "ssim_mean": v.ssim_mean, "ssim_worst": v.ssim_worst}
        rows.append({"label": v.label, "bytes": made["bytes"], "seconds": made["seconds"], **figures})
    width = source.checkpoint.config["dim"]
    facts = {"protocol": evaluation.protocol, "source": source.path.name, "sha256": source.sha256, "width": width}
    settings = {name: state[name] for name in ("samples", "budget")}
    text = json.dumps({"seed": seed, **settings, **facts, "rows": rows}, indent=2)
    (work / f"seed-{seed}.json").write_text(text)


def fresh_captions(used: Prompts, count: int, seed: int) -> tuple[str, ...]:
    """Captions that are in no list of prompts, another set for each seed."""
    captions: list[str] = []
    number = 0
    while len(captions) < count:
        _, caption = demo_pictures.draw(np.random.default_rng([2026, seed, number]))
        number += 1
        if caption not in {*used.calibration, *used.evaluation, *captions}:
            captions.append(caption)
    return tuple(captions)


class _Variants:
    """The files of one seed, and in state.json their sizes and what making each took, calibration apart."""

    def __init__(self, source: Source, folder: Path, settings: CalibrationSettings, default: Recipe):
        self.source, self.checkpoint, self.folder, self.settings = source, source.checkpoint, folder, settings
        self.default = default
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "state.json"
        how = json.loads(json.dumps([asdict(settings), asdict(default)]))
        self._state = {"samples": settings.samples, "budget": default.budget, "how": how, "variants": {}}
        if self._path.exists():
            self._state = json.loads(self._path.read_text())
            if self._state["how"] != how:
                sys.exit(f"{folder} was made with other settings; take another --work")

    def _has(self, label: str) -> bool:
        return label in self._state["variants"]

    @property
    def calibration(self) -> Calibration:
        path = self.folder / "calibration.safetensors"
        if not path.exists():
            calibrate(self.source, self.settings).save(path)
        return Calibration.load(path)

    def published(self) -> None:
        self._write("naive FP8", plan_naive(self.checkpoint), None, 0.0)
        how, exact = recipe("hswq"), recipe("hswq", search="exact", keep_ratio=0)
        plans, spent = _timed(plan_everything, self.checkpoint, self.calibration, list(Format), how)
        for version, plan in plans.items():
            self._write(f"{BASELINE}, {version.label}", keep(plan, self.checkpoint, how), None, spent)
            nothing = keep(plan, self.checkpoint, recipe("hswq", keep_ratio=0))
            self._write(f"published search, nothing kept, {version.label}", nothing, None, spent)
        plan, spent = _timed(plan_everything, self.checkpoint, self.calibration, [Format.V2], exact)
        self._write("exact search, nothing kept, V2", plan[Format.V2], None, spent)

    def nearest(self) -> None:
        how = replace(self.default, rounding="nearest")
        plans, spent = _timed(plan_everything, self.checkpoint, self.calibration, list(Format), how)
        for version, plan in plans.items():
            self._kept_by_error(f"nearest, kept by error, {version.label}", how, plan, None, spent)

    def compensated(self) -> None:
        how, (plans, rounded, spent) = self.default, self._compensated("rounded", self.default, list(Format))
        for version, plan in plans.items():
            self._write(f"{how.rounding}, nothing kept, {version.label}", plan, rounded[version], spent)
            self._kept_by_error(f"default, {version.label}", how, plan, rounded[version], spent)

    def gptq(self) -> None:
        how = replace(self.default, rounding="gptq")
        plans, rounded, spent = self._compensated("gptq", how, list(Format))
        for version, plan in plans.items():
            self._write(f"gptq, nothing kept, {version.label}", plan, rounded[version], spent)
            self._kept_by_error(f"gptq, kept by error, {version.label}", how, plan, rounded[version], spent)

    def folded(self) -> None:
        how = replace(self.default, rounding="nearest", fold=True)
        plan, spent = _timed(plan_everything, self.checkpoint, self.calibration, [Format.V1], how)
        self._write("nearest, folded, nothing kept, V1", plan[Format.V1], None, spent)
        how = replace(self.default, fold=True)
        plans, rounded, spent = self._compensated("folded", how, [Format.V1])
        self._kept_by_error("default with --fold, V1", how, plans[Format.V1], rounded[Format.V1], spent)

    def by_row(self) -> None:
        plans, rounded, spent = self._compensated("rows", replace(self.default, row_scales=True), [Format.V2])
        plan = plans[Format.V2]
        for rounding, decided in (("nearest", _with_rounding(plan, "nearest")), (plan.quantized[0].rounding, plan)):
            self._write(f"{rounding}, a scale a row, nothing kept, V2", decided, rounded[Format.V2], spent)

    def others(self, ways: dict[str, Callable]) -> None:
        for label, quantize in ways.items():
            if not self._has(label):
                self._other(label, quantize)

    def _kept_by_error(self, label: str, how: Recipe, plan: Plan, rounded: Path | None, spent: float) -> None:
        if self._has(label):
            return
        codes = codes_of(self.checkpoint, plan.format, rounded)
        errors, more = _timed(measure_errors, self.source, plan, codes, self.settings, how.measurement)
        self._write(label, keep(plan, self.checkpoint, how, errors), rounded, spent + more)

    def _compensated(self, name: str, how: Recipe, versions: list[Format]):
        """Plans with nothing kept, the files with their weights rounded, and the seconds that took."""
        plans, spent = _timed(plan_everything, self.checkpoint, self.calibration, versions, how)
        paths = {version: self.folder / f"{name}-{version.value}.safetensors" for version in versions}
        if name not in self._state.get("seconds", {}) or not all(path.exists() for path in paths.values()):
            arguments = self.checkpoint, self.calibration, plans, paths, how.rounding, how.compensation
            _, more = _timed(write_compensated, *arguments, source_sha256=self.source.sha256)
            self._state["seconds"] = self._state.get("seconds", {}) | {name: more}
            self._save()
        return plans, paths, spent + self._state["seconds"][name]

    def _write(self, label: str, plan: Plan, rounded: Path | None, spent: float) -> None:
        if self._has(label):
            return
        path = self._new_path()
        _, more = _timed(
            write_quantized, self.checkpoint, plan, path, source_sha256=self.source.sha256, rounded=rounded
        )
        self._note(label, path, path.stat().st_size, spent + more)

    def _other(self, label: str, quantize: Callable[[torch.Tensor], tuple[torch.Tensor, int]]) -> None:
        """All weights that can be FP8 through `quantize`: weight -> what its values stand for, and their bytes."""
        start, values, size = time.perf_counter(), {}, self.source.path.stat().st_size
        for decision in plan_naive(self.checkpoint).quantized:
            weight = self.checkpoint.tensor(decision.key)
            values[decision.key], stored = quantize(weight.float())
            size += stored - weight.nbytes
        self._simulate(label, values, size, time.perf_counter() - start)

    def _simulate(self, label: str, values: dict[str, torch.Tensor], size: int, spent: float) -> None:
        path = self._new_path()
        tensors = {key: tensor.float() for key, tensor in load_file(self.source.path).items()}
        save_file(tensors | {key: value.float().contiguous() for key, value in values.items()}, path)
        self._note(label, path, size, spent)

    def _new_path(self) -> Path:
        return self.folder / f"variant-{len(self._state['variants'])}.safetensors"

    def _note(self, label: str, path: Path, size: int, spent: float) -> None:
        self._state["variants"][label] = {"file": path.name, "bytes": size, "seconds": spent}
        self._save()
        print(f"{label}: {size} bytes, {spent:.1f} s", flush=True)

    def _save(self) -> None:
        write_atomically(self._path, json.dumps(self._state, indent=2).encode())


def _timed(function, *arguments, **named):
    start = time.perf_counter()
    return function(*arguments, **named), time.perf_counter() - start


def _with_rounding(plan: Plan, rounding: str) -> Plan:
    return replace(plan, decisions=tuple(replace(d, rounding=rounding) if d.quantized else d for d in plan.decisions))


def int8_row(weight: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Symmetric INT8 with a float32 scale for each row."""
    rows = weight.flatten(1)
    scale = rows.abs().amax(dim=1, keepdim=True) / 127
    codes = (rows / scale.clamp(min=torch.finfo(torch.float32).tiny)).round().clamp(-127, 127)
    return (codes * scale).reshape(weight.shape), weight.numel() + 4 * len(weight)


def peers():
    """Label and quantizer of the other tools that are installed: what weights come to, and their bytes."""
    for label, make in (
        ("torchao float8, one scale", lambda: _torchao("PerTensor")),
        ("torchao float8, a scale a row", lambda: _torchao("PerRow")),
        ("SDNQ float8", lambda: _through_a_layer(_sdnq())),
        ("optimum-quanto qfloat8", lambda: _through_a_layer(_quanto())),
        (f"convert_to_quant, learned rounding, {LEARNED_STEPS} steps", _learned),
    ):
        try:
            change = make()
        except ImportError as error:
            print(f"{label} is left out: {error}")
            continue
        yield label, change


def _through_a_layer(change: Callable[[torch.nn.Module], torch.nn.Module]):
    """What a tool makes of a weight is what the layer that it quantized does to the identity. Linear layers only."""

    @torch.no_grad()
    def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, int]:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
        model = change(torch.nn.Sequential(layer))
        values = model(torch.eye(weight.shape[1])).T
        if torch.equal(values, weight):
            raise RuntimeError("the tool left the weight as it was")
        return values, weight.numel() + 4 * len(weight)

    return quantize


def _torchao(granularity: str):
    from torchao import quantization

    def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, int]:
        found = quantization.Float8Tensor.from_hp(weight, granularity=getattr(quantization, granularity)())
        return found.dequantize().float(), weight.numel() + 4 * found.scale.numel()

    return quantize


def _learned():
    from convert_to_quant.converters.learned_rounding import LearnedRoundingConverter

    converter = LearnedRoundingConverter(num_iter=LEARNED_STEPS, device="cpu")

    def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, int]:
        torch.manual_seed(0)
        codes, scale, *_ = converter.convert(weight)
        return codes.float() * scale.float(), weight.numel() + 4

    return quantize


def _sdnq():
    from sdnq import sdnq_post_load_quant

    return lambda model: sdnq_post_load_quant(
        model,
        weights_dtype="float8_e4m3fn",
        torch_dtype=torch.float32,
        add_skip_keys=False,
        minimum_allowed_numel=0,
        minimum_allowed_channel_size=0,
    )


def _quanto():
    from optimum.quanto import freeze, qfloat8, quantize

    def change(model):
        quantize(model, weights=qfloat8)
        freeze(model)
        return model

    return change


def report(works: list[Path]) -> None:
    """Put a table for each model into RESULTS.md, and draw error against size."""
    lines, models = ["## Fidelity"], {}
    for work in works:
        runs = [json.loads(path.read_text()) for path in sorted(work.glob("seed-*.json"))]
        labels = [row["label"] for row in max((run["rows"] for run in runs), key=len)]
        means = [_mean([row for run in runs for row in run["rows"] if row["label"] == label]) for label in labels]
        lines += ["", *_introduction(work.name, runs), "", *_table(means), "", *_goals(runs)]
        models[work.name] = means
    _drawn(models).savefig(HERE / "fidelity.png", metadata={"Software": None})
    put_section("fidelity", [*lines, "", "![error against size](fidelity.png)"])
    print("\n".join(lines))


def _row(run: dict, label: str) -> dict:
    return next(row for row in run["rows"] if row["label"] == label)


def _goals(runs: list[dict]) -> list[str]:
    """What the default was to reach, for each seed."""
    lines = ["| goal | reached | " + " | ".join(f"seed {run['seed']}" for run in runs) + " |"]
    lines.append("|---|---|" + "---:|" * len(runs))
    for what, other, most in (
        ("default, V1", f"{BASELINE}, V1", 0.1),
        ("default, V2", f"{BASELINE}, V2", 0.1),
        ("default, V1", REFERENCE, 2.0),
        ("default, V2", REFERENCE, 1.0),
    ):
        ratios = [_row(run, what)["latent_mse"] / _row(run, other)["latent_mse"] for run in runs]
        reached = "yes" if max(ratios) <= most else "no" if min(ratios) > most else "in part"
        shown = " | ".join(f"{ratio:.3f}" for ratio in ratios)
        lines.append(f"| latent MSE of {what} over that of {other} at most {most:g} | {reached} | {shown} |")
    for version in Format:
        sizes = [[_row(run, f"{name}, {version.label}")["bytes"] for name in ("default", BASELINE)] for run in runs]
        reached = "yes" if all(ours <= theirs for ours, theirs in sizes) else "no"
        shown = " | ".join(f"{ours / theirs:.3f}" for ours, theirs in sizes)
        lines.append(f"| bytes of default, {version.label} over those of {BASELINE} at most 1 | {reached} | {shown} |")
    return lines


def _mean(rows: list[dict]) -> dict:
    def mean(name):
        values = [row[name] for row in rows if row[name] is not None]
        return fmean(values) if values else None

    errors = [row["latent_mse"] for row in rows]
    return {name: mean(name) for name in ("bytes", "seconds", "latent_mse", "ssim_mean")} | {
        "label": rows[0]["label"],
        "seeds": len(rows),
        "spread": stdev(errors) if len(errors) > 1 else 0.0,
        "ssim_worst": min(row["ssim_worst"] for row in rows),
    }


def _introduction(name: str, runs: list[dict]) -> list[str]:
    protocol, how = runs[0]["protocol"], RECIPES["measured"]
    return [
        f"### {name}",
        "",
        f"A trained Z-Image of width {runs[0]['width']} (SHA-256 `{runs[0]['sha256'][:12]}`), {len(runs)} seeds, "
        f"{protocol['settings']['pairs']} captions each that no setting was chosen by, "
        f"{protocol['generation']['size']} pixels, {protocol['generation']['steps']} steps, {protocol['dtype']}, "
        f"{protocol['hardware']}, torch {protocol['versions']['torch']}. Calibration: {runs[0]['samples']} pictures. "
        f"The default is recipe `measured`: rounding {how.rounding}, keep by {how.keep_by}, budget "
        f"{runs[0]['budget']:g}. "
        "± is the standard deviation over seeds; the worst SSIM is that of all pictures; size is that of the file, as "
        "a share of the original's. Seconds: making the file, calibration apart. INT8 and other tools: simulated.",
    ]


def _table(means: list[dict]) -> list[str]:
    whole = means[0]["bytes"]
    lines = ["| variant | size | latent MSE | SSIM mean | SSIM worst | seconds | seeds |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for row in means[1:]:
        spent = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        spread = f" ± {row['spread']:.1e}" if row["seeds"] > 1 else ""
        lines.append(
            f"| {row['label']} | {row['bytes'] / whole:.1%} | {row['latent_mse']:.2e}{spread} | "
            f"{row['ssim_mean']:.4f} | {row['ssim_worst']:.4f} | {spent} | {row['seeds']} |"
        )
    return lines


def _drawn(models: dict[str, list[dict]]):
    """Error against size, a panel for each model; names stand in a column, by ascending error from below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7 * len(models), 6), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for axes, (name, means) in zip(panels, models.items(), strict=True):
        whole, shown = means[0]["bytes"], sorted(means[1:], key=lambda row: row["latent_mse"])
        for place, row in enumerate(shown):
            point, color = (100 * row["bytes"] / whole, row["latent_mse"]), _color(row["label"])
            axes.scatter(*point, s=20, color=color, zorder=2)
            axes.annotate(
                row["label"],
                point,
                (1.06, (place + 0.5) / len(shown)),
                textcoords="axes fraction",
                fontsize=7,
                color=color,
                va="center",
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": color, "alpha": 0.5, "relpos": (0, 0.5)},
            )
        axes.set_yscale("log")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("size of the file, % of the original")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("latent MSE against the original")
    return figure


def _color(label: str) -> str:
    colors = {"default": "#c44e52", "kfac": "#4c72b0", "gptq": "#4c72b0", "INT8": "#55a868", BASELINE: "#000000"}
    ours = ("nearest", "naive", "published", "exact")
    known = next((color for start, color in colors.items() if label.startswith(start)), None)
    return known or ("#777777" if label.startswith(ours) else "#dd8452")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("report").add_argument("works", type=Path, nargs="+")
    for name in ("make", "measure"):
        command = commands.add_parser(name)
        command.add_argument("reference")
        command.add_argument("--base")
        command.add_argument("--prompts", type=Path, help="folder with calibration.txt and evaluation.txt")
        command.add_argument("--work", type=Path, required=True)
        command.add_argument("--seed", type=int, default=0)
        if name == "make":
            command.add_argument("--samples", type=int, default=CalibrationSettings().samples)
            command.add_argument("--budget", type=float, help="of the default recipe, where its own cannot be met")
            command.add_argument("--goals", action="store_true", help="only what the goals compare")
        else:
            command.add_argument("--pairs", type=int, default=EvaluationSettings().pairs)
    arguments = parser.parse_args()
    if arguments.command == "report":
        report(arguments.works)
        return
    source = resolve(arguments.reference, arguments.base)
    if arguments.prompts:
        source = replace(source, prompts=Prompts.read(arguments.prompts))
    if arguments.command == "make":
        make(source, arguments.seed, arguments.samples, arguments.budget, arguments.work, arguments.goals)
    else:
        measure(source, arguments.seed, arguments.pairs, arguments.work)


if __name__ == "__main__":
    main()
