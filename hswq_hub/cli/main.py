"""The command line: a command parses, calls one function, prints. Nothing imports this module.

Everything heavy is imported inside the commands, so that help is there at once.
"""

import functools
import os
import shlex
import sys
from pathlib import Path

import click

from hswq_runtime.errors import HSWQError

from .. import __version__
from ..calibration.processes import check_shared
from ..settings import (STAGES, CalibrationSettings, EvaluationSettings)
from ..jobs.settings import JobSettings
from ..hub.settings import UploadSettings
from .options import (
    ABOUT_THE_RUN,
    EVALUATION,
    EXISTING_FILE,
    FOLDER,
    NEW_FILE,
    SEED,
    Grouped,
    arguments,
    calibration_options,
    command_line,
    command_words,
    compute_options,
    device_option,
    formats_of,
    job_options,
    job_settings,
    namespace_option,
    pairs_option,
    picture_options,
    publish_options,
    publish_settings,
    recipe_from,
    recipe_options,
    source_options,
    stages_again,
    upload_options,
    upload_settings,
)

DEBUG_VARIABLE = "HSWQ_DEBUG"
LONG = 600
"""Seconds of work before which people are asked."""
PRUNE_DAYS = 30.0


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


def _or_as_a_job(command):
    """A command that with --on is not run here: the same command line becomes a job, whose logs are followed."""

    @functools.wraps(command)
    def wrapped(*, on, flavor, timeout, package, namespace, **options):
        if (job := job_settings(on, flavor, timeout, package, namespace)) is None:
            return command(**options)
        return _run_as_job(click.get_current_context(), job)

    return wrapped


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="hswq-hub")
@click.pass_context
def main(context):
    """Quantize diffusion checkpoints to HSWQ FP8, measure them against the original, publish them.

    \b
    hswq-hub publish demo                                   try it: offline, on the bundled model
    hswq-hub publish model.safetensors --folder OUT         your own checkpoint
    """
    check_shared(context.invoked_subcommand)


@main.command(cls=Grouped)
@click.argument("reference")
@source_options
@publish_options
@click.option("--from", "from_", type=click.Choice(STAGES), help="Do this step and all after it again.")
@click.option("--redo", type=click.Choice(STAGES), help="Do this step again, and what its outcome changes.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done, and what it would take.")
@click.option("--repo", metavar="OWNER/NAME", help="Hub repo to upload to.  [default: the folder stays here]")
@upload_options
@job_options
@_or_as_a_job
def publish(reference, folder, from_, redo, dry_run, space, yes, **options):
    """Do it all: a checkpoint in, a folder or a Hub repo out.

    The folder holds the quantized files, the model card, the figures and pictures. REFERENCE is "demo", a
    safetensors file or diffusers folder, a Civitai or Hugging Face address, owner/repo, civitai:MODEL@VERSION, or
    a name that `hswq-hub models` lists. A run that was stopped goes on where it was; after --from or --redo leave
    those out for that. On a terminal you are asked before work that seems to take longer than ten minutes.

    \b
    hswq-hub publish demo
    hswq-hub publish demo --dry-run
    hswq-hub publish 'https://civitai.com/models/2242173?modelVersionId=2774410'
    hswq-hub publish model.safetensors --base Tongyi-MAI/Z-Image-Turbo --folder out
    hswq-hub publish model.safetensors --repo alice/my-model-hswq --private
    hswq-hub publish harukiMIX_zit2603 --repo alice/haruki-hswq --on hf-jobs --flavor l40sx1 --timeout 3h
    """
    from ..cards.card import Card
    from ..common.text import text_table
    from ..evaluation.report import HEADINGS, table
    from ..sources.source import resolve
    from ..workflow.outlook import Outlook
    from ..workflow.outlook import dry_run as say_plan
    from ..workflow.publish import publish

    hub, settings, context = upload_settings(options, space), publish_settings(options), click.get_current_context()
    again, choose = stages_again(from_, redo), _chooser()
    if hub is not None:
        _agree_to_upload(hub, space, yes or dry_run)
    _quiet()

    def command(source):
        return command_line(context, source)

    if dry_run:
        say_plan(reference, folder, settings, command, again, click.echo, choose=choose, **options)
        return

    def check(source):
        Outlook.of(source, folder, settings, command(source), again, arriving=True).check()

    source = resolve(reference, choose=choose, inspect=check, **options)
    outlook = Outlook.of(source, folder, settings, command(source), again)
    outlook.check()
    _say(outlook.estimate)
    if choose and not yes:
        _agree_to_work(outlook)
    published = publish(source, outlook.folder, settings, command=command(source), again=again, hub=hub, tell=_say)
    click.echo(text_table(HEADINGS, table(published.evaluation)))
    verdict = "\n".join(Card.from_folder(published.folder).verdict_lines)
    click.echo(f"\n{verdict}\n\n{published.folder}/")
    if published.uploaded is not None:
        _say_uploaded(published.uploaded)
        _deploy(space, hub)


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repo", metavar="OWNER/NAME", required=True, help="Hub repo to upload to.")
@upload_options
@click.option("--yes", is_flag=True, help="Do not ask.")
def upload(folder, space, yes, **options):
    """Upload a folder that `publish` made, in one commit, and check what arrived.

    A repo that is not there is made; one that hswq-hub made is updated, and its card keeps the figures of earlier
    versions. What is there already is not sent again, so a run that was stopped is simply run again.

    \b
    hswq-hub upload hswq-published/demo-hswq --repo alice/demo-hswq
    """
    from ..hub.upload import upload

    hub = upload_settings(options, space)
    _agree_to_upload(hub, space, yes)
    _quiet()
    _say_uploaded(upload(folder, hub))
    _deploy(space, hub)


