"""From a full-precision checkpoint and its statistics to HSWQ files: search · plan · writer."""

from pathlib import Path

from hswq_runtime.checkpoint import Checkpoint
from hswq_runtime.errors import FormatError
from hswq_runtime.formats import Format

from ..calibrate import Calibration
from ..hardware import pick_device
from ..settings import Recipe
from ..sources import Source
from ..targets import check_replaceable
from .plan import Decision, Plan, plan_hswq, plan_naive
from .writer import write_quantized

__all__ = ["Decision", "Plan", "plan_hswq", "plan_naive", "quantize", "write_quantized"]


def quantize(
    source: Source,
    calibration: Calibration,
    version: Format,
    folder: Path,
    recipe: Recipe | None = None,
    device: str = "auto",
) -> tuple[Path, Plan]:
    """Plan and write `<folder>/<name>-hswq-<version>.safetensors`; returns its path and the plan.

    Raises:
        FormatError: the calibration was made from another file.
        DeviceError: CUDA asked for and absent.
        TargetError: another kind of file has that name already.
    """
    if calibration.made_by.get("source_sha256") != source.sha256:
        raise FormatError(
            f"the calibration was made from another file than {source.path.name}; run `hswq-hub calibrate` on it"
        )
    where = pick_device(device)
    path = folder / quantized_name(source, version)
    check_replaceable(path, path.suffix, _require_quantized)
    plan = plan_hswq(source.checkpoint, calibration, version, recipe or Recipe(), where)
    write_quantized(source.checkpoint, plan, path, source_sha256=source.sha256, base=source.hub_base, device=where)
    return path, plan


def _require_quantized(path: Path) -> None:
    if not Checkpoint(path).quantized:
        raise FormatError(f"{path} is not quantized")


def quantized_name(source: Source, version: Format) -> str:
    """What the quantized file of `source` is called."""
    return f"{source.name}-hswq-{version.value}.safetensors"
