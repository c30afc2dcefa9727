"""The stage `quantize`: the steps from statistics to quantized files, the same for `publish` and for `quantize`.

    statistics ─ search ─ round ─ measure ─┬─ write v1
                                           └─ write v2 ...

`round` is there if rounding is compensated, `measure` if layers are kept by the error that they make.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from math import ceil
from pathlib import Path
from typing import Any

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.formats import Format, Number, Reader

from ... import __version__
from ...calibration.calibrate import Calibration
from ...common.files import write_atomically
from ...common.hardware import dtype_named
from ...common.identity import code_digest, environment_fingerprint
from ...common.pieces import Pieces
from ...quantization.choices.best import candidates, codes_of_best, plan_best
from ...quantization.choices.keep import keep, size_range
from ...quantization.compensate import (
    ReplayMemory,
    knows_outputs,
    passes_of_rounding,
    steps_of_rounding,
    write_compensated,
)
from ...quantization.kfac import BLOCK
from ...quantization.measure import Errors, measure_errors, passes_of_measuring
from ...quantization.moments import TOGETHER
from ...quantization.naive import write_naive
from ...quantization.plan import LINEAR, Plan, input_scales, plan_everything, unread_plan
from ...quantization.samples.inputs import INPUT_ROWS
from ...quantization.writer import Codes, codes_of, planned_bytes, write_quantized
from ...settings import COMPENSATED, GB, RECIPES, CalibrationSettings, PublishSettings, Recipe
from ...sources.source import Source
from ..forecast import cost_of, usual_size
from ..memory import block_values, replays_of
from ..steps import Step, Work
from .calibrate import STATISTICS

STAGE = "quantize"
ROOMS = ("hswq_hub.generation", "hswq_hub.calibration", "hswq_hub.quantization", __name__)
"""The code that decides the products."""
_LAUNCHES = 15
"""Small operations for one anti-diagonal, or one column, of a weight that is rounded."""
_WHOLE = (1.0, 4.0)
"""Passes that replaying the whole model takes, forwards and backwards, see `blocks.replay_passes`."""
_SINGLE = 8
"""How many times longer a GPU takes for a product in float32 than in bfloat16; from 2 to 15, by the GPU."""
_GATHERING = 50
"""Small operations that the second moments of one weight take in one call."""
_PLANS, _PLAN, _ERRORS = "plans.json", "plan.json", "errors.json"


@dataclass(frozen=True)
class Quantization:
    """The steps that quantize one source. Each method makes one of them.

    place: the folder for the products. statistics: the step whose product holds `STATISTICS`. calibration: the settings
    that these were gathered with, but for device and dtype, which are those to compute with here. memory: GB
    that second moments may take at once. device_memory: see `PublishSettings`. on_gpu: what it takes there is asked,
    whatever the device says.
    """

    place: Path
    source: Source
    statistics: Step
    formats: tuple[Format, ...]
    recipe: Recipe
    calibration: CalibrationSettings
    memory: float
    device_memory: float | None = None
    on_gpu: bool = False

    @cached_property
    def _replays(self) -> ReplayMemory:
        memory, device_memory = self.memory, self.device_memory
        asked = PublishSettings(
            self.formats, self.recipe, self.calibration, calibration_memory=memory, device_memory=device_memory
        )
        return replays_of(self.source, asked)

    @property
    def _candidates(self) -> tuple[Format, ...]:
        return candidates(self.formats)

    @property
    def _word(self) -> int:
        return dtype_named(self.calibration.dtype).itemsize

    def _streamed(self, calls: int) -> int:
        """Bytes of weights that move to the device while so many recorded calls are replayed in parts: all of them once
        a call that prepares, and once more for the parts."""
        if self._replays.room is None:
            return 0
        return (calls + 1) * self._word * sum(info.values for info in self.source.checkpoint.denoiser_tensors.values())

    def _scratch(self, calls: int, passes: float) -> int:
        """Bytes on disk while replaying in parts takes `passes` a call: what blocks were given, and the gradients."""
        if passes in _WHOLE:
            return 0
        cost = cost_of(self.source, self.calibration.size or usual_size(self.source))
        return 2 * calls * self._word * int(block_values(cost))

    def steps(self) -> tuple[list[Step], dict[Format, Step]]:
        """All steps in order, and of each format the one that writes its file."""
        search = self._search()
        before = [search, *([self._round(search)] if self.recipe.rounding in COMPENSATED else [])]
        if self.recipe.keep_by == "error":
            before.append(self._measure(before))
        writing = {format: self._write(format, before) for format in self.formats}
        return [*before, *writing.values()], writing

    def _search(self) -> Step:
        """The range of every weight that can be FP8."""
        recipe, checkpoint = self.recipe, self.source.checkpoint
        asked: dict[str, object] = {
            "formats": [format.value for format in self._candidates],
            "search": recipe.search and asdict(recipe.search),
            "rounding": recipe.rounding,
            "row_scales": recipe.row_scales,
            "fold": recipe.fold,
            "reader": recipe.reader,
        }

        def make(folder: Path, _: Pieces) -> None:
            plans = plan_everything(checkpoint, self._statistics(), self._candidates, recipe, self.calibration.device)
            _write_json(folder / _PLANS, {format.value: _decided(plan) for format, plan in plans.items()})

        work = partial(Work, moved=self.source.path.stat().st_size)
        return self._step("search", [self._environment, asked], make, work, [self.statistics])

    def _round(self, search: Step) -> Step:
        """All weights of each format with compensated rounding, in one file."""
        settings, rounding, checkpoint = self.recipe.compensation, self.recipe.rounding, self.source.checkpoint

        def make(folder: Path, pieces: Pieces) -> None:
            write_compensated(
                checkpoint,
                self._statistics(),
                self._plans(search),
                {format: folder / _rounded_name(format) for format in self._candidates},
                rounding,
                settings,
                source_sha256=self.source.sha256,
                memory=self._replays.moments,
                device=self.calibration.device,
                room=self._replays.room,
                workspace=self._replays.workspace,
                pieces=pieces,
            )

        def work() -> Work:
            plan = unread_plan(checkpoint, self._candidates[0], self.recipe)
            kept = sum(planned_bytes(checkpoint, unread_plan(checkpoint, v, self.recipe)) for v in self._candidates)
            recorded = self._recorded
            passes = self.source.architecture.passes(self.calibration.guidance)
            memory = self._replays
            each = passes_of_rounding(checkpoint, rounding, memory.moments, memory.weights(self._word))
            tokens = cost_of(self.source, self.calibration.size or usual_size(self.source)).tokens * passes
            feedback = self._feedback_flops(plan)
            doubles = not self.on_gpu or not knows_outputs(rounding)
            # Of what is finished codes are kept, and second moments: those before, and sums that replace others.
            held = int(min(memory.moments * GB, sum(2 * self._moment_flops(d.key) for d in plan.quantized)))
            return Work(
                calls=ceil(recorded * passes * each),
                device=self.calibration.device,
                size=self.calibration.size,
                flops=recorded * min(settings.tokens, tokens) * sum(self._moment_flops(d.key) for d in plan.quantized)
                + (0.0 if doubles else _SINGLE * feedback),
                double_flops=sum(self._factor_flops(d.key) for d in plan.quantized) + (feedback if doubles else 0.0),
                launches=self._rounding_launches() + recorded * passes * len(plan.quantized) * _GATHERING,
                values=len(self._candidates) * sum(self._rounding_values(d.key) for d in plan.quantized),
                moved=self.source.path.stat().st_size + kept + self._scratch(recorded * passes, each),
                kept=kept,
                streamed=self._streamed(recorded),
                scratch=self._scratch(recorded * passes, each) + kept + 3 * held,
            )

        return self._step("round", [self._environment, asdict(settings)], make, work, [self.statistics, search])

    def _moment_flops(self, key: str) -> float:
        """Of the second moments of one weight [rows, n] by one token: n², and with outputs rows²."""
        info = self.source.checkpoint.tensors[key]
        rows, n = info.shape[0], info.values // info.shape[0]
        of_outputs = rows * min(rows, TOGETHER) if knows_outputs(self.recipe.rounding) else 0
        return 2.0 * (n**2 + of_outputs)

    def _rounding_launches(self) -> float:
        """Small operations of rounding, one after the other."""
        workspace = self._replays.workspace
        steps = steps_of_rounding(self.source.checkpoint, self.recipe.rounding, workspace) * _LAUNCHES
        if knows_outputs(self.recipe.rounding):
            return steps
        return len(self._candidates) * (1 + self.recipe.compensation.sweeps) * steps

    def _rounding_values(self, key: str) -> float:
        """What those operations go through: a row and a column of a block for each of its weights, or the columns
        after one."""
        return (
            self.source.checkpoint.tensors[key].values * BLOCK * (3.0 if knows_outputs(self.recipe.rounding) else 1.0)
        )

    def _factor_flops(self, key: str) -> float:
        """Of the triangular factors for one weight [rows, n], n³ / 3 each and as much for the copies; of gptq's twice.
        With the outputs' the formats share them, but for INT8, which takes one more of the inputs' for its scales."""
        info = self.source.checkpoint.tensors[key]
        rows, n = info.shape[0], info.values // info.shape[0]
        if knows_outputs(self.recipe.rounding):
            together = min(rows, TOGETHER)
            shared, int8 = (any(number in f.numbers for f in self._candidates) for number in (Number.FP8, Number.INT8))
            return 2.0 / 3 * rows / together * ((shared + 2 * int8) * n**3 + (shared + int8) * together**3)
        return len(self._candidates) * float(n**3)

    def _feedback_flops(self, plan: Plan) -> float:
        """Of all weights [rows, n] in all formats: 2·n² a row for feedback and for each sweep; with the outputs' half
        of 2·(n + rows)·n, as factors are triangular."""
        total = 0.0
        for decision in plan.quantized:
            info = self.source.checkpoint.tensors[decision.key]
            rows, n = info.shape[0], info.values // info.shape[0]
            if knows_outputs(self.recipe.rounding):
                total += rows * n * (n + min(rows, TOGETHER))
            else:
                total += 2.0 * rows * n**2 * (1 + self.recipe.compensation.sweeps)
        return len(self._candidates) * total

    def _measure(self, before: list[Step]) -> Step:
        """What each weight of each format does to the denoiser's output when it alone is quantized."""
        settings, checkpoint, formats = self.recipe.measurement, self.source.checkpoint, self._candidates

        def make(folder: Path, pieces: Pieces) -> None:
            device, statistics, plans = self.calibration.device, self._statistics(), self._plans(before[0])
            errors = measure_errors(
                checkpoint,
                statistics,
                plans,
                {v: self._codes(v, before) for v in formats},
                settings,
                scales=input_scales(checkpoint, statistics, plans[formats[0]]),
                place=folder,
                memory=self._replays.moments,
                device=device,
                room=self._replays.room,
                pieces=pieces,
            )
            _write_json(folder / _ERRORS, asdict(errors))

        def work() -> Work:
            passes, memory = self.source.architecture.passes(self.calibration.guidance), self._replays
            each = passes_of_measuring(checkpoint, len(formats), memory.moments, self._word, memory.weights(self._word))
            used = min(settings.calls, self._recorded)
            quantized = unread_plan(checkpoint, formats[0], self.recipe).quantized
            linear = sum(checkpoint.tensors[d.key].values for d in quantized if d.kind == LINEAR)
            rows = min(INPUT_ROWS, cost_of(self.source, self.calibration.size or usual_size(self.source)).tokens)
            return Work(
                ceil(used * passes * each),
                self.calibration.device,
                self.calibration.size,
                flops=2.0 * used * passes * rows * linear,
                values=used * len(formats) * sum(checkpoint.tensors[d.key].values for d in quantized),
                moved=self.source.path.stat().st_size + self._scratch(used * passes, each),
                streamed=self._streamed(used),
                scratch=self._scratch(used * passes, each),
            )

        return self._step("measure", [self._environment, asdict(settings)], make, work, [self.statistics, *before])

    @property
    def _recorded(self) -> int:
        """How many calls the statistics hold."""
        steps = self.calibration.steps_of(self.source.architecture.steps)
        return min(self.calibration.calls, self.calibration.samples * steps)

    def _write(self, format: Format, inputs: list[Step]) -> Step:
        """Choose what is kept, and write the file."""
        checkpoint = self.source.checkpoint
        source = [self.source.name, self.source.hub_base]
        made_from = [code_digest(*ROOMS), __version__, asdict(self.recipe), format.value, *source]

        def make(folder: Path, _: Pieces) -> None:
            plan, codes = self._choose(format, inputs), self._codes(format, inputs)
            path, sha256 = folder / quantized_name(self.source.name, format), self.source.sha256
            write_quantized(checkpoint, plan, path, codes, source_sha256=sha256, base=self.source.hub_base)
            _write_plan(plan, folder)

        def work() -> Work:
            _, kept = size_range(checkpoint, format, self.recipe)
            return Work(moved=self.source.path.stat().st_size + kept, kept=kept)

        return self._step(f"write {format.value}", made_from, make, work, inputs)

    def _choose(self, format: Format, inputs: list[Step]) -> Plan:
        """The plan of a file, with what is kept and how it is multiplied."""
        plans, checkpoint = self._plans(inputs[0]), self.source.checkpoint
        errors = Errors.load(inputs[-1].folder / _ERRORS) if self.recipe.keep_by == "error" else None
        if errors is None:
            return keep(plans[format], checkpoint, self.recipe)
        if format is Format.BEST:
            return plan_best(plans, checkpoint, self.recipe, errors)
        return keep(plans[format], checkpoint, self.recipe, errors.weights[format], errors.inputs)

    def _codes(self, format: Format, before: list[Step]) -> Codes:
        """What the quantized weights of a file are."""
        checkpoint, device = self.source.checkpoint, self.calibration.device
        if format is Format.BEST:
            return codes_of_best(checkpoint, {v: _rounded(before, v) for v in self._candidates}, device)
        return codes_of(checkpoint, format, _rounded(before, format), device)

    @property
    def _environment(self) -> list[object]:
        return environment_fingerprint(self.calibration.device, *ROOMS)

    def _step(
        self,
        name: str,
        made_from: object,
        make: Callable[[Path, Pieces], None],
        work: Callable[[], Work],
        inputs: list[Step],
    ) -> Step:
        return Step(name, STAGE, self.place, made_from, make, tuple(inputs), work)

    def _statistics(self) -> Calibration:
        return Calibration.load(self.statistics.folder / STATISTICS)

    def _plans(self, search: Step) -> dict[Format, Plan]:
        found = json.loads((search.folder / _PLANS).read_text(encoding="utf-8"))
        recipe = self.recipe
        return {Format(v): _plan(v, recipe.label, reader=recipe.reader, **decided) for v, decided in found.items()}


