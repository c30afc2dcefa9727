"""The steps from statistics to quantized files, the same for `publish` and for `quantize`.

    statistics ─ search ─ round ─┬─ measure v1 ─ write v1
                                 └─ measure v2 ─ write v2

`round` is there if rounding is compensated, `measure` if layers are kept by measured error.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hswq_runtime.formats import Format, Reader

from ..calibration.calibrate import Calibration
from ..common.files import write_atomically
from ..common.identity import code_digest, environment_fingerprint
from ..quantization.compensate import check_memory, knows_outputs, replay_cost, write_compensated
from ..quantization.keep import keep, largest_bytes
from ..quantization.measure import measure_errors
from ..quantization.moments import TOGETHER
from ..quantization.plan import Plan, plan_everything, plan_naive, unread_plan
from ..quantization.writer import codes_of, planned_bytes, write_quantized
from ..settings import COMPENSATED, RECIPES, CalibrationSettings, Recipe
from ..sources.components import base_identity
from ..sources.source import Source
from .steps import Step, Work

STATISTICS = "calibration.safetensors"
STAGE = "quantize"
_PLANS, _PLAN, _ERRORS = "plans.json", "plan.json", "errors.json"


@dataclass(frozen=True)
class Quantization:
    """The steps that quantize one source. Each method makes one of them.

    place: the folder for the products. statistics: the step whose product holds `STATISTICS`. how: the settings that
    these were gathered with; device and dtype are what is computed with here. memory: see `write_compensated`.
    """

    place: Path
    source: Source
    statistics: Step
    formats: tuple[Format, ...]
    recipe: Recipe
    how: CalibrationSettings
    memory: float

    def steps(self) -> tuple[list[Step], dict[Format, Step]]:
        """All steps in order, and of each format the one that writes its file."""
        search = self._search()
        before = [search, *([self._round(search)] if self.recipe.rounding in COMPENSATED else [])]
        steps, writing = list(before), {}
        for format in self.formats:
            inputs = list(before)
            if self.recipe.keep_by == "error":
                inputs.append(self._measure(format, before))
                steps.append(inputs[-1])
            writing[format] = self._write(format, inputs)
            steps.append(writing[format])
        return steps, writing

    def _search(self) -> Step:
        """The range of every weight that can be FP8."""
        recipe, checkpoint = self.recipe, self.source.checkpoint
        asked = {"formats": [v.value for v in self.formats], "search": recipe.search and asdict(recipe.search)}
        asked |= {
            "rounding": recipe.rounding,
            "row_scales": recipe.row_scales,
            "fold": recipe.fold,
            "reader": recipe.reader,
        }

        def make(folder: Path) -> None:
            plans = plan_everything(checkpoint, self._calibration(), self.formats, recipe, self.how.device)
            _write_json(folder / _PLANS, {format.value: _decided(plan) for format, plan in plans.items()})

        def work() -> Work:
            return Work(moved=self.source.path.stat().st_size)

        return self._step("search", [environment_fingerprint(self.how.device), asked], make, work, [self.statistics])

    def _round(self, search: Step) -> Step:
        """All weights of each format with compensated rounding, in one file."""
        settings, rounding, checkpoint = self.recipe.compensation, self.recipe.rounding, self.source.checkpoint

        def make(folder: Path) -> None:
            write_compensated(
                checkpoint,
                self._calibration(),
                self._plans(search),
                {format: folder / _rounded_name(format) for format in self.formats},
                rounding,
                settings,
                source_sha256=self.source.sha256,
                memory=self.memory,
                device=self.how.device,
            )

        def work() -> Work:
            plan = unread_plan(checkpoint, self.formats[0], self.recipe)
            kept = sum(planned_bytes(checkpoint, unread_plan(checkpoint, v, self.recipe)) for v in self.formats)
            recorded = min(self.how.calls, self.how.samples * self.how.steps_of(self.source.architecture.steps))
            return Work(
                calls=recorded * check_memory(checkpoint, rounding, self.memory) * replay_cost(rounding),
                device=self.how.device,
                size=self.how.size,
                flops=len(self.formats) * sum(self._rounding_flops(d.key) for d in plan.quantized),
                moved=self.source.path.stat().st_size + kept,
                kept=kept,
            )

        return self._step(
            "round", [environment_fingerprint(self.how.device), asdict(settings)], make, work, [self.statistics, search]
        )

    def _rounding_flops(self, key: str) -> float:
        """Of one weight [rows, n]: the triangular factor n³, and 2·n² a row for feedback and for each sweep; with the
        outputs' a second factor and feedback."""
        info = self.source.checkpoint.tensors[key]
        rows, n = info.shape[0], info.values // info.shape[0]
        if knows_outputs(self.recipe.rounding):
            together = min(rows, TOGETHER)
            return rows / together * (n**3 + together**3) + 2.0 * rows * n * (n + together)
        return n**3 + 2.0 * rows * n**2 * (1 + self.recipe.compensation.sweeps)

    def _measure(self, format: Format, before: list[Step]) -> Step:
        """What each weight does to the pictures when it alone is quantized."""
        settings, prompts = self.recipe.measurement, self.source.prompts.calibration
        made_from = [
            environment_fingerprint(self.how.device),
            asdict(self.how),
            asdict(settings),
            prompts,
            base_identity(self.source),
        ]

        def make(folder: Path) -> None:
            plan = self._plans(before[0])[format]
            codes = codes_of(self.source.checkpoint, format, _rounded(before, format), self.how.device)
            _write_json(folder / _ERRORS, measure_errors(self.source, plan, codes, self.how, settings))

        def work() -> Work:
            architecture = self.source.architecture
            weights = len(unread_plan(self.source.checkpoint, format, self.recipe).quantized)
            calls = settings.samples * (settings.steps or architecture.steps) * (weights + 1)
            return Work(calls, self.how.device, self.how.size)

        return self._step(f"measure {format.value}", [made_from, format.value], make, work, before)

    def _write(self, format: Format, inputs: list[Step]) -> Step:
        """Choose what is kept, and write the file."""
        checkpoint = self.source.checkpoint
        made_from = [code_digest(), asdict(self.recipe), format.value, self.source.name, self.source.hub_base]

        def make(folder: Path) -> None:
            errors = None
            if self.recipe.keep_by == "error":
                errors = json.loads((inputs[-1].folder / _ERRORS).read_text(encoding="utf-8"))
            plan = keep(self._plans(inputs[0])[format], checkpoint, self.recipe, errors)
            rounded = _rounded(inputs, format)
            _write_file(self.source, plan, folder / quantized_name(self.source, format), self.how.device, rounded)

        def work() -> Work:
            kept = largest_bytes(checkpoint, format, self.recipe)
            return Work(moved=self.source.path.stat().st_size + kept, kept=kept)

        return self._step(f"write {format.value}", made_from, make, work, inputs)

    def _step(self, name: str, made_from, make, work, inputs: list[Step]) -> Step:
        return Step(name, STAGE, self.place, made_from, make, tuple(inputs), work)

    def _calibration(self) -> Calibration:
        return Calibration.load(self.statistics.folder / STATISTICS)

    def _plans(self, search: Step) -> dict[Format, Plan]:
        found = json.loads((search.folder / _PLANS).read_text(encoding="utf-8"))
        recipe = self.recipe
        return {Format(v): _plan(v, recipe.label, reader=recipe.reader, **decided) for v, decided in found.items()}


