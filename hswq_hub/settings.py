"""Every setting and its default, once; the command line reads them from here.

This module imports nothing heavy, so that `--help` need not wait for torch.
"""

from dataclasses import dataclass, field

from hswq_runtime.formats import Format

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")
RECIPES = ("hswq",)


@dataclass(frozen=True)
class CalibrationSettings:
    """How the statistics are gathered: pictures to make, denoising steps of each, seed of the first.

    `guidance` (scale) and `size` (pixels a side) None: the model's defaults.
    """

    samples: int = 32
    steps: int = 25
    seed: int = 0
    guidance: float | None = None
    size: int | None = None
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class SearchSettings:
    """The amax search: histogram bins, candidates a round, rounds after the first, lowest share of max|w|."""

    bins: int = 4096
    candidates: int = 200
    refinements: int = 3
    lowest: float = 0.5


@dataclass(frozen=True)
class Recipe:
    """How weights are chosen and rounded. `keep_ratio` None: the architecture's recommendation."""

    name: str = RECIPES[0]
    keep_ratio: float | None = None
    search: SearchSettings = field(default_factory=SearchSettings)


@dataclass(frozen=True)
class EvaluationSettings:
    """How files are measured: prompt and seed pairs, seed of the first pair, and how each picture is made.

    `steps`, `guidance` and `size` None: the model's defaults.
    """

    pairs: int = 16
    steps: int | None = None
    seed: int = 1000
    guidance: float | None = None
    size: int | None = None
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class PublishSettings:
    """Everything that decides what is published."""

    formats: tuple[Format, ...] = tuple(Format)
    recipe: Recipe = field(default_factory=Recipe)
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