def naive_step(
    place: Path, checkpoint: Checkpoint, name: str, *, sha256: str, base: str | None = None, device: str = "cpu"
) -> Step:
    """The baseline file: a plain cast of all that can be FP8, without statistics. `name`, `sha256`: of the source."""

    def make(folder: Path, _: Pieces) -> None:
        plan = write_naive(checkpoint, folder / naive_name(name), source_sha256=sha256, base=base, device=device)
        _write_plan(plan, folder)

    def work() -> Work:
        kept = planned_bytes(checkpoint, unread_plan(checkpoint, Format.V1, RECIPES["hswq"]))
        return Work(moved=checkpoint.path.stat().st_size + kept, kept=kept)

    stated = checkpoint.stated and checkpoint.stated.arguments
    made_from = [code_digest("hswq_hub.quantization", __name__), __version__, name, base, stated]
    return Step("naive", STAGE, place, made_from, make, work=work)


def plan_of(step: Step) -> Plan:
    """What the file that `step` wrote was made by."""
    return _plan(**json.loads((step.folder / _PLAN).read_text(encoding="utf-8")))


def quantized_name(name: str, format: Format) -> str:
    """Of the quantized source `name`."""
    return f"{name}-hswq-{format.value}.safetensors"


def naive_name(name: str) -> str:
    """Of its baseline."""
    return f"{name}-naive.safetensors"


def _rounded(steps: Sequence[Step], format: Format) -> Path | None:
    """The file with the rounded weights, if there is such a step among `steps`."""
    found = [step for step in steps if step.name == "round"]
    return found[0].folder / _rounded_name(format) if found else None


def _rounded_name(format: Format) -> str:
    return f"rounded-{format.value}.safetensors"


def _write_plan(plan: Plan, folder: Path) -> None:
    described = {"format": plan.format.value, "recipe": plan.recipe, "reader": plan.reader, **_decided(plan)}
    _write_json(folder / _PLAN, described)


def _decided(plan: Plan) -> dict[str, object]:
    return {"rows": plan.as_rows(), "moves": dict(plan.moves)}


def _plan(format: str, recipe: str, reader: str, rows: list[dict[str, Any]], moves: dict[str, list[Any]]) -> Plan:
    return Plan.from_rows(Format(format), recipe, rows, moves, Reader(reader))


def _write_json(path: Path, content: object) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