def naive_cast(place: Path, source: Source, device: str) -> Step:
    """The baseline file: a plain cast of all that can be FP8, without statistics."""

    def make(folder: Path) -> None:
        _write_file(source, plan_naive(source.checkpoint), folder / naive_name(source), device)

    def work() -> Work:
        kept = planned_bytes(source.checkpoint, unread_plan(source.checkpoint, Format.V1, RECIPES["hswq"]))
        return Work(moved=source.path.stat().st_size + kept, kept=kept)

    return Step("naive", STAGE, place, [code_digest(), source.name, source.hub_base], make, work=work)


def plan_of(step: Step) -> Plan:
    """What the file that `step` wrote was made by."""
    return _plan(**json.loads((step.folder / _PLAN).read_text(encoding="utf-8")))


def quantized_name(source: Source, format: Format) -> str:
    """What the quantized file of `source` is called."""
    return f"{source.name}-hswq-{format.value}.safetensors"


def naive_name(source: Source) -> str:
    """What its baseline is called."""
    return f"{source.name}-naive.safetensors"


def _rounded(steps: Sequence[Step], format: Format) -> Path | None:
    """The file with the rounded weights, if there is such a step among `steps`."""
    found = [step for step in steps if step.name == "round"]
    return found[0].folder / _rounded_name(format) if found else None


def _rounded_name(format: Format) -> str:
    return f"rounded-{format.value}.safetensors"


def _write_file(source: Source, plan: Plan, path: Path, device: str, rounded: Path | None = None) -> None:
    write_quantized(
        source.checkpoint,
        plan,
        path,
        source_sha256=source.sha256,
        base=source.hub_base,
        rounded=rounded,
        device=device,
    )
    described = {"format": plan.format.value, "recipe": plan.recipe, "reader": plan.reader, **_decided(plan)}
    _write_json(path.with_name(_PLAN), described)


def _decided(plan: Plan) -> dict:
    return {"rows": plan.as_rows(), "moves": dict(plan.moves)}


def _plan(format: str, recipe: str, reader: str, rows: list[dict], moves: dict[str, list]) -> Plan:
    return Plan.from_rows(Format(format), recipe, rows, moves, Reader(reader))


def _write_json(path: Path, content) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
