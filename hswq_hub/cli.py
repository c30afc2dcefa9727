"""The command line: a command parses, calls one function, prints. Nothing imports this module.

Everything heavy is imported inside the commands, so that help is there at once.
"""

import os
import shlex
import sys
from pathlib import Path

import click

from hswq_runtime.errors import HSWQError
from hswq_runtime.formats import Format

from . import __version__
from .settings import (
    CALIBRATION_MEMORY,
    DEFAULT_RECIPE,
    DEVICES,
    DTYPES,
    KEEP_BY,
    RECIPES,
    ROUNDINGS,
    SEARCHES,
    CalibrationSettings,
    EvaluationSettings,
    PublishSettings,
    Recipe,
)
from .settings import recipe as recipe_of

DEBUG_VARIABLE = "HSWQ_DEBUG"
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
SEED = click.IntRange(0, 2**62)
FOLDER = click.Path(file_okay=False, path_type=Path)
PRUNE_DAYS = 30.0
UNPUBLISHED_OPTIONS = {"folder", "civitai_endpoint", "verify", "calibration_memory"}
"""Options that are about this machine and not about what comes out."""
CALIBRATION, EVALUATION = CalibrationSettings(), EvaluationSettings()


class _Group(click.Group):
    """The one place where an error becomes a sentence on stderr and exit code 2."""

    def invoke(self, context: click.Context):
        try:
            return super().invoke(context)
        except (HSWQError, OSError) as error:
            if os.environ.get(DEBUG_VARIABLE) or isinstance(error, BrokenPipeError):
                raise
            sentence = " ".join(str(error).split())
            click.echo(f"Error: {sentence}", err=True)
            sys.exit(2)


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
        show_default=True,
        help="Denoising steps of a calibration picture.",
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
        help="gptq: what changes the layer's outputs least. nearest: each weight by itself.  [default: the recipe's]",
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
        "--calibration-memory",
        type=click.FloatRange(0, min_open=True),
        default=CALIBRATION_MEMORY,
        show_default=True,
        help="GB that second moments (gptq) may take at once.",
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
licence_option = click.option("--licence", metavar="ID", help="Hub licence id of a local checkpoint, for its card.")
pairs_option = click.option(
    "--pairs", type=click.IntRange(1), default=EVALUATION.pairs, show_default=True, help="Pictures to measure on."
)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="hswq-hub")
def main():
    """Quantize diffusion checkpoints to HSWQ FP8, measure them against the original, publish them.

    \b
    hswq-hub publish demo                                   try it: offline, on the bundled model
    hswq-hub publish model.safetensors --folder OUT         your own checkpoint
    """


@main.command()
@click.argument("reference")
@source_options
@click.option("--folder", type=FOLDER, help="Where to.  [default: hswq-published/NAME-hswq]")
@recipe_options
@calibration_options
@pairs_option
@click.option(
    "--picture-steps", type=click.IntRange(1), help="Denoising steps of a measured picture.  [default: the model's]"
)
@picture_options
@licence_option
@compute_options
def publish(
    reference,
    folder,
    calibration_memory,
    format_,
    samples,
    steps,
    seed,
    pairs,
    picture_steps,
    guidance,
    size,
    licence,
    device,
    dtype,
    **options,
):
    """Do it all: a checkpoint in, a folder to upload out.

    The folder holds the quantized files, the model card, the figures and pictures. REFERENCE is "demo", a
    safetensors file or diffusers folder, a Civitai or Hugging Face address, owner/repo, civitai:MODEL@VERSION, or
    a name that `hswq-hub models` lists. A run that was stopped goes on where it was.

    \b
    hswq-hub publish demo
    hswq-hub publish 'https://civitai.com/models/2242173?modelVersionId=2774410'
    hswq-hub publish model.safetensors --base Tongyi-MAI/Z-Image-Turbo --folder out
    """
    from .card import Card
    from .publish import default_folder, publish
    from .report import HEADINGS, table, text_table
    from .sources import resolve

    how = _recipe(options)
    _quiet()
    source = resolve(reference, licence=licence, choose=_chooser(), **options)
    pictures = {"guidance": guidance, "size": size, "device": device, "dtype": dtype}
    settings = PublishSettings(
        formats=_formats(format_),
        recipe=how,
        calibration_memory=calibration_memory,
        calibration=CalibrationSettings(samples=samples, steps=steps, seed=seed, **pictures),
        evaluation=EvaluationSettings(pairs=pairs, steps=picture_steps, **pictures),
    )
    published = publish(
        source, folder or default_folder(source), settings, command=_command(click.get_current_context(), source)
    )
    click.echo(text_table(HEADINGS, table(published.evaluation)))
    verdict = "\n".join(Card.from_folder(published.folder).verdict_lines)
    click.echo(f"\n{verdict}\n\n{published.folder}/")


