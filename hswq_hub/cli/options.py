"""What can be said on the command line, and the settings that it means; only `cli.py` asks."""

import shlex
from pathlib import Path

import click
from click.core import ParameterSource

from hswq_runtime.formats import Format, Reader

from ..settings import (CALIBRATION_MEMORY, DEFAULT_RECIPE, DEVICES, DTYPES, KEEP_BY, RECIPES, ROUNDINGS, SEARCHES, STAGES, CalibrationSettings, EvaluationSettings, PublishSettings, Recipe)
from ..jobs.settings import JobSettings
from ..hub.settings import UploadSettings
from ..settings import (recipe as recipe_of)

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
SEED = click.IntRange(0, 2**62)
FOLDER = click.Path(file_okay=False, path_type=Path)
UPLOAD_OPTIONS = ("repo", "private", "gated", "create_pr", "revision", "collection", "unverified", "force")
JOB_OPTIONS = {"on", "flavor", "timeout", "package", "namespace", "yes"}
UNPUBLISHED_OPTIONS = {
    *("folder", "civitai_endpoint", "verify", "calibration_memory"),
    *("from_", "redo", "dry_run"),
    *UPLOAD_OPTIONS,
    *JOB_OPTIONS,
    "space",
}
"""Options that are about this machine or account and not about what comes out."""
OPTION_GROUPS = {
    "Source": ("base", "licence", "permitted", "verify", "civitai_endpoint"),
    "What to make": (
        "format_",
        "recipe",
        "rounding",
        "keep_by",
        "keep_ratio",
        "budget",
        "search",
        "row_scales",
        "fold",
        "reader",
    ),
    "Calibration": ("samples", "steps", "seed"),
    "Measuring": ("pairs", "picture_steps"),
    "Pictures of both": ("guidance", "size"),
    "Where to": ("folder", *UPLOAD_OPTIONS, "space"),
    "This machine": ("device", "dtype", "calibration_memory"),
    "Another machine": ("on", "flavor", "timeout", "package", "namespace"),
    "This run": ("from_", "redo", "dry_run", "yes"),
}
"""Headings in the help of commands with many options; what is not named here comes under the last."""
CALIBRATION, EVALUATION, JOB = CalibrationSettings(), EvaluationSettings(), JobSettings()


class Grouped(click.Command):
    """A command with many options: its help has them under headings."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list] = {heading: [] for heading in OPTION_GROUPS}
        for parameter in self.get_params(context):
            heading = next((h for h, names in OPTION_GROUPS.items() if parameter.name in names), "This run")
            if record := parameter.get_help_record(context):
                groups[heading].append(record)
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def _options(*options):
    def decorate(command):
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


source_options = _options(
    click.option(
        "--base", metavar="REPO|FOLDER", help="Hub repo or diffusers folder with text encoder, VAE and the rest."
    ),
    click.option("--civitai-endpoint", metavar="URL", help="Where Civitai's API is.  [default: the site named]"),
    click.option(
        "--i-have-permission", "permitted", is_flag=True, help="The creator allowed me what the listing does not."
    ),
    click.option("--verify", is_flag=True, help="Read a file that is in the cache again, in full."),
)
device_option = click.option("--device", type=click.Choice(DEVICES), default=CALIBRATION.device, show_default=True)
compute_options = _options(
    device_option,
    click.option(
        "--dtype", type=click.Choice(DTYPES), default=CALIBRATION.dtype, show_default=True, help="What to compute in."
    ),
)
calibration_options = _options(
    click.option(
        "--samples",
        type=click.IntRange(1),
        default=CALIBRATION.samples,
        show_default=True,
        help="Calibration pictures.",
    ),
    click.option(
        "--steps",
        type=click.IntRange(1),
        default=CALIBRATION.steps,
        help="Denoising steps of a calibration picture.  [default: the model's, 25 at most]",
    ),
    click.option("--seed", type=SEED, default=CALIBRATION.seed, show_default=True, help="Seed of the first one."),
)
recipe_options = _options(
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
        help="Keep what fits: the denoiser takes this share of its size in 16 bits.  [default: the recipe's]",
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
        "--for",
        "reader",
        type=click.Choice([reader.value for reader in Reader]),
        default=Reader.HSWQ.value,
        show_default=True,
        help="Who reads V2. comfyui: convolutions have no scale, since ComfyUI reads none there.",
    ),
    click.option(
        "--calibration-memory",
        type=click.FloatRange(0, min_open=True),
        default=CALIBRATION_MEMORY,
        show_default=True,
        help="GB that second moments (kfac, gptq) may take at once.",
    ),
    click.option(
        "--format",
        "format_",
        type=click.Choice([*(f.value for f in Format), "both"]),
        default="both",
        show_default=True,
        help="v1: plain FP8, for any loader. v2: FP8 with a scale, closer to the original.",
    ),
)
picture_options = _options(
    click.option(
        "--guidance", type=click.FloatRange(0), help="Guidance scale of all pictures.  [default: the model's]"
    ),
    click.option("--size", type=click.IntRange(16), help="Pixels a side of all pictures.  [default: the model's]"),
)
upload_options = _options(
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
namespace_option = click.option("--namespace", help="Organisation whose jobs they are.  [default: your account]")
job_options = _options(
    click.option("--on", type=click.Choice(["hf-jobs"]), help="Run it as a job on Hugging Face's machines."),
    click.option("--flavor", default=JOB.flavor, show_default=True, help="Machine of the job."),
    click.option("--timeout", default=JOB.timeout, show_default=True, help="When the job is stopped: 90m, 3h, 1d."),
    click.option("--package", metavar="REQUIREMENT", help="What the job installs.  [default: this version]"),
    namespace_option,
    click.option("--yes", is_flag=True, help="Do not ask."),
)
licence_option = click.option("--licence", metavar="ID", help="Hub licence id of a local checkpoint, for its card.")
pairs_option = click.option(
    "--pairs", type=click.IntRange(1), default=EVALUATION.pairs, show_default=True, help="Pictures to measure on."
)
folder_option = click.option("--folder", type=FOLDER, help="Where to.  [default: hswq-published/NAME-hswq]")
publish_options = _options(
    folder_option,
    recipe_options,
    calibration_options,
    pairs_option,
    click.option(
        "--picture-steps", type=click.IntRange(1), help="Denoising steps of a measured picture.  [default: the model's]"
    ),
    picture_options,
    licence_option,
    compute_options,
)
ABOUT_THE_RUN = {*JOB_OPTIONS, "dry_run"}
"""Options that neither a job's own command line nor an entry of a list can have."""


