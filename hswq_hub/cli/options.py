"""What can be said on the command line, and the settings objects that it makes: each option once."""

from dataclasses import dataclass, replace
from pathlib import Path

import click

from hswq_runtime.formats import Format, Reader

from ..common.speed.gpus import GPUS
from ..hub.settings import UploadSettings
from ..jobs.settings import JobSettings
from ..settings import (
    ALLOWED,
    CALIBRATION_MEMORY,
    DEFAULT_RECIPE,
    DEVICES,
    DTYPES,
    FORMAT_GROUPS,
    KEEP_BY,
    PERCEPTUAL,
    RECIPES,
    ROUNDINGS,
    SEARCHES,
    STAGES,
    CalibrationSettings,
    EvaluationSettings,
    PromptSettings,
    PublishSettings,
    Recipe,
    SourceSettings,
    formats_called,
)
from ..settings import recipe as recipe_of
from .groups import OptionGroup

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
_SEED = click.IntRange(0, 2**62)
_CALIBRATION, _EVALUATION, _JOB = CalibrationSettings(), EvaluationSettings(), JobSettings()


@dataclass(frozen=True)
class Destinations:
    """Where on the Hub a folder goes, and the Space that shows it; None: nowhere, no Space."""

    upload: UploadSettings | None
    space: str | None


def _source(base: str | None, civitai_endpoint: str | None, permitted: bool, verify: bool) -> SourceSettings:
    return SourceSettings(base, None, civitai_endpoint, permitted, verify)


def _prompted(source: SourceSettings, prompts: PromptSettings) -> SourceSettings:
    return replace(source, prompts=prompts)


def _prompts(prompts: Path | None, evaluation_prompts: Path | None) -> PromptSettings:
    return PromptSettings(prompts, evaluation_prompts)


def _recipe(
    recipe: str,
    rounding: str | None,
    keep_by: str | None,
    keep_ratio: float | None,
    budget: float | None,
    search: str | None,
    row_scales: bool,
    fold: bool,
    speed: float | None,
    reader: str,
) -> Recipe:
    if keep_ratio is not None and budget is not None:
        raise click.UsageError("--keep-ratio and --budget exclude each other; give one of them")
    if row_scales and reader == Reader.COMFYUI.value:
        raise click.UsageError("--row-scales and --for comfyui exclude each other; leave out one of them")
    if speed is not None and (keep_by or RECIPES[recipe].keep_by) != "error":
        raise click.UsageError("--speed is chosen by measured errors; leave it out, or take --keep-by error")
    if speed and fold:
        raise click.UsageError("--speed and --fold exclude each other; leave out one of them")
    return recipe_of(
        recipe,
        rounding=rounding,
        keep_by=keep_by,
        keep_ratio=keep_ratio,
        budget=budget,
        search=search,
        row_scales=row_scales,
        fold=fold,
        speed=speed,
        reader=Reader(reader),
    )


def _formats(format_: str) -> tuple[Format, ...]:
    return formats_called(format_)


def _calibration(
    samples: int, steps: int | None, seed: int, guidance: float | None, size: int | None, device: str, dtype: str
) -> CalibrationSettings:
    return CalibrationSettings(samples, steps, seed=seed, guidance=guidance, size=size, device=device, dtype=dtype)


def _publish(
    formats: tuple[Format, ...],
    recipe: Recipe,
    calibration: CalibrationSettings,
    calibration_memory: float,
    device_memory: float | None,
    pairs: int,
    picture_steps: int | None,
    perceptual: str | None,
    noise_floor: bool,
) -> PublishSettings:
    evaluation = EvaluationSettings(
        pairs,
        picture_steps,
        guidance=calibration.guidance,
        size=calibration.size,
        device=calibration.device,
        dtype=calibration.dtype,
        perceptual=metrics_named(perceptual),
        noise_floor=noise_floor,
    )
    return PublishSettings(formats, recipe, calibration, evaluation, calibration_memory, device_memory)


