"""What was measured of files against their original: the figures of every pair, their means, and both as JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hswq_runtime.errors import FormatError

from ..common.files import write_atomically
from .intervals import Interval, of_mean

ORIGINAL = "original"
_MEANS = ("ssim_mean", "ssim_worst", "psnr_mean", "latent_mse_mean", "perceptual_mean", "seconds_mean")


@dataclass(frozen=True)
class PairResult:
    """One variant's picture of one prompt and seed against the original's. `psnr` None: they are equal. perceptual:
    what metrics of `perceptual.METRICS` found, by their names."""

    prompt: str
    seed: int
    ssim: float
    psnr: float | None
    latent_mse: float
    seconds: float
    perceptual: dict[str, float] = field(default_factory=dict)


def ssim(pair: PairResult) -> float:
    return pair.ssim


def latent_mse(pair: PairResult) -> float:
    return pair.latent_mse


@dataclass(frozen=True)
class Measured:
    """The pictures of one row of a table, `pairs` in the order of the protocol's pairs."""

    pairs: list[PairResult]

    def values(self, figure: Callable[[PairResult], float]) -> list[float]:
        """A figure of each pair."""
        return [figure(pair) for pair in self.pairs]

    def perceived(self, name: str) -> list[float]:
        """What the perceptual metric `name` found of each pair."""
        return [pair.perceptual[name] for pair in self.pairs]

    @property
    def ssim_mean(self) -> float:
        return fmean(self.values(ssim))

    @property
    def ssim_worst(self) -> float:
        return min(self.values(ssim))

    @property
    def psnr_mean(self) -> float | None:
        """Mean in dB over the pairs that differ; None if none does."""
        values = [pair.psnr for pair in self.pairs if pair.psnr is not None]
        return fmean(values) if values else None

    @property
    def latent_mse_mean(self) -> float:
        return fmean(self.values(latent_mse))

    @property
    def perceptual_mean(self) -> dict[str, float]:
        """Of the metrics that were measured of every pair."""
        return {name: fmean(self.perceived(name)) for name in self.perceptual}

    @property
    def perceptual(self) -> list[str]:
        """The metrics that were measured of every pair, by name."""
        return [name for name in self.pairs[0].perceptual if all(name in pair.perceptual for pair in self.pairs)]

    @property
    def seconds_mean(self) -> float:
        return fmean(pair.seconds for pair in self.pairs)

    @property
    def intervals(self) -> dict[str, Interval | None]:
        """Of the means, by their names in metrics.json; those of perceptual metrics by the metrics' names."""
        return {
            "ssim_mean": of_mean(self.values(ssim)),
            "latent_mse_mean": of_mean(self.values(latent_mse)),
            **{name: of_mean(self.perceived(name)) for name in self.perceptual},
        }

    def as_document(self) -> dict[str, Any]:
        """As JSON, with the means beside the pairs that they are made of."""
        found = {name: [i.low, i.high] for name, i in self.intervals.items() if i is not None}
        pairs = [asdict(pair) for pair in self.pairs]
        return {name: getattr(self, name) for name in _MEANS} | {"intervals": found, "pairs": pairs}


@dataclass(frozen=True)
class VariantResult(Measured):
    """What was measured of one file.

    file_bytes: on disk. weight_bytes: the denoiser in memory, see `Checkpoint.weight_bytes`. kept_layers: linear and
    convolution layers that are not quantized, of `layers`. rounded_layers: those that ComfyUI multiplies in
    `arithmetic`, FP8 or INT8, where the hardware can. rounded_pairs: what comes of that; empty where there are none,
    and of figures from before it was measured.
    """

    label: str
    file: str
    file_bytes: int
    weight_bytes: int
    kept_layers: int
    layers: int
    rounded_layers: int = 0
    rounded_pairs: list[PairResult] = field(default_factory=list)
    arithmetic: str = "FP8"

    @property
    def multiplied(self) -> "VariantResult | None":
        """The same file as ComfyUI computes it on a GPU with such arithmetic; None if that is no different."""
        return replace(self, pairs=self.rounded_pairs, rounded_pairs=[]) if self.rounded_pairs else None

    def as_document(self) -> dict[str, Any]:
        facts = {name: value for name, value in vars(self).items() if name not in ("pairs", "rounded_pairs")}
        rounded = {} if self.multiplied is None else {"multiplied": Measured(self.rounded_pairs).as_document()}
        return facts | super().as_document() | rounded


@dataclass(frozen=True)
class NoiseFloor(Measured):
    """The original itself, its denoiser computed in `dtype` instead of in the reference's `instead_of`: how far two
    ways of computing it are apart that people take for the same. Both are names of torch's dtypes."""

    dtype: str
    instead_of: str

    @property
    def coarser(self) -> str:
        """The one of the two that rounds more."""
        return self.instead_of if self.dtype == "float32" else self.dtype

    def as_document(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "instead_of": self.instead_of} | super().as_document()


@dataclass(frozen=True)
class Evaluation:
    """All variants of one run, the original first, and the protocol they were measured by."""

    protocol: dict[str, Any]
    variants: list[VariantResult]
    images: dict[str, list[NDArray[np.uint8]]] = field(default_factory=dict, repr=False, compare=False)
    """Label -> pictures in the order of the pairs, uint8 [H, W, 3]. Not saved with the figures."""
    noise_floor: NoiseFloor | None = None
    """None: it was not measured, as by commits that knew none."""

    def variant(self, label: str) -> VariantResult | None:
        return next((v for v in self.variants if v.label == label), None)

    @property
    def perceptual(self) -> list[str]:
        """The perceptual metrics that were measured of everything."""
        rows: list[Measured] = [row for v in self.variants for row in (v, v.multiplied) if row]
        rows += [self.noise_floor] if self.noise_floor else []
        return [name for name in rows[0].perceptual if all(name in row.perceptual for row in rows)] if rows else []

    def save(self, path: Path) -> None:
        """Write the figures as JSON, with means and intervals beside the pairs they are made of."""
        document = {"protocol": self.protocol, "variants": [variant.as_document() for variant in self.variants]}
        if self.noise_floor is not None:
            document["noise_floor"] = self.noise_floor.as_document()
        write_atomically(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """Read what :meth:`save` wrote; means and intervals are computed anew from the pairs.

        Raises:
            FormatError: the file does not exist, or is something else.
        """
        if not path.exists():
            raise FormatError(f"{path} does not exist; make one with `hswq-hub evaluate`")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            return cls._from_dict(document)
        except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
            raise FormatError(f"{path} holds no figures of ours") from error

    @classmethod
    def _from_dict(cls, document: dict[str, Any]) -> "Evaluation":
        names = VariantResult.__dataclass_fields__
        variants = []
        for row in document["variants"]:
            pairs = {"pairs": _pairs(row), "rounded_pairs": _pairs(row.get("multiplied", {"pairs": []}))}
            variants.append(VariantResult(**{k: v for k, v in row.items() if k in names} | pairs))
        floor = document.get("noise_floor")
        found = None if floor is None else NoiseFloor(_pairs(floor), str(floor["dtype"]), str(floor["instead_of"]))
        return cls(document["protocol"], variants, noise_floor=found)


def _pairs(row: dict[str, Any]) -> list[PairResult]:
    return [PairResult(**pair) for pair in row["pairs"]]