@main.command()
@click.argument("reference")
@click.option("--civitai-endpoint", metavar="URL", help="Where Civitai's API is.  [default: the site named]")
@device_option
def inspect(reference, civitai_endpoint, device):
    """Say what a checkpoint is and what quantizing it would take, from its header alone.

    \b
    hswq-hub inspect model.safetensors
    hswq-hub inspect 'https://civitai.com/models/2242173?modelVersionId=2774410'
    """
    from .inspect import inspect

    for line in inspect(reference, civitai_endpoint).lines(device):
        click.echo(line)


@main.command()
@click.argument("reference")
@source_options
@calibration_options
@picture_options
@compute_options
@click.option(
    "-o", "--output", type=NEW_FILE, required=True, help="Statistics file (.safetensors; a .json goes beside it)."
)
@click.option(
    "--num-processes",
    type=click.IntRange(2),
    help="Share the pictures among so many processes, one a GPU, as `accelerate launch -m hswq_hub calibrate` does.",
)
def calibrate(reference, samples, steps, seed, guidance, size, device, dtype, output, num_processes, **lookup):
    """Gather statistics while the original makes pictures.

    \b
    hswq-hub calibrate demo -o demo-calibration.safetensors
    """
    from .calibrate import Calibration, calibrate
    from .hardware import pick_device
    from .processes import Group, launch
    from .sources import resolve
    from .targets import check_replaceable

    if num_processes is not None:
        sys.exit(launch(num_processes, _arguments(click.get_current_context(), leaving_out="num_processes")))
    _quiet()
    check_replaceable(output, ".safetensors", Calibration.load)
    settings = CalibrationSettings(samples, steps, seed=seed, guidance=guidance, size=size, device=device, dtype=dtype)
    calibration = calibrate(resolve(reference, choose=_chooser(), **lookup), settings)
    if not Group(pick_device(device)).first:
        return
    calibration.save(output)
    skipped = sum(layer.skipped for layer in calibration.layers.values())
    click.echo(f"{output}: {len(calibration.layers)} layers, {skipped} calls left out as non-finite")


@main.command()
@click.argument("reference")
@source_options
@click.option("--calibration", "statistics", type=EXISTING_FILE, required=True, help="What `calibrate` wrote.")
@recipe_options
@device_option
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder for NAME-hswq-v1.safetensors and so on.")
def quantize(
    reference,
    statistics,
    calibration_memory,
    format_,
    device,
    output,
    **options,
):
    """Write the quantized files.

    \b
    hswq-hub quantize demo --calibration demo-calibration.safetensors -o out
    """
    from .calibrate import Calibration
    from .plots import draw_plan
    from .quantize import quantize
    from .report import plan_table, text_table
    from .sources import resolve

    how = _recipe(options)
    _quiet()
    source, calibration = resolve(reference, choose=_chooser(), **options), Calibration.load(statistics)
    for path, plan in quantize(source, calibration, _formats(format_), output, how, device, calibration_memory):
        click.echo(f"{path}: {len(plan.kept)} of {len(plan.decisions)} layers kept")
        for drawing in draw_plan(source.checkpoint, plan, path):
            click.echo(drawing)
        click.echo(text_table(*plan_table(plan)) + "\n")


@main.command()
@click.argument("reference")
@click.argument("files", type=EXISTING_FILE, nargs=-1, required=True)
@source_options
@pairs_option
@click.option("--steps", type=click.IntRange(1), help="Denoising steps.  [default: the architecture's]")
@click.option("--seed", type=SEED, default=EVALUATION.seed, show_default=True, help="Seed of the first pair.")
@picture_options
@compute_options
@click.option("-o", "--output", type=NEW_FILE, help="Write the figures here, as JSON.")
def evaluate(reference, files, pairs, steps, seed, guidance, size, device, dtype, output, **lookup):
    """Measure quantized files against their original.

    Every file makes the same pictures, from the same prompts and the same noise.

    \b
    hswq-hub evaluate demo out/demo-hswq-v1.safetensors out/demo-hswq-v2.safetensors
    """
    from .evaluate import Evaluation, evaluate, label_files
    from .report import HEADINGS, table, text_table
    from .sources import resolve
    from .targets import check_replaceable

    _quiet()
    if output is not None:
        check_replaceable(output, ".json", Evaluation.load)
    settings = EvaluationSettings(pairs, steps, seed, guidance, size, device, dtype)
    evaluation = evaluate(resolve(reference, choose=_chooser(), **lookup), label_files(files), settings)
    if output is not None:
        evaluation.save(output)
    click.echo(text_table(HEADINGS, table(evaluation)))


@main.command()
@click.argument("one", type=EXISTING_FILE)
@click.argument("other", type=EXISTING_FILE)
def compare(one, other):
    """Show two files of one model, quantized or not, tensor by tensor.

    \b
    hswq-hub compare out/demo-hswq-v1.safetensors out/demo-hswq-v2.safetensors
    """
    from hswq_runtime.checkpoint import Checkpoint

    from .compare import compare
    from .report import compare_table, text_table

    click.echo(text_table(*compare_table(compare(Checkpoint(one), Checkpoint(other)))))


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def card(folder):
    """Render a published folder's model card anew.

    \b
    hswq-hub card hswq-published/demo-hswq
    """
    from .card import write_card

    click.echo(write_card(folder))