def metrics_named(perceptual: str | None) -> tuple[str, ...] | None:
    """What `--metrics` says, as the settings have it."""
    named: dict[str | None, tuple[str, ...] | None] = {None: None, "none": (), "all": PERCEPTUAL}
    return named[perceptual] if perceptual in named else (str(perceptual),)


def _again(from_: str | None, redo: str | None) -> tuple[str, ...]:
    if from_ and redo:
        raise click.UsageError("--from and --redo exclude each other; give one of them")
    return STAGES[STAGES.index(from_) :] if from_ else (redo,) if redo else ()


def _destinations(
    repo: str | None,
    private: bool | None,
    gated: bool | None,
    create_pr: bool,
    revision: str | None,
    collection: str | None,
    unverified: bool,
    force: bool,
    space: str | None,
) -> Destinations:
    if repo is None:
        if (private, gated) != (None, None) or any((create_pr, revision, collection, unverified, force, space)):
            raise click.UsageError("these options are about an upload; say where to with --repo OWNER/NAME")
        return Destinations(None, None)
    if space and (create_pr or revision):
        raise click.UsageError("a Space shows what is on main; leave out --space, or --pr and --revision")
    return Destinations(
        UploadSettings(repo, private, gated, create_pr, revision, collection, not unverified, force), space
    )


def _job(on: str | None, flavor: str, timeout: str, package: str | None, namespace: str | None) -> JobSettings | None:
    settings = JobSettings(flavor, timeout, package, namespace)
    if on is None and settings != _JOB:
        raise click.UsageError("these options are about a job; say --on hf-jobs")
    return None if on is None else settings


_BASE = click.option(
    "--base", metavar="REPO|FOLDER", help="Hub repo or diffusers folder with text encoder, VAE and the rest."
)
CIVITAI_ENDPOINT = click.option(
    "--civitai-endpoint", metavar="URL", help="Where Civitai's API is.  [default: the site named]"
)
_PERMITTED = click.option(
    "--i-have-permission", "permitted", is_flag=True, help="The creator allowed me what the listing does not."
)
_VERIFY = click.option("--verify", is_flag=True, help="Read a file that is in the cache again, in full.")
_LICENCE = click.option("--licence", metavar="ID", help="Hub licence id of a local checkpoint, for its card.")
DEVICE = click.option("--device", type=click.Choice(DEVICES), default=_CALIBRATION.device, show_default=True)
DTYPE = click.option(
    "--dtype", type=click.Choice(DTYPES), default=_CALIBRATION.dtype, show_default=True, help="What to compute in."
)
GUIDANCE = click.option(
    "--guidance", type=click.FloatRange(0), help="Guidance scale of all pictures.  [default: the model's]"
)
SIZE = click.option("--size", type=click.IntRange(16), help="Pixels a side of all pictures.  [default: the model's]")
PAIRS = click.option(
    "--pairs", type=click.IntRange(1), default=_EVALUATION.pairs, show_default=True, help="Pictures to measure on."
)
FIRST_PAIR = click.option(
    "--seed", type=_SEED, default=_EVALUATION.seed, show_default=True, help="Seed of the first pair."
)
METRICS = click.option(
    "--metrics",
    "perceptual",
    type=click.Choice([*PERCEPTUAL, "all", "none"]),
    help="What is measured besides SSIM, PSNR and latent error.  [default: what is installed]",
)
NOISE_FLOOR = click.option(
    "--noise-floor/--no-noise-floor",
    default=_EVALUATION.noise_floor,
    show_default=True,
    help="Measure the original as well, computed in BF16 instead of FP32 or the other way round.",
)
ON_GPU = click.option(
    "--on-gpu",
    type=click.Choice(list(GPUS), case_sensitive=False),
    help="With --dry-run: what it would take on this GPU, by its published figures, instead of this machine.",
)
YES = click.option("--yes", is_flag=True, help="Do not ask.")
NAMESPACE = click.option("--namespace", help="Organisation whose jobs they are.  [default: your account]")
PUBLISHED_FOLDER = click.option("--folder", type=FOLDER, help="Where to.  [default: hswq-published/NAME-hswq]")
CALIBRATION_BOUND = click.option(
    "--calibration-memory",
    type=click.FloatRange(0, min_open=True),
    default=CALIBRATION_MEMORY,
    show_default=True,
    help="GB that second moments (kfac, gptq) may take at once.",
)
DEVICE_BOUND = click.option(
    "--device-memory",
    type=click.FloatRange(0, min_open=True),
    metavar="GB",
    help="What pictures may take of the device; the rest of the model waits here.  [default: most of what is free]",
)

