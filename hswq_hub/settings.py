"""Every setting that decides what comes out, and its default, once; the command line reads them from here.

Where it goes is in `hub/settings.py`, on which machine in `jobs/settings.py`. These modules import nothing heavy, so
that `--help` need not wait for torch.
"""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hswq_runtime.formats import Format, Reader

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")
ROUNDINGS = ("kfac", "gptq", "nearest")
COMPENSATED = ("kfac", "gptq")
PERCEPTUAL = ("flip", "ssimulacra2")
KEEP_BY = ("error", "variance")
GB = 1e9
CALIBRATION_MEMORY = 8.0
ALLOWED = 2.0
"""The error of a file whose readers multiply with rounded inputs where they may, over that with exact products."""
INT8_SPEED = 0.9
"""The share of the linear layers' work that is in INT8, which rounds inputs more finely than FP8 does, in a file for
readers that multiply so wherever they may."""
DEFAULT_FORMATS = (Format.V1, Format.V2)
"""What is made unless something else is asked for."""
ALL_FORMATS = (Format.V1, Format.V2, Format.INT8)
"""Each number format and layout once; "best" is a mix of these."""
FORMAT_GROUPS = {"both": DEFAULT_FORMATS, "all": ALL_FORMATS}
"""Several formats by one word, beside those that are called by their own."""
_STEPS = 25
STAGES = ("calibrate", "quantize", "evaluate", "folder")
"""What `publish` does with a source, in this order, as a person calls it; each consists of one or more steps."""


def formats_called(word: str) -> tuple[Format, ...]:
    """What "both", "all" or the name of one format means.

    Raises:
        ValueError: it is none of these.
    """
    return FORMAT_GROUPS.get(word) or (Format(word),)


@dataclass(frozen=True)
class PromptSettings:
    """Text files with one prompt a line, to calibrate with and to measure on. None: what the model brings: prompts of
    its page, or the list that its family's users write like.
    """

    calibration: Path | None = None
    evaluation: Path | None = None


@dataclass(frozen=True)
class SourceSettings:
    """How a reference becomes a file.

    base: diffusers folder or Hub repo with the other components. licence: Hub licence id, if the host names none.
    civitai_endpoint: where Civitai's API is; None: the site that the reference names. permitted: the user has the
    creator's permission where the listing has objections. verify: read a file that is in a cache again, in full.
    prompts: what it is calibrated with and measured on.
    """

    base: str | None = None
    licence: str | None = None
    civitai_endpoint: str | None = None
    permitted: bool = False
    verify: bool = False
    prompts: PromptSettings = field(default_factory=PromptSettings)


@dataclass(frozen=True)
class CalibrationSettings:
    """How the statistics are gathered: pictures to make, denoising steps of each, seed of the first.

    `calls`: of the denoiser's calls, how many are recorded to be replayed later. `steps` None: the model's own, 25 at
    most; the published method takes 32 pictures of 25 steps. `guidance` (scale) and `size` (pixels a side) None: the
    model's. `whole`: every picture is finished, as statistics of all steps want it; otherwise it ends with the last of
    its calls that is recorded, which is all that compensated rounding uses.
    """

    samples: int = 128
    steps: int | None = None
    calls: int = 128
    seed: int = 0
    guidance: float | None = None
    size: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    whole: bool = True

    def steps_of(self, own: int) -> int:
        """Denoising steps of a picture, for a model whose pictures are made in `own`."""
        return self.steps or min(own, _STEPS)


@dataclass(frozen=True)
class SearchSettings:
    """The amax search: candidates a round, rounds after the first, lowest share of max|w|.

    `bins`: of the histogram that is searched instead of the weights themselves; None: exact, over every weight.
    """

    bins: int | None = 4096
    candidates: int = 200
    refinements: int = 3
    lowest: float = 0.5


SEARCHES = {"histogram": SearchSettings(), "exact": SearchSettings(bins=None), "none": None}
"""As published; over the weights themselves; not at all."""


@dataclass(frozen=True)
class RoundingSettings:
    """Compensated rounding: damping of the inputs' second moments as a share of their mean, and of the outputs' (kfac);
    sweeps of descent at most (gptq); and how many rows of input count in one call of a layer, evenly spread: more cost
    time and change little."""

    damping: float = 0.003
    output_damping: float = 0.1
    sweeps: int = 3
    tokens: int = 1024


@dataclass(frozen=True)
class ErrorSettings:
    """How the error that one weight makes is measured: on so many of the recorded calls."""

    calls: int = 32


