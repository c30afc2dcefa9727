"""From a full-precision checkpoint and its statistics to HSWQ files.

search (ranges) · fold · compensate (moments, gptq) · measure (errors) · keep · writer
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from hswq_runtime.checkpoint import Checkpoint
from hswq_runtime.errors import FormatError
from hswq_runtime.formats import Format

from ..calibrate import Calibration
from ..hardware import pick_device
from ..settings import CALIBRATION_MEMORY, CalibrationSettings, Recipe
from ..settings import recipe as recipe_of
from ..sources import Source
from ..targets import check_replaceable
from .compensate import check_memory, write_compensated
from .fold import check_fold
from .keep import check_budget, keep
from .measure import measure_errors
from .plan import Decision, Plan, plan_everything, plan_naive
from .writer import codes_of, write_quantized

__all__ = [
    "Decision",
    "Plan",
    "check_budget",
    "check_fold",
    "check_memory",
    "codes_of",
    "keep",
    "measure_errors",
    "plan_everything",
    "plan_naive",
    "quantize",
    "quantized_name",
    "write_compensated",
    "write_quantized",
]


def quantize(
    source: Source,
    calibration: Calibration,
    versions: Sequence[Format],
    folder: Path,
    recipe: Recipe | None = None,
    device: str = "auto",
    memory: float = CALIBRATION_MEMORY,
) -> list[tuple[Path, Plan]]:
    """Plan and write `<folder>/<name>-hswq-<version>.safetensors`; returns path and plan of each version.

    Raises:
        FormatError: the calibration was made from another file.
        DeviceError: CUDA asked for and absent.
        TargetError: another kind of file has that name already.
        HSWQError: the budget or the bound on memory cannot be met.
    """
    if calibration.made_by.get("source_sha256") != source.sha256:
        raise FormatError(
            f"the calibration was made from another file than {source.path.name}; run `hswq-hub calibrate` on it"
        )
    recipe, where, checkpoint = recipe or recipe_of(), pick_device(device), source.checkpoint
    paths = {version: folder / quantized_name(source, version) for version in versions}
    for path in paths.values():
        check_replaceable(path, path.suffix, _require_quantized)
    check_fold(checkpoint, versions, recipe)
    for version in versions:
        check_budget(checkpoint, version, recipe)
    plans = plan_everything(checkpoint, calibration, versions, recipe, where)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".rounded-") as scratch:
        rounded = dict.fromkeys(versions)
        if recipe.rounding == "gptq":
            rounded = {version: Path(scratch) / f"{version.value}.safetensors" for version in versions}
            write_compensated(
                checkpoint,
                calibration,
                plans,
                rounded,
                recipe.compensation,
                source_sha256=source.sha256,
                memory=memory,
                device=where,
            )
        results = []
        for version, path in paths.items():
            plan, errors = plans[version], None
            if recipe.keep_by == "error":
                how = CalibrationSettings(**calibration.made_by["settings"] | {"device": device})
                codes = codes_of(checkpoint, version, rounded[version], where)
                errors = measure_errors(source, plan, codes, how, recipe.measurement)
            plan = keep(plan, checkpoint, recipe, errors)
            write_quantized(
                checkpoint,
                plan,
                path,
                source_sha256=source.sha256,
                base=source.hub_base,
                rounded=rounded[version],
                device=where,
            )
            results.append((path, plan))
    return results


def _require_quantized(path: Path) -> None:
    if not Checkpoint(path).quantized:
        raise FormatError(f"{path} is not quantized")


def quantized_name(source: Source, version: Format) -> str:
    """What the quantized file of `source` is called."""
    return f"{source.name}-hswq-{version.value}.safetensors"