PROMPTS = OptionGroup(
    _prompts,
    click.option(
        "--prompts",
        metavar="FILE",
        type=NEW_FILE,
        help="Text file, a prompt a line, to calibrate with.  [default: of the model's page, or a list that fits it]",
    ),
    click.option(
        "--evaluation-prompts",
        metavar="FILE",
        type=NEW_FILE,
        help="The same to measure on; no prompt is in both.  [default: likewise]",
    ),
)
SOURCE = OptionGroup(_source, _BASE, CIVITAI_ENDPOINT, _PERMITTED, _VERIFY)
PROMPTED_SOURCE = OptionGroup(_prompted, source=SOURCE, prompts=PROMPTS)
LICENSED_SOURCE = OptionGroup(SourceSettings, _BASE, _LICENCE, CIVITAI_ENDPOINT, _PERMITTED, _VERIFY, prompts=PROMPTS)
RECIPE = OptionGroup(
    _recipe,
    click.option(
        "--recipe",
        type=click.Choice(list(RECIPES)),
        default=DEFAULT_RECIPE,
        show_default=True,
        help="measured: compensated rounding, and in full precision what costs most. hswq: the method as published.",
    ),
    click.option(
        "--rounding",
        type=click.Choice(ROUNDINGS),
        help="kfac: what changes the model's output least. gptq: a layer's outputs. nearest: each weight by itself.  "
        "[default: the recipe's]",
    ),
    click.option(
        "--keep-by",
        type=click.Choice(KEEP_BY),
        help="What decides which layers stay in full precision: measured error per byte, or output variance.  "
        "[default: the recipe's]",
    ),
    click.option(
        "--keep-ratio",
        type=click.FloatRange(0, 1),
        help="Keep this share of the layers.  [default: the recipe's; hswq: the architecture's, 0.1 for Z-Image]",
    ),
    click.option(
        "--budget",
        type=click.FloatRange(0, min_open=True),
        help="Keep what fits: the denoiser takes this share of its size in 16 bits.  [default: the recipe's; measured: "
        "0.56, and more where that would leave no room]",
    ),
    click.option(
        "--search",
        type=click.Choice(list(SEARCHES)),
        help="Where a weight's range may be clipped: over a histogram as published, over its values, or not at all.  "
        "[default: the recipe's]",
    ),
    click.option("--row-scales", is_flag=True, help="V2: a scale for each row of a weight instead of one."),
    click.option(
        "--fold",
        is_flag=True,
        help="V1: move powers of two between layers, where that changes nothing, to use more of the FP8 range. "
        "A LoRA then fits in HSWQPipeline alone.",
    ),
    click.option(
        "--speed",
        type=click.FloatRange(0, 1),
        help="The share of the linear layers' work that GPUs do in FP8, or INT8: 0 is exact, 1 the fastest. "
        f"[default: what keeps the error within {ALLOWED:g} times that of exact products]",
    ),
    click.option(
        "--for",
        "reader",
        type=click.Choice([reader.value for reader in Reader]),
        default=Reader.HSWQ.value,
        show_default=True,
        help="Who reads V2. comfyui: convolutions have no scale, since ComfyUI reads none there.",
    ),
)
FORMATS = OptionGroup(
    _formats,
    click.option(
        "--format",
        "format_",
        type=click.Choice([*(f.value for f in Format), *FORMAT_GROUPS]),
        default="both",
        show_default=True,
        help="v1: plain FP8, for any loader. v2: FP8 with a scale for each weight. both: v1 and v2. int8: INT8 "
        "with rotated inputs, in ComfyUI's format, which GPUs from the RTX 20 on multiply in INT8. best: that, but FP8 "
        "in layers that lose less by it. all: v1, v2 and int8.",
    ),
)
CALIBRATION = OptionGroup(
    _calibration,
    click.option(
        "--samples",
        type=click.IntRange(1),
        default=_CALIBRATION.samples,
        show_default=True,
        help="Calibration pictures.",
    ),
    click.option(
        "--steps",
        type=click.IntRange(1),
        default=_CALIBRATION.steps,
        help="Denoising steps of a calibration picture.  [default: the model's, 25 at most]",
    ),
    click.option("--seed", type=_SEED, default=_CALIBRATION.seed, show_default=True, help="Seed of the first one."),
    GUIDANCE,
    SIZE,
    DEVICE,
    DTYPE,
)
PUBLISH = OptionGroup(
    _publish,
    CALIBRATION_BOUND,
    DEVICE_BOUND,
    PAIRS,
    click.option(
        "--picture-steps", type=click.IntRange(1), help="Denoising steps of a measured picture.  [default: the model's]"
    ),
    METRICS,
    NOISE_FLOOR,
    recipe=RECIPE,
    formats=FORMATS,
    calibration=CALIBRATION,
)
AGAIN = OptionGroup(
    _again,
    click.option("--from", "from_", type=click.Choice(STAGES), help="Do this step and all after it again."),
    click.option("--redo", type=click.Choice(STAGES), help="Do this step again, and what its outcome changes."),
)
_UPLOADING = (
    click.option(
        "--private/--public", default=None, help="Who may see the repo.  [default: public; private if the source is]"
    ),
    click.option(
        "--gated/--no-gated",
        default=None,
        help="Ask people to accept terms before they download.  [default: as the source]",
    ),
    click.option("--pr", "create_pr", is_flag=True, help="Open a pull request instead of changing main."),
    click.option("--revision", metavar="BRANCH", help="Commit to this branch, made if need be.  [default: main]"),
    click.option("--collection", metavar="SLUG", help="Put the repo into this collection."),
    click.option("--no-verify", "unverified", is_flag=True, help="Compare checksums, but do not load it from the Hub."),
    click.option("--force", is_flag=True, help="Also into a repo that hswq-hub did not make."),
    click.option("--space", metavar="OWNER/NAME", help="Make or update a Space that shows the model."),
)
_REPO_HELP = "Hub repo to upload to."
DESTINATIONS = OptionGroup(
    _destinations,
    click.option("--repo", metavar="OWNER/NAME", help=f"{_REPO_HELP}  [default: the folder stays here]"),
    *_UPLOADING,
)
UPLOAD = OptionGroup(
    _destinations, click.option("--repo", metavar="OWNER/NAME", required=True, help=_REPO_HELP), *_UPLOADING
)
JOB = OptionGroup(
    _job,
    click.option("--on", type=click.Choice(["hf-jobs"]), help="Run it as a job on Hugging Face's machines."),
    click.option("--flavor", default=_JOB.flavor, show_default=True, help="Machine of the job."),
    click.option("--timeout", default=_JOB.timeout, show_default=True, help="When the job is stopped: 90m, 3h, 1d."),
    click.option("--package", metavar="REQUIREMENT", help="What the job installs.  [default: this version]"),
    NAMESPACE,
)
ABOUT_THE_RUN = {*JOB.names, "yes", "dry_run", "on_gpu"}
"""Options that neither a job's own command line nor an entry of a list can have."""