@dataclass(frozen=True)
class Recipe:
    """How weights are chosen and rounded.

    rounding: one of `ROUNDINGS`. keep_by: one of `KEEP_BY`. keep_ratio: share of the layers that are kept; budget: size
    of the quantized denoiser as a share of its size in 16 bits; one of the two is None. Both None: the keep ratio that
    the published method recommends for the architecture. least_room: with a budget that is too small, keeping may cost
    this share of all that it could cost; None: such a budget is an error. row_scales: V2 has a scale a row. fold: in V1
    powers of two are moved between layers. search: of the range; None: the range is max|w|. reader: who has to be able
    to read V2. speed: the share of the linear layers' work that is in FP8, or INT8, where a reader can, inputs rounded
    too; None: as much as keeps the error within `ALLOWED` times that of exact products, of INT8 files `INT8_SPEED`. It
    is chosen where layers are kept by error; otherwise products are as published.
    """

    name: str
    rounding: str
    keep_by: str
    keep_ratio: float | None = None
    budget: float | None = None
    least_room: float | None = None
    row_scales: bool = False
    fold: bool = False
    search: SearchSettings | None = None
    reader: Reader = Reader.HSWQ
    compensation: RoundingSettings = field(default_factory=RoundingSettings)
    measurement: ErrorSettings = field(default_factory=ErrorSettings)
    speed: float | None = None

    @property
    def chooses_products(self) -> bool:
        """Whether it is decided layer by layer how readers multiply."""
        return self.keep_by == "error"

    @property
    def wants_statistics(self) -> bool:
        """Whether anything is decided by the statistics of layers, and not by recorded calls alone."""
        return self.keep_by == "variance" or self.search is not None

    @property
    def label(self) -> str:
        """What a file's header says: the name and what differs from the recipe of that name."""
        own = RECIPES[self.name]
        differing = [f.name for f in fields(self) if getattr(self, f.name) != getattr(own, f.name)]
        simple = (str, int, float, type(None))
        said = [
            f"{name} {getattr(self, name)}" if isinstance(getattr(self, name), simple) else f"{name} changed"
            for name in differing
        ]
        return f"{self.name} ({', '.join(said)})" if said else self.name


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("measured", rounding="kfac", keep_by="error", budget=0.56, least_room=0.015),
        Recipe("hswq", rounding="nearest", keep_by="variance", search=SEARCHES["histogram"]),
    )
}
"""The default first. "hswq" is the method as published; "measured" was chosen by `benchmarks/fidelity.py`: a range
that is searched for rounding to nearest loses to max|w| when rounding is compensated."""
DEFAULT_RECIPE = next(iter(RECIPES))


def recipe(name: str = DEFAULT_RECIPE, **changes: Any) -> Recipe:
    """The recipe `name` with those of `changes` that are not None; a keep ratio takes the place of a budget, and
    the other way round. A budget that is given here has to be met. `search` is a name in `SEARCHES`.

    Raises:
        ValueError: both a keep ratio and a budget; scales a row for ComfyUI, which reads none; a speed without errors.
    """
    changes = {key: value for key, value in changes.items() if value is not None}
    if {"keep_ratio", "budget"} <= changes.keys():
        raise ValueError("a keep ratio and a budget cannot both be kept; give one of them")
    if "search" in changes:
        changes["search"] = SEARCHES[changes["search"]]
    limited = not changes.keys().isdisjoint({"keep_ratio", "budget"})
    limits: dict[str, Any] = dict.fromkeys(("keep_ratio", "budget", "least_room")) if limited else {}
    changed = replace(RECIPES[name], **limits | changes)
    if changed.row_scales and changed.reader is Reader.COMFYUI:
        raise ValueError("ComfyUI reads one scale for a weight; leave out row scales, or write for hswq")
    if changed.speed is not None and not changed.chooses_products:
        raise ValueError("a speed is chosen by the error that layers make; leave it out, or keep by error")
    if changed.speed and changed.fold:
        raise ValueError("folding changes the inputs of layers; leave out the speed, or the fold")
    return changed


@dataclass(frozen=True)
class EvaluationSettings:
    """How files are measured: prompt and seed pairs, seed of the first pair, and how each picture is made.

    `steps`, `guidance` and `size` None: the model's defaults. `perceptual`: metrics of `PERCEPTUAL` that are measured
    besides SSIM, PSNR and latent error; None: all that are installed and made for pictures of this size. `noise_floor`:
    the original is measured as well, with its denoiser in bfloat16 instead of float32, or the other way round.
    """

    pairs: int = 16
    steps: int | None = None
    seed: int = 1000
    guidance: float | None = None
    size: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    perceptual: tuple[str, ...] | None = None
    noise_floor: bool = True


@dataclass(frozen=True)
class PublishSettings:
    """Everything that decides what is published."""

    formats: tuple[Format, ...] = DEFAULT_FORMATS
    recipe: Recipe = field(default_factory=recipe)
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    calibration_memory: float = CALIBRATION_MEMORY
    """Bound on second moments that are held at once, in GB. It decides how often the recorded calls are replayed."""
    device_memory: float | None = None
    """GB of the device that a pipeline may take while it makes pictures; None: most of what is free. It decides how
    much of the model is there at once."""
