"""The plan: for every weight of the denoiser whether it becomes FP8, with what range, and why.

The unit is the stored tensor. A fused tensor such as Z-Image's `attention.qkv` is one layer here; its statistics
are put together from those of the diffusers modules that its rows become.
"""

from dataclasses import asdict, dataclass

import torch

from hswq_runtime.checkpoint import Checkpoint
from hswq_runtime.errors import FormatError
from hswq_runtime.formats import Format, layer_of
from hswq_runtime.fp8 import FP8_MAX

from ..calibrate import Calibration
from ..progress import progress
from ..settings import Recipe
from .search import search_amax, weighted_histogram

KEPT, FP8 = "kept", "fp8_e4m3fn"


@dataclass(frozen=True)
class Decision:
    """What happens to one stored weight.

    number_format: KEPT or FP8. maximum: max|w|. amax: Δ*, where the range is clipped. scale: what the FP8 values
    are multiplied with, 1.0 in V1. sensitivity: the layer's output variance, None where nothing was measured.
    """

    key: str
    layer: str
    kind: str
    number_format: str
    reason: str
    sensitivity: float | None = None
    maximum: float | None = None
    amax: float | None = None
    scale: float | None = None

    @property
    def quantized(self) -> bool:
        return self.number_format == FP8


@dataclass(frozen=True)
class Plan:
    """The decisions for every Linear and Conv2d weight, in file order, for a file of format `version`."""

    version: Format
    recipe: str
    decisions: tuple[Decision, ...]

    @property
    def kept(self) -> list[Decision]:
        return [d for d in self.decisions if not d.quantized]

    def as_rows(self) -> list[dict]:
        """Plain dictionaries, for JSON."""
        return [asdict(decision) for decision in self.decisions]


def plan_hswq(
    checkpoint: Checkpoint,
    calibration: Calibration,
    version: Format,
    recipe: Recipe,
    device: torch.device | str = "cpu",
) -> Plan:
    """The published recipe: keep the most sensitive layers, search the range of the others, on `device`.

    Of n quantizable layers the `round(keep_ratio · n)` with the largest output variance stay as they are.

    Raises:
        FormatError: the calibration is of another model, or a weight is not finite.
    """
    keep_ratio = checkpoint.architecture.keep_ratio if recipe.keep_ratio is None else recipe.keep_ratio
    possible = [key for key in checkpoint.layers if checkpoint.why_never_quantized(key) is None]
    sensitivity = {key: _output_variance(checkpoint, calibration, key) for key in checkpoint.layers}
    ranked = sorted(possible, key=sensitivity.get, reverse=True)
    rank = {key: place for place, key in enumerate(ranked, start=1)}
    keep = round(keep_ratio * len(ranked))

    decisions = []
    for key, kind in progress(checkpoint.layers.items(), desc=f"search {version.value}", unit="layer"):
        known = {
            "key": key,
            "layer": checkpoint.layer(key),
            "kind": kind.__name__,
            "sensitivity": sensitivity[key],
        }
        if (why := checkpoint.why_never_quantized(key)) is not None:
            decisions.append(Decision(number_format=KEPT, reason=f"never quantized: {why}", **known))
            continue
        if rank[key] <= keep:
            reason = f"sensitivity rank {rank[key]} of {len(ranked)}, within the keep ratio {keep_ratio:g}"
            decisions.append(Decision(number_format=KEPT, reason=reason, **known))
            continue
        weight = _finite(checkpoint, key).to(device)
        histogram = weighted_histogram(weight, _importance(checkpoint, calibration, key), recipe.search.bins)
        amax = search_amax(histogram, version.scaled, recipe.search)
        decisions.append(
            Decision(
                number_format=FP8,
                reason=f"sensitivity rank {rank[key]} of {len(ranked)}",
                maximum=histogram.maximum,
                amax=amax,
                scale=_scale(amax, version),
                **known,
            )
        )
    return Plan(version, recipe.name, tuple(decisions))


def plan_naive(checkpoint: Checkpoint) -> Plan:
    """The baseline: a plain cast of every layer that can be FP8 at all. No calibration, nothing kept, no scale."""
    decisions = []
    for key, kind in checkpoint.layers.items():
        known = {"key": key, "layer": checkpoint.layer(key), "kind": kind.__name__}
        if (why := checkpoint.why_never_quantized(key)) is not None:
            decisions.append(Decision(number_format=KEPT, reason=f"never quantized: {why}", **known))
            continue
        maximum = _finite(checkpoint, key).abs().max().item()
        amax = min(maximum, FP8_MAX)
        decisions.append(
            Decision(number_format=FP8, reason="plain cast", maximum=maximum, amax=amax, scale=1.0, **known)
        )
    return Plan(Format.V1, "naive", tuple(decisions))


def _finite(checkpoint: Checkpoint, key: str) -> torch.Tensor:
    """The weight `key`.

    Raises:
        FormatError: it holds NaN or infinity, which no FP8 file can stand for.
    """
    weight = checkpoint.tensor(key)
    if not weight.isfinite().all():
        raise FormatError(f"{key} of {checkpoint.path} holds NaN or infinity; the checkpoint is damaged")
    return weight


def _statistics(checkpoint: Checkpoint, calibration: Calibration, key: str):
    try:
        return [calibration.layers[layer_of(name)] for name in checkpoint.modules[key]]
    except KeyError as error:
        raise FormatError(f"the calibration knows no layer {error}; it was made from another model") from error


def _output_variance(checkpoint: Checkpoint, calibration: Calibration, key: str) -> float:
    """Variance of the outputs of all modules behind `key`, weighted by how many rows each has."""
    rows = [_rows(checkpoint, name) for name in checkpoint.modules[key]]
    statistics = _statistics(checkpoint, calibration, key)
    mean = sum(n * s.output_mean for n, s in zip(rows, statistics, strict=True)) / sum(rows)
    square = sum(n * s.output_square for n, s in zip(rows, statistics, strict=True)) / sum(rows)
    return max(square - mean**2, 0.0)


def _rows(checkpoint: Checkpoint, parameter: str) -> int:
    """First dimension of a diffusers parameter."""
    return sum(piece.stop - piece.start for piece in checkpoint.parameters[parameter])


def _importance(checkpoint: Checkpoint, calibration: Calibration, key: str) -> torch.Tensor:
    """I_c of the input that the modules behind `key` share: their mean, should they be called with different ones."""
    return torch.stack([s.importance for s in _statistics(checkpoint, calibration, key)]).mean(dim=0)


def _scale(amax: float, version: Format) -> float:
    """Δ*/448 rounded to the float32 that is stored; 1 in V1 and for a weight of zeros."""
    if not version.scaled or amax == 0:
        return 1.0
    return torch.tensor(amax / FP8_MAX, dtype=torch.float32).item()