@main.command()
@click.argument("reference")
@source_options
@click.option("--dry-run", is_flag=True, help="Only say what would be fetched.")
def pull(reference, dry_run, **lookup):
    """Fetch a model and everything it needs, without quantizing it.

    \b
    hswq-hub pull harukiMIX_zit2603 --dry-run
    hswq-hub pull https://huggingface.co/owner/repo/blob/main/model.safetensors
    """
    from .sources import resolve
    from .sources.preview import preview
    from .sources.tables import preview_lines

    _quiet()
    choose = _chooser()
    if dry_run:
        found = preview(reference, lookup["base"], lookup["civitai_endpoint"], choose)
        click.echo("\n".join(preview_lines(found, lookup["permitted"])))
        return
    source = resolve(reference, choose=choose, **lookup)
    source.fetch_components()
    click.echo(f"{source.path}\nSHA-256 {source.sha256}\nother components: {source.base}")


@main.command()
def models():
    """List the catalog: names that stand for a model, and the figures that upstream reported by its own protocol.

    \b
    hswq-hub models
    """
    from .report import text_table
    from .sources.catalog import catalog
    from .sources.tables import CATALOG_HEADINGS, catalog_table

    click.echo(text_table(CATALOG_HEADINGS, catalog_table(catalog().values())))


@main.group()
def cache():
    """Look at the downloaded models, or make room."""


@cache.command(name="list")
def list_():
    """List what is in the cache.

    \b
    hswq-hub cache list
    """
    from .report import text_table
    from .sources.cache import contents, folder
    from .sources.tables import CACHE_HEADINGS, cache_table

    click.echo(f"{folder()}\n" + text_table(CACHE_HEADINGS, cache_table(contents())))


@cache.command()
@click.option("--older-than", type=click.FloatRange(0), default=PRUNE_DAYS, show_default=True, help="Days without use.")
def prune(older_than):
    """Remove models and unfinished downloads that were not used for some time.

    \b
    hswq-hub cache prune --older-than 0
    """
    from .report import text_table
    from .sources.cache import prune
    from .sources.tables import CACHE_HEADINGS, cache_table

    click.echo(text_table(CACHE_HEADINGS, cache_table(prune(older_than))))


@main.command()
@click.argument("host", type=click.Choice(["civitai"]))
@click.option("--civitai-endpoint", metavar="URL", help="Where Civitai's API is.")
def login(host, civitai_endpoint):
    """Keep a token for later runs: in the keyring, or in a file that only you can read.

    For Hugging Face there is `hf auth login`.

    \b
    hswq-hub login civitai
    """
    from .sources.civitai import log_in

    token = click.prompt("Token", hide_input=True, err=True)
    click.echo(log_in(token, civitai_endpoint))


def _chooser():
    """Somebody to ask, if there is a terminal."""
    return _choose if sys.stdin.isatty() and sys.stderr.isatty() else None


def _choose(question: str, answers: list[str]) -> int:
    click.echo(f"{question}:", err=True)
    for number, answer in enumerate(answers, start=1):
        click.echo(f"  {number}  {answer}", err=True)
    return click.prompt("Which one", type=click.IntRange(1, len(answers)), err=True) - 1


def _formats(name: str) -> tuple[Format, ...]:
    return tuple(Format) if name == "both" else (Format(name),)


def _recipe(options: dict) -> Recipe:
    """The recipe that a command was given; its options are taken out of `options`."""
    name = options.pop("recipe")
    names = ("rounding", "keep_by", "keep_ratio", "budget", "search", "row_scales")
    changes = {option: options.pop(option) for option in names}
    if changes["keep_ratio"] is not None and changes["budget"] is not None:
        raise click.UsageError("--keep-ratio and --budget exclude each other; give one of them")
    return recipe_of(name, **changes)


def _arguments(context: click.Context, leaving_out: str) -> list[str]:
    """The command's name and what it was given, but for one option."""
    words = [context.info_name]
    for parameter in context.command.params:
        value = context.params[parameter.name]
        if value is None or value is False or parameter.name == leaving_out:
            continue
        if not isinstance(parameter, click.Argument):
            words.append(parameter.opts[-1])
        words += [] if value is True else [str(value)]
    return words


def _command(context: click.Context, source) -> str:
    """The command line that does the same again: the reference, and options that differ from their defaults.

    It goes into the published card: the reference is in its short form, since the one that was typed may hold a
    token, and paths of this machine are cut to their last part.
    """
    words = ["hswq-hub", context.info_name, source.reference]
    for parameter in context.command.params:
        value = context.params[parameter.name]
        if isinstance(parameter, click.Argument) or parameter.name in UNPUBLISHED_OPTIONS:
            continue
        if value is None or value == parameter.get_default(context):
            continue
        word = Path(value).name if isinstance(value, Path) or Path(str(value)).exists() else str(value)
        words += [parameter.opts[0]] if parameter.is_flag else [parameter.opts[0], word]
    return shlex.join(words)


def _quiet() -> None:
    """Keep other libraries' progress bars and notices out of our output; their warnings stay."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
