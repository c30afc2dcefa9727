"""How close each way to quantize comes to the original, and how large its file is.

    python benchmarks/fidelity.py make demo --seed 0 --work build/fidelity       for each seed
    python benchmarks/fidelity.py measure demo --seed 0 --work build/fidelity
    python benchmarks/fidelity.py report --work build/fidelity                   -> RESULTS.md, fidelity.png

A seed decides the calibration's noise and, apart from it, that of the evaluation; prompts of the two have nothing in
common. Files of ours are written and loaded as users get them. INT8 and the other tools' formats are simulated: a
file holds the values that their weights stand for, in float32, and its size is counted by their layout. Tools that
are not installed are left out, with a sentence.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import torch
from results import HERE, put_section
from safetensors.torch import load_file, save_file

from hswq_hub.calibrate import Calibration, calibrate
from hswq_hub.evaluate import evaluate
from hswq_hub.quantize import (
    Plan,
    codes_of,
    keep,
    measure_errors,
    plan_everything,
    plan_naive,
    write_compensated,
    write_quantized,
)
from hswq_hub.quantize.writer import planned_bytes
from hswq_hub.settings import RECIPES, CalibrationSettings, EvaluationSettings, Recipe, recipe
from hswq_hub.sources import Source, resolve
from hswq_runtime import Format
from hswq_runtime.fp8 import dequantize

BASELINE, REFERENCE = "hswq", "INT8, a scale a row, nearest"


def make(source: Source, seed: int, samples: int, work: Path) -> None:
    """The files of one seed, in `work`/files-N. A run that was stopped goes on where it was."""
    variants = _Variants(source, work / f"files-{seed}", CalibrationSettings(samples=samples, seed=10_000 * seed))
    variants.published()
    variants.nearest()
    variants.compensated()
    variants.by_row()
    variants.others()


def measure(source: Source, seed: int, pairs: int, work: Path) -> None:
    """What :func:`make` made against the original; leaves `work`/seed-N.json."""
    folder = work / f"files-{seed}"
    state = json.loads((folder / "state.json").read_text())
    files = {label: folder / entry["file"] for label, entry in state["variants"].items()}
    evaluation = evaluate(source, files, EvaluationSettings(pairs=pairs, seed=1000 + 10_000 * seed))
    rows = []
    for v in evaluation.variants:
        made = state["variants"].get(v.label, {"bytes": v.file_bytes, "seconds": None})
        figures = {"latent_mse": v.latent_mse_mean, "ssim_mean": v.ssim_mean, "ssim_worst": v.ssim_worst}
        rows.append({"label": v.label, "bytes": made["bytes"], "seconds": made["seconds"], **figures})
    facts = {"protocol": evaluation.protocol, "source": source.path.name, "sha256": source.sha256}
    text = json.dumps({"seed": seed, "samples": state["samples"], **facts, "rows": rows}, indent=2)
    (work / f"seed-{seed}.json").write_text(text)


class _Variants:
    """The files of one seed, and in state.json their sizes and what making each took, calibration apart."""

    def __init__(self, source: Source, folder: Path, settings: CalibrationSettings):
        self.source, self.checkpoint, self.folder, self.settings = source, source.checkpoint, folder, settings
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "state.json"
        self._state = {"samples": settings.samples, "variants": {}}
        if self._path.exists():
            self._state = json.loads(self._path.read_text())

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
        how = recipe(BASELINE)
        plans, spent = _timed(plan_everything, self.checkpoint, self.calibration, list(Format), how)
        for version, plan in plans.items():
            self._write(f"--recipe hswq, {version.label}", keep(plan, self.checkpoint, how), None, spent)
            nothing = keep(plan, self.checkpoint, recipe(BASELINE, keep_ratio=0))
            self._write(f"published search, nothing kept, {version.label}", nothing, None, spent)

    def nearest(self) -> None:
        how = recipe(rounding="nearest")
        plans, spent = _timed(plan_everything, self.checkpoint, self.calibration, list(Format), how)
        for version, plan in plans.items():
            self._kept_by_error(f"nearest, kept by error, {version.label}", how, plan, None, spent)

    def compensated(self) -> None:
        how = recipe()
        plans, spent = _timed(plan_everything, self.checkpoint, self.calibration, list(Format), how)
        rounded = {version: self.folder / f"rounded-{version.value}.safetensors" for version in Format}
        _, more = self._compensated(self.calibration, plans, rounded)
        for version, plan in plans.items():
            self._write(f"gptq, nothing kept, {version.label}", plan, rounded[version], spent + more)
            self._kept_by_error(f"default, {version.label}", how, plan, rounded[version], spent + more)

    def _kept_by_error(self, label: str, how: Recipe, plan: Plan, rounded: Path | None, spent: float) -> None:
        if self._has(label):
            return
        codes = codes_of(self.checkpoint, plan.version, rounded)
        errors, more = _timed(measure_errors, self.source, plan, codes, self.settings, how.measurement)
        self._write(label, keep(plan, self.checkpoint, how, errors), rounded, spent + more)

    def by_row(self) -> None:
        plan = plan_everything(self.checkpoint, self.calibration, [Format.V2], recipe(row_scales=True))[Format.V2]
        path = self.folder / "rounded-rows.safetensors"
        _, spent = self._compensated(self.calibration, {Format.V2: plan}, {Format.V2: path})
        size = planned_bytes(self.checkpoint, plan)
        for rounding, decided in (("nearest", _with_rounding(plan, "nearest")), ("gptq", plan)):
            label = f"{rounding}, a scale a row, nothing kept, V2"
            if self._has(label):
                continue
            codes = codes_of(self.checkpoint, Format.V2, path)
            values = {d.key: dequantize(*codes(d), torch.float32) for d in decided.quantized}
            self._simulate(label, values, size, spent)

    def others(self) -> None:
        for label, quantize in ((REFERENCE, int8_row), *peers()):
            if not self._has(label):
                self._other(label, quantize)

    def _compensated(self, calibration, plans, paths):
        return _timed(
            write_compensated,
            self.checkpoint,
            calibration,
            plans,
            paths,
            recipe().compensation,
            source_sha256=self.source.sha256,
        )

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
        self._path.write_text(json.dumps(self._state, indent=2))


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
    """Label and quantizer of the other tools that are installed. Linear layers only."""
    for label, make in (
        ("torchao float8, a scale a row", _torchao),
        ("SDNQ float8", _sdnq),
        ("optimum-quanto qfloat8", _quanto),
    ):
        try:
            change = make()
        except ImportError as error:
            print(f"{label} is left out: {error.name} is not installed")
            continue
        yield label, _through_a_layer(change)


def _through_a_layer(change: Callable[[torch.nn.Module], torch.nn.Module]):
    """What a tool makes of a weight is what the layer that it quantized does to the identity."""

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


def _torchao():
    from torchao.quantization import Float8WeightOnlyConfig, quantize_

    return lambda model: (quantize_(model, Float8WeightOnlyConfig()), model)[1]


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


def report(work: Path) -> None:
    """Put the table of all seeds in `work` into RESULTS.md, and draw error against size."""
    runs = [json.loads(path.read_text()) for path in sorted(work.glob("seed-*.json"))]
    labels = [row["label"] for row in runs[0]["rows"]]
    means = [_mean([next(r for r in run["rows"] if r["label"] == label) for run in runs]) for label in labels]
    put_section("fidelity", [_introduction(runs), "", *_table(means), "", "![error against size](fidelity.png)"])
    print("\n".join(_table(means)))
    _draw(means, HERE / "fidelity.png")


def _mean(rows: list[dict]) -> dict:
    def mean(name):
        values = [row[name] for row in rows if row[name] is not None]
        return fmean(values) if values else None

    errors = [row["latent_mse"] for row in rows]
    return {name: mean(name) for name in rows[0] if name != "label"} | {
        "label": rows[0]["label"],
        "spread": stdev(errors) if len(errors) > 1 else 0.0,
        "ssim_worst": min(row["ssim_worst"] for row in rows),
    }


def _introduction(runs: list[dict]) -> str:
    protocol, how = runs[0]["protocol"], RECIPES["measured"]
    return (
        f"## Fidelity\n\n`{runs[0]['source']}` (SHA-256 `{runs[0]['sha256'][:12]}`), {len(runs)} seeds, "
        f"{protocol['settings']['pairs']} held-out pairs each, {protocol['generation']['size']} pixels, "
        f"{protocol['generation']['steps']} steps, {protocol['dtype']}, {protocol['hardware']}, "
        f"torch {protocol['versions']['torch']}. Calibration: {runs[0]['samples']} pictures. The default is recipe "
        f"`measured`: rounding {how.rounding}, keep by {how.keep_by}, budget {how.budget:g}. ± is the standard "
        "deviation over seeds; the worst SSIM is that of all pictures; size is that of the file, as a share of the "
        "original's. Seconds: making the file, calibration apart. INT8 and other tools: simulated, see the script."
    )


def _table(means: list[dict]) -> list[str]:
    whole = means[0]["bytes"]
    lines = ["| variant | size | latent MSE | SSIM mean | SSIM worst | seconds |", "|---|---:|---:|---:|---:|---:|"]
    for row in means[1:]:
        spent = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        lines.append(
            f"| {row['label']} | {row['bytes'] / whole:.1%} | {row['latent_mse']:.2e} ± {row['spread']:.1e} | "
            f"{row['ssim_mean']:.4f} | {row['ssim_worst']:.4f} | {spent} |"
        )
    return lines


def _draw(means: list[dict], path: Path) -> None:
    from hswq_hub.plots import error_against_size

    whole = means[0]["bytes"]
    points = {row["label"]: (row["bytes"] / whole, row["latent_mse"]) for row in means[1:]}
    error_against_size(points).savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("make", "measure", "report"):
        command = commands.add_parser(name)
        command.add_argument("--work", type=Path, required=True)
        if name == "report":
            continue
        command.add_argument("reference")
        command.add_argument("--base")
        command.add_argument("--seed", type=int, default=0)
        if name == "make":
            command.add_argument("--samples", type=int, default=CalibrationSettings().samples)
        else:
            command.add_argument("--pairs", type=int, default=EvaluationSettings().pairs)
    arguments = parser.parse_args()
    if arguments.command == "report":
        report(arguments.work)
        return
    source = resolve(arguments.reference, arguments.base)
    if arguments.command == "make":
        make(source, arguments.seed, arguments.samples, arguments.work)
    else:
        measure(source, arguments.seed, arguments.pairs, arguments.work)


if __name__ == "__main__":
    main()
