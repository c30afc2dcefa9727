"""How close each way to quantize comes to the original, and how large its file is.

    python benchmarks/fidelity.py make demo --seed 1 --work build/fidelity/demo       for each seed
    python benchmarks/fidelity.py measure demo --seed 1 --work build/fidelity/demo
    python benchmarks/fidelity.py make build/second/demo.safetensors --base build/second/components \\
        --prompts build/second/prompts --seed 1 --work build/fidelity/second          another model, likewise
    python benchmarks/fidelity.py make build/demo_unet/demo-sdxl.safetensors --base build/demo_unet/base \\
        --prompts hswq_hub/data/demo_model/prompts --guidance 3 --steps 12 --samples 64 --seed 1 \\
        --work build/fidelity/sdxl                                                    a UNet
    python benchmarks/fidelity.py report build/fidelity/*     -> RESULTS.md, fidelity.png

A seed decides the calibration's noise and, apart from it, that of the evaluation. What is measured on are captions
that are drawn anew for each seed and are in no list of prompts: no setting was chosen by them. Files of ours are
written and loaded as users get them. INT8 and the other tools' formats are simulated: a file holds the values that
their weights stand for, in float32, and its size is counted by their layout. Tools that are not installed are left out,
with a sentence. A run that was stopped goes on where it was.

The models have to understand the captions of tools/demo_pictures.py: see tools/train_demo_model.py and
tools/train_demo_unet.py.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from fidelity_peers import REFERENCE, int8_row, peers
from fidelity_report import BASELINE, report
from results import HERE
from safetensors.torch import load_file, save_file
from seeds import add_model_options, calibration_of, evaluation_of, source_of

from hswq_hub.calibration.calibrate import Calibration, calibrate
from hswq_hub.common.files import write_atomically
from hswq_hub.evaluation.evaluate import evaluate
from hswq_hub.quantization.choices.keep import keep, settled
from hswq_hub.quantization.compensate import write_compensated
from hswq_hub.quantization.measure import measure_errors
from hswq_hub.quantization.plan import Plan, input_scales, plan_everything, plan_naive
from hswq_hub.quantization.writer import codes_of, write_quantized
from hswq_hub.settings import DEFAULT_FORMATS, CalibrationSettings, EvaluationSettings, Recipe, recipe
from hswq_hub.sources.source import Prompts, Source
from hswq_runtime import Format

sys.path.insert(0, str(HERE.parent / "tools"))
import demo_pictures


def make(source: Source, settings: CalibrationSettings, work: Path, goals: bool) -> None:
    """The files of one seed, in `work`/files-N; with `goals` only those that the goals compare, in half the time."""
    default = settled(recipe(), source.checkpoint, list(DEFAULT_FORMATS))
    variants = _Variants(source, work / f"files-{_seed(settings.seed)}", settings, default)
    variants.published()
    variants.compensated()
    variants.others({REFERENCE: int8_row})
    if not goals:
        variants.gptq()
        variants.folded()
        variants.nearest()
        variants.by_row()
        variants.others(dict(peers()))


def _seed(first: int) -> int:
    """The number of a run, from the seed of its first picture."""
    return first // 10_000


def measure(source: Source, seed: int, settings: EvaluationSettings, work: Path) -> None:
    """What :func:`make` made against the original; leaves `work`/seed-N.json."""
    folder = work / f"files-{seed}"
    state = json.loads((folder / "state.json").read_text())
    files = {label: folder / entry["file"] for label, entry in state["variants"].items()}
    captions = fresh_captions(source.prompts, settings.pairs, seed)
    source = replace(source, prompts=Prompts(source.prompts.calibration, captions))
    evaluation = evaluate(source, files, settings)
    rows = []
    for v in evaluation.variants:
        made = state["variants"].get(v.label, {"bytes": v.file_bytes, "seconds": None})
        figures = {"latent_mse": v.latent_mse_mean, "ssim_mean": v.ssim_mean, "ssim_worst": v.ssim_worst}
        rows.append({"label": v.label, "bytes": made["bytes"], "seconds": made["seconds"], **figures})
    config = source.checkpoint.config
    width = config.get("dim", config.get("block_out_channels"))
    facts = {"protocol": evaluation.protocol, "source": source.path.name, "sha256": source.sha256, "width": width}
    facts["architecture"] = source.architecture.title
    made_with = {name: state[name] for name in ("samples", "budget", "steps")}
    text = json.dumps({"seed": seed, **made_with, **facts, "rows": rows}, indent=2)
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
        steps = settings.steps_of(source.architecture.steps)
        self._state = {
            "samples": settings.samples,
            "steps": steps,
            "budget": default.budget,
            "how": how,
            "variants": {},
        }
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
        plans, spent = _timed(plan_everything, self.checkpoint, self.calibration, list(DEFAULT_FORMATS), how)
        for version, plan in plans.items():
            self._write(f"{BASELINE}, {version.label}", keep(plan, self.checkpoint, how), None, spent)
            nothing = keep(plan, self.checkpoint, recipe("hswq", keep_ratio=0))
            self._write(f"published search, nothing kept, {version.label}", nothing, None, spent)
        plan, spent = _timed(plan_everything, self.checkpoint, self.calibration, [Format.V2], exact)
        self._write("exact search, nothing kept, V2", plan[Format.V2], None, spent)

    def nearest(self) -> None:
        how = replace(self.default, rounding="nearest")
        plans, spent = _timed(plan_everything, self.checkpoint, self.calibration, list(DEFAULT_FORMATS), how)
        for version, plan in plans.items():
            self._kept_by_error(f"nearest, kept by error, {version.label}", how, plan, None, spent)

    def compensated(self) -> None:
        how, (plans, rounded, spent) = self.default, self._compensated("rounded", self.default, list(DEFAULT_FORMATS))
        for version, plan in plans.items():
            self._write(f"{how.rounding}, nothing kept, {version.label}", plan, rounded[version], spent)
            self._kept_by_error(f"default, {version.label}", how, plan, rounded[version], spent)

    def gptq(self) -> None:
        how = replace(self.default, rounding="gptq")
        plans, rounded, spent = self._compensated("gptq", how, list(DEFAULT_FORMATS))
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
        arguments = self.checkpoint, self.calibration, {plan.format: plan}, {plan.format: codes}, how.measurement
        scales = input_scales(self.checkpoint, self.calibration, plan)
        errors, more = _timed(measure_errors, *arguments, scales=scales, place=self.folder)
        chosen = keep(plan, self.checkpoint, how, errors.weights[plan.format], errors.inputs)
        self._write(label, chosen, rounded, spent + more)

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
        codes = codes_of(self.checkpoint, plan.format, rounded)
        _, more = _timed(write_quantized, self.checkpoint, plan, path, codes, source_sha256=self.source.sha256)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("report").add_argument("works", type=Path, nargs="+")
    for name in ("make", "measure"):
        command = commands.add_parser(name)
        add_model_options(command)
        if name == "make":
            command.add_argument("--samples", type=int, default=CalibrationSettings().samples)
            command.add_argument("--goals", action="store_true", help="only what the goals compare")
        else:
            command.add_argument("--pairs", type=int, default=EvaluationSettings().pairs)
    arguments = parser.parse_args()
    if arguments.command == "report":
        report(arguments.works)
        return
    source = source_of(arguments)
    if arguments.command == "make":
        make(source, calibration_of(arguments), arguments.work, arguments.goals)
    else:
        measure(source, arguments.seed, evaluation_of(arguments), arguments.work)


if __name__ == "__main__":
    main()
