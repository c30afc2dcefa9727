"""`publish`, `status` and `upload`: from a reference to a folder or a repo."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from ..jobs.settings import JobSettings
from ..settings import PublishSettings, SourceSettings
from .groups import Grouped, takes
from .jobs import run_as_job
from .options import (
    ABOUT_THE_RUN,
    AGAIN,
    DESTINATIONS,
    FORMATS,
    JOB,
    LICENSED_SOURCE,
    ON_GPU,
    PUBLISH,
    PUBLISHED_FOLDER,
    RECIPE,
    UPLOAD,
    YES,
    Destinations,
)
from .terminal import Choose, chooser, is_attended, quiet, say, tell
from .words import command_line

if TYPE_CHECKING:
    from ..hub.destination import Destination
    from ..hub.upload import Uploaded
    from ..workflow.publish import PublishPlan
    from ..workflow.request import PublishRequest

LONG = 600
"""Seconds of work before which people are asked."""
UNPUBLISHED = {
    *("folder", "civitai_endpoint", "verify", "calibration_memory", "device_memory"),
    *AGAIN.names,
    *DESTINATIONS.names,
    *ABOUT_THE_RUN,
}
"""Options that are about this machine or account and not about what comes out."""


class Headed(Grouped):
    """A command whose help has the headings of `publish`."""

    headings: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Source": ("base", "licence", "permitted", "verify", "civitai_endpoint"),
        "What to make": tuple(RECIPE.names | FORMATS.names),
        "Calibration": ("prompts", "samples", "steps", "seed"),
        "Measuring": ("evaluation_prompts", "pairs", "picture_steps", "perceptual", "noise_floor"),
        "Pictures of both": ("guidance", "size"),
        "Where to": ("folder", *DESTINATIONS.names),
        "This machine": ("device", "dtype", "device_memory", "calibration_memory"),
        "Another machine": tuple(JOB.names),
        "This run": (*AGAIN.names, "dry_run", "on_gpu", "yes"),
    }


@click.command(cls=Headed)
@click.argument("reference")
@PUBLISHED_FOLDER
@takes(source=LICENSED_SOURCE, settings=PUBLISH, again=AGAIN, destinations=DESTINATIONS, job=JOB)
@click.option("--dry-run", is_flag=True, help="Only say what would be done, and what it would take.")
@ON_GPU
@YES
@click.pass_context
def publish(
    context: click.Context,
    reference: str,
    folder: Path | None,
    source: SourceSettings,
    settings: PublishSettings,
    again: tuple[str, ...],
    destinations: Destinations,
    job: JobSettings | None,
    dry_run: bool,
    on_gpu: str | None,
    yes: bool,
) -> None:
    """Do it all: a checkpoint in, a folder or a Hub repo out.

    The folder holds the quantized files, the model card, the figures and pictures. REFERENCE is "demo", a
    safetensors file or diffusers folder, a Civitai or Hugging Face address, owner/repo, civitai:MODEL@VERSION, or
    a name that `hswq-hub models` lists. A run that was stopped goes on where it was; after --from or --redo leave
    those out for that. On a terminal you are asked before work that seems to take longer than ten minutes.

    \b
    hswq-hub publish demo
    hswq-hub publish demo --dry-run
    hswq-hub publish demo --dry-run --on-gpu "RTX 4090"
    hswq-hub publish 'https://civitai.com/models/2242173?modelVersionId=2774410'
    hswq-hub publish model.safetensors --base Tongyi-MAI/Z-Image-Turbo --folder out
    hswq-hub publish model.safetensors --repo alice/my-model-hswq --private
    hswq-hub publish harukiMIX_zit2603 --repo alice/haruki-hswq --on hf-jobs --flavor l40sx1 --timeout 3h
    """
    if on_gpu is not None and (not dry_run or job is not None or settings.calibration.dtype == "float32"):
        raise click.UsageError("--on-gpu is for --dry-run without --on, of a GPU that computes in 16 bits")
    if job is not None:
        run_as_job(publish, context.params, job, source, yes=yes, dry_run=dry_run)
        return
    from ..workflow.request import PublishRequest

    request = PublishRequest(reference, source, settings, folder, again, shown_command(context.params))
    choose = chooser()
    destination = agree_to_upload(destinations, yes or dry_run)
    quiet()
    if dry_run:
        _say_plan(request, choose, on_gpu)
        return
    carry_out(request, destinations, destination, choose=choose, yes=yes)


def shown_command(values: Mapping[str, Any]) -> Callable[[str], str]:
    """Short reference -> the command line that the card shows. values: of the parameters of `publish`."""
    return lambda reference: command_line(publish, values, reference, UNPUBLISHED)


def carry_out(
    request: "PublishRequest",
    destinations: Destinations,
    destination: "Destination | None",
    *,
    choose: Choose | None = None,
    yes: bool = True,
) -> None:
    """Publish, and print what came of it."""
    from ..cards.card import Card
    from ..common.text import text_table
    from ..evaluation.report import headings, table

    plan = request.plan(request.find(choose), destination)
    plan.check(say)
    say(plan.estimate)
    if choose and not yes:
        _agree_to_work(plan)
    published = plan.run(say)
    tell(text_table(headings(published.evaluation), table(published.evaluation)))
    verdict = "\n".join(Card.from_folder(published.folder).verdict_lines)
    tell(f"\n{verdict}\n\n{published.folder}/")
    if published.uploaded is not None:
        _say_uploaded(published.uploaded)
        _deploy(destinations)


@click.command(cls=Headed)
@click.argument("reference")
@PUBLISHED_FOLDER
@takes(source=LICENSED_SOURCE, settings=PUBLISH)
def status(reference: str, folder: Path | None, source: SourceSettings, settings: PublishSettings) -> None:
    """Say how far the work on a model is: the steps of `publish`, their products, sizes and times.

    The options are those of `publish`: what was made with others counts as missing. No host is asked.

    \b
    hswq-hub status demo
    """
    from ..workflow.request import PublishRequest

    quiet()
    tell("\n".join(PublishRequest(reference, source, settings, folder).status()))


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@takes(destinations=UPLOAD)
@YES
def upload(folder: Path, destinations: Destinations, yes: bool) -> None:
    """Upload a folder that `publish` made, in one commit, and check what arrived.

    A repo that is not there is made; one that hswq-hub made is updated, and its card keeps the figures of earlier
    versions. What is there already is not sent again, so a run that was stopped is simply run again.

    \b
    hswq-hub upload hswq-published/demo-hswq --repo alice/demo-hswq
    """
    from ..hub.upload import upload_to

    destination = agree_to_upload(destinations, yes)
    assert destination is not None, "--repo is required"
    quiet()
    _say_uploaded(upload_to(folder, destination))
    _deploy(destinations)


def _say_plan(request: "PublishRequest", choose: Choose | None, on_gpu: str | None) -> None:
    from ..common.speed.gpus import GPUS
    from .tables import found_lines

    found = request.find(choose)
    for line in found_lines(found):
        tell(line)
    request.preview(found, tell, None if on_gpu is None else GPUS[on_gpu])


def _agree_to_work(plan: "PublishPlan") -> None:
    """Ask before long work."""
    from ..common.text import roughly

    if plan.seconds > LONG:
        say("\n".join(plan.lines()))
        click.confirm(f"This will take {roughly(plan.seconds)}. Go on?", default=True, abort=True, err=True)


def agree_to_upload(destinations: Destinations, yes: bool) -> "Destination | None":
    """Check that the upload can work, and on a terminal ask whether it is meant."""
    if destinations.upload is None:
        return None
    from ..hub.destination import check_upload
    from ..hub.space import check_space

    destination, space = check_upload(destinations.upload), destinations.space
    if space:
        check_space(space)
    if is_attended() and not yes:
        shown = f", shown by the Space {space}" if space else ""
        click.confirm(f"Upload to {destination.summary}{shown}?", default=True, abort=True, err=True)
    return destination


def _deploy(destinations: Destinations) -> None:
    """Make the Space that was asked for, of the page that this command line can show as well."""
    from importlib.resources import files

    from ..hub.space import deploy_space

    upload, space = destinations.upload, destinations.space
    if upload is not None and space is not None:
        page = Path(str(files("spaces_app")))
        tell(f"space     {deploy_space(space, upload.repo, page, private=upload.private)}")


def _say_uploaded(uploaded: "Uploaded") -> None:
    tell(uploaded.url)
    tell(f"commit    {uploaded.commit}")
    if uploaded.tag is not None:
        tell(f"tag       {uploaded.tag}")
    loaded = f"; {' and '.join(uploaded.loaded)} loaded back from the Hub" if uploaded.loaded else ""
    tell(f"verified  {uploaded.verified} files by their checksums{loaded}")