def publish_settings(options: dict) -> PublishSettings:
    """What `publish_options` say; all but the source's are taken out of `options`."""
    how, get = recipe_from(options), options.pop
    pictures = {name: get(name) for name in ("guidance", "size", "device", "dtype")}
    return PublishSettings(
        formats=formats_of(get("format_")),
        recipe=how,
        calibration_memory=get("calibration_memory"),
        calibration=CalibrationSettings(get("samples"), get("steps"), seed=get("seed"), **pictures),
        evaluation=EvaluationSettings(get("pairs"), get("picture_steps"), **pictures),
    )


def stages_again(from_: str | None, redo: str | None) -> tuple[str, ...]:
    """The stages that --from and --redo name."""
    if from_ and redo:
        raise click.UsageError("--from and --redo exclude each other; give one of them")
    return STAGES[STAGES.index(from_) :] if from_ else (redo,) if redo else ()


def upload_settings(options: dict, space: str | None) -> UploadSettings | None:
    """Where to upload to, if that was asked for; its options are taken out of `options`."""
    found = {name: options.pop(name) for name in UPLOAD_OPTIONS}
    verify = not found.pop("unverified")
    if found["repo"] is not None:
        if space and (found["create_pr"] or found["revision"]):
            raise click.UsageError("a Space shows what is on main; leave out --space, or --pr and --revision")
        return UploadSettings(verify=verify, **found)
    context = click.get_current_context()
    if any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in (*UPLOAD_OPTIONS, "space")):
        raise click.UsageError("these options are about an upload; say where to with --repo OWNER/NAME")
    return None


def job_settings(on, *settings) -> JobSettings | None:
    """The machine of a job, if one was asked for."""
    if on is not None:
        return JobSettings(*settings)
    if settings != (JOB.flavor, JOB.timeout, JOB.package, JOB.namespace):
        raise click.UsageError("these options are about a job; say --on hf-jobs")
    return None


def formats_of(name: str) -> tuple[Format, ...]:
    return tuple(Format) if name == "both" else (Format(name),)


def recipe_from(options: dict) -> Recipe:
    """The recipe that a command was given; its options are taken out of `options`."""
    name = options.pop("recipe")
    names = ("rounding", "keep_by", "keep_ratio", "budget", "search", "row_scales", "fold")
    changes = {option: options.pop(option) for option in names} | {"reader": Reader(options.pop("reader"))}
    if changes["keep_ratio"] is not None and changes["budget"] is not None:
        raise click.UsageError("--keep-ratio and --budget exclude each other; give one of them")
    if changes["row_scales"] and changes["reader"] is Reader.COMFYUI:
        raise click.UsageError("--row-scales and --for comfyui exclude each other; leave out one of them")
    return recipe_of(name, **changes)


def arguments(context: click.Context, leaving_out: str) -> list[str]:
    """The command's name and what it was given, but for one option."""
    return command_words(context, context.params["reference"], {leaving_out})


def command_line(context: click.Context, source, name: str | None = None) -> str:
    """The command line that does the same again, for the published card.

    The reference is in its short form, since the one that was typed may hold a token, and paths of this machine are
    cut to their last part.
    """

    def shown(value) -> str:
        return Path(value).name if isinstance(value, Path) or Path(str(value)).exists() else str(value)

    return shlex.join(["hswq-hub", *command_words(context, source.reference, UNPUBLISHED_OPTIONS, shown, name)])


def command_words(context: click.Context, reference: str, leaving_out, shown=str, name: str | None = None) -> list[str]:
    """The command's name or `name`, the reference, and the options that differ from defaults, each value as `shown`.

    The one place where options become a command line again: for the card, for another process, for a job.
    """
    words = [name or context.info_name, reference]
    for parameter in context.command.params:
        value = context.params[parameter.name]
        if isinstance(parameter, click.Argument) or parameter.name in leaving_out:
            continue
        if value is None or value == parameter.get_default(context):
            continue
        if parameter.is_flag:
            words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            words += [parameter.opts[0], shown(value)]
    return words