@main.command(cls=Grouped)
@click.argument("reference")
@source_options
@publish_options
def status(reference, folder, **options):
    """Say how far the work on a model is: the steps of `publish`, their products, sizes and times.

    The options are those of `publish`: what was made with others counts as missing. No host is asked.

    \b
    hswq-hub status demo
    """
    from ..workflow.status import status_lines

    settings, context = publish_settings(options), click.get_current_context()
    _quiet()
    lines = status_lines(
        reference, folder, settings, lambda s: command_line(context, s, "publish"), options["base"], options["licence"]
    )
    click.echo("\n".join(lines))


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
    from ..workflow.inspect import inspect

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
    from ..calibration.calibrate import Calibration, calibrate
    from ..calibration.processes import Group, launch
    from ..common.hardware import pick_device
    from ..common.targets import check_replaceable
    from ..evaluation.plots import draw_calibration
    from ..sources.source import resolve

    if num_processes is not None:
        sys.exit(launch(num_processes, arguments(click.get_current_context(), leaving_out="num_processes")))
    _quiet()
    check_replaceable(output, ".safetensors", Calibration.load)
    settings = CalibrationSettings(samples, steps, seed=seed, guidance=guidance, size=size, device=device, dtype=dtype)
    source = resolve(reference, choose=_chooser(), **lookup)
    calibration = calibrate(source, settings)
    if not Group(pick_device(device)).first:
        return
    calibration.save(output)
    skipped = sum(layer.skipped for layer in calibration.layers.values())
    click.echo(f"{output}: {len(calibration.layers)} layers, {skipped} calls left out as non-finite")
    click.echo(draw_calibration(source.checkpoint, calibration, output))


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
    from ..calibration.calibrate import Calibration
    from ..common.text import text_table
    from ..evaluation.plots import draw_plan
    from ..evaluation.report import plan_table
    from ..sources.source import resolve
    from ..workflow.outlook import estimate_of
    from ..workflow.quantize import quantize

    how = recipe_from(options)
    _quiet()
    source = resolve(reference, choose=_chooser(), **options)
    calibration, formats = Calibration.load(statistics), formats_of(format_)

    def begin(work):
        _say(estimate_of(work))

    for path, plan in quantize(source, calibration, formats, output, how, device, calibration_memory, _say, begin):
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
    from ..common.targets import check_replaceable
    from ..common.text import text_table
    from ..evaluation.evaluate import Evaluation, evaluate, label_files
    from ..evaluation.report import HEADINGS, table
    from ..sources.source import resolve

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
    from hswq_runtime.checkpoints.checkpoint import Checkpoint

    from ..common.text import text_table
    from ..evaluation.compare import compare
    from ..evaluation.report import compare_table

    click.echo(text_table(*compare_table(compare(Checkpoint(one), Checkpoint(other)))))


@main.command()
@click.argument("model", required=False)
@click.option("--catalog", type=FOLDER, help="Instead: write a card for each model of the catalog below this folder.")
def card(model, catalog):
    """Render a model card: a published folder's anew, or of a model that `hswq-hub models` lists what is known of it.

    A folder's is written into it; a listed model's, which has no figures yet, is printed.

    \b
    hswq-hub card hswq-published/demo-hswq
    hswq-hub card harukiMIX_zit2603
    """
    from ..cards.card import card_of, write_card, write_catalog_cards

    if (model is None) == (catalog is None):
        raise click.UsageError("give a folder or the name of a model, or --catalog FOLDER")
    if catalog is not None:
        for path in write_catalog_cards(catalog):
            click.echo(path)
    else:
        click.echo(
            write_card(Path(model)) if Path(model).is_dir() else card_of(model).render(), nl=Path(model).is_dir()
        )


@main.command()
@click.argument("references", metavar="[REPO|FOLDER]...", nargs=-1)
@click.option("--original", type=EXISTING_FILE, help="The full-precision file, if only you have it.")
@click.option("--allow-any-repo", "any_repo", is_flag=True, help="Visitors may name other Hub repos.")
@click.option("--host", help="Where to listen; 0.0.0.0 is everywhere.  [default: $GRADIO_SERVER_NAME, or 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="[default: $GRADIO_SERVER_PORT, or from 7860 on]")
@compute_options
def demo(references, **options):
    """Show in a browser what quantization did: the demo model, or models that `publish` made.

    \b
    hswq-hub demo
    hswq-hub demo hswq-published/demo-hswq
    hswq-hub demo owner/name --host 0.0.0.0
    """
    try:
        from spaces_app.app import main
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise click.ClickException("the page needs gradio: pip install 'hswq-hub[demo]'") from error

    _quiet()
    main(references or ("demo",), **options)


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
    from ..sources.preview import preview
    from ..sources.source import resolve
    from .tables import preview_lines

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
    from ..common.text import text_table
    from ..sources.catalog import catalog
    from .tables import CATALOG_HEADINGS, catalog_table

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
    from ..common.text import text_table
    from ..sources.http.cache import contents, folder
    from .tables import CACHE_HEADINGS, cache_table

    click.echo(f"{folder()}\n" + text_table(CACHE_HEADINGS, cache_table(contents())))


@cache.command()
@click.option("--older-than", type=click.FloatRange(0), default=PRUNE_DAYS, show_default=True, help="Days without use.")
def prune(older_than):
    """Remove models and unfinished downloads that were not used for some time.

    \b
    hswq-hub cache prune --older-than 0
    """
    from ..common.text import text_table
    from ..sources.http.cache import prune
    from .tables import CACHE_HEADINGS, cache_table

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
    from ..sources.civitai import log_in

    token = click.prompt("Token", hide_input=True, err=True)
    click.echo(log_in(token, civitai_endpoint))


@main.command()
@click.argument("models", type=EXISTING_FILE)
@click.option("--again", is_flag=True, help="Try also what failed for good.")
@job_options
def publish_all(models, again, on, flavor, timeout, package, namespace, yes):
    """Publish every model of a list, one after another or each as a job.

    MODELS is a YAML list. An entry is a reference, or a mapping of `reference` and options of `publish` without
    their dashes. What is done stays done, whatever happens; run it again for the rest. Exit code 1: some are not done.

    \b
    hswq-hub publish-all models.yaml
    hswq-hub publish-all models.yaml --on hf-jobs --flavor l40sx1 --yes
    """
    from ..common.text import text_table
    from ..jobs.batch import HEADINGS, publish_all, read_list, summary

    entries, job = read_list(models, _read_entry), job_settings(on, flavor, timeout, package, namespace)
    if job is None:
        states = publish_all(models, entries, _publish_here, again=again, say=_say)
    else:
        states = _publish_as_jobs(models, entries, job, yes, again)
    click.echo(text_table(HEADINGS, summary(entries, states)))
    sys.exit(0 if all(state.done for state in states) else 1)


@main.group(invoke_without_command=True)
@namespace_option
@click.pass_context
def jobs(context, namespace):
    """List the jobs that `publish --on hf-jobs` started; see what one writes, or stop it.

    \b
    hswq-hub jobs
    hswq-hub jobs logs ID
    hswq-hub jobs cancel ID
    """
    if context.invoked_subcommand is not None:
        return
    from ..common.text import text_table
    from ..jobs.jobs import HEADINGS, Jobs, rows

    click.echo(text_table(HEADINGS, rows(Jobs(namespace).listing())))


@jobs.command()
@click.argument("id")
def logs(id):
    """Follow what a job writes, from its beginning. ID as `hswq-hub jobs` lists it."""
    _follow(*_job(id))


@jobs.command()
@click.argument("id")
def cancel(id):
    """Stop a job. ID as `hswq-hub jobs` lists it."""
    account, number = _job(id)
    account.cancel(number)
    click.echo(f"{id} is stopped")


def _job(id: str) -> tuple:
    """Whose job it is, and its number: ID, or NAMESPACE/ID."""
    from ..jobs.jobs import Jobs, split_id

    namespace, number = split_id(id)
    return Jobs(namespace or click.get_current_context().parent.params["namespace"]), number


def _run_as_job(context: click.Context, settings: JobSettings) -> None:
    """Say what a job for this command line would cost, ask, start it and follow it."""
    from ..jobs.jobs import Jobs

    account = Jobs(settings.namespace)
    reference, words, need = _portable(context)
    offer = account.offer(settings, need)
    command = offer.command(words)
    click.echo("\n".join([*offer.lines(), shlex.join(command)]), err=True)
    if context.params.get("dry_run"):
        return
    _confirm("Start this job", context.params["yes"])
    job = account.submit(command, reference, settings)
    click.echo(job.url)
    _follow(account, job.id)


def _portable(context: click.Context) -> tuple:
    """Reference, command for a machine that is not this one, and what that is to hold."""
    from ..jobs.jobs import check_portable, look_up

    given = context.params
    check_portable(given["reference"], given["base"], given["folder"], given.get("repo"))
    reference, need = look_up(given["reference"], given["base"], given["civitai_endpoint"], given["permitted"])
    return reference, command_words(context, reference, ABOUT_THE_RUN), need


def _confirm(question: str, yes: bool) -> None:
    """Ask, unless --yes was given; where nobody can answer that is needed."""
    if yes:
        return
    if not _chooser():
        raise click.UsageError("this costs money, and there is no terminal to ask; say --yes")
    click.confirm(f"{question}?", abort=True, err=True)


def _follow(account, job: str) -> None:
    """Print what a job writes until it ends; Ctrl-C leaves it running."""
    from ..jobs.jobs import SUCCEEDED

    try:
        for line in account.follow(job):
            click.echo(line)
    except KeyboardInterrupt:
        name = f"{account.namespace}/{job}"
        click.echo(f"\nthe job goes on; hswq-hub jobs logs {name} follows it, jobs cancel {name} stops it", err=True)
        return
    status = account.look(job).status
    if status.stage != SUCCEEDED:
        click.echo(f"Error: the job ended as {status.stage}{f', {status.message}' if status.message else ''}", err=True)
        sys.exit(1)


def _read_entry(options: dict) -> list[str]:
    """The words after `publish` for an entry of a list, checked as if they were typed."""
    from ..jobs.batch import words_of

    known = {parameter.opts[-1].lstrip("-"): parameter for parameter in publish.params}
    flags = {name: (p.opts[0], *p.secondary_opts) for name, p in known.items() if getattr(p, "is_flag", False)}
    others = {n: p.opts[0] for n, p in known.items() if n not in flags and p.name not in {"reference", *ABOUT_THE_RUN}}
    words = words_of(options, others, {n: o for n, o in flags.items() if known[n].name not in ABOUT_THE_RUN})
    try:
        publish.make_context("publish", list(words))
    except click.UsageError as error:
        raise ValueError(error.format_message()) from error
    return words


def _publish_here(words: list[str]) -> None:
    with publish.make_context("publish", [*words, "--yes"]) as context:
        publish.invoke(context)


def _publish_as_jobs(models: Path, entries: list, settings: JobSettings, yes: bool, again: bool) -> list:
    """Ask once for all of them, then start a job for each that is not done and wait for them."""
    from ..jobs.batch import publish_all_as_jobs
    from ..jobs.jobs import Jobs

    account = Jobs(settings.namespace)

    def prepare(words: list[str]) -> tuple:
        with publish.make_context("publish", list(words)) as context:
            return _portable(context)

    def agree(count: int, most: float) -> None:
        _confirm(f"Start {count} jobs, for at most ${most:.2f} in all", yes)

    return publish_all_as_jobs(models, entries, account, settings, prepare, agree, again=again, say=_say)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _chooser():
    """Somebody to ask, if there is a terminal; nobody is asked the same thing twice."""
    answered: dict[str, int] = {}

    def choose(question: str, answers: list[str]) -> int:
        if question not in answered:
            answered[question] = _choose(question, answers)
        return answered[question]

    return choose if sys.stdin.isatty() and sys.stderr.isatty() else None


def _choose(question: str, answers: list[str]) -> int:
    click.echo(f"{question}:", err=True)
    for number, answer in enumerate(answers, start=1):
        click.echo(f"  {number}  {answer}", err=True)
    return click.prompt("Which one", type=click.IntRange(1, len(answers)), err=True) - 1


def _agree_to_work(outlook) -> None:
    """Ask before long work."""
    from ..common.text import roughly

    if outlook.seconds > LONG:
        click.echo("\n".join(outlook.lines()), err=True)
        click.confirm(f"This will take {roughly(outlook.seconds)}. Go on?", default=True, abort=True, err=True)


def _agree_to_upload(hub: UploadSettings, space: str | None, yes: bool) -> None:
    """Check that the upload can work, and on a terminal ask whether it is meant."""
    from ..hub.destination import check_upload
    from ..hub.space import check_space

    destination = check_upload(hub)
    if space:
        check_space(space)
    if _chooser() and not yes:
        shown = f", shown by the Space {space}" if space else ""
        click.confirm(f"Upload to {destination.summary}{shown}?", default=True, abort=True, err=True)


def _deploy(space: str | None, hub: UploadSettings) -> None:
    """Make the Space that was asked for, of the page that this command line can show as well."""
    from importlib.resources import files

    from ..hub.space import deploy_space

    if space:
        page = Path(str(files("spaces_app")))
        click.echo(f"space     {deploy_space(space, hub.repo, page, private=hub.private)}")


def _say_uploaded(uploaded) -> None:
    click.echo(uploaded.url)
    click.echo(f"commit    {uploaded.commit}")
    if uploaded.tag is not None:
        click.echo(f"tag       {uploaded.tag}")
    loaded = f"; {' and '.join(uploaded.loaded)} loaded back from the Hub" if uploaded.loaded else ""
    click.echo(f"verified  {uploaded.verified} files by their checksums{loaded}")


def _quiet() -> None:
    """Keep other libraries' progress bars and notices out of our output; their warnings stay."""
    import diffusers
    import huggingface_hub
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
