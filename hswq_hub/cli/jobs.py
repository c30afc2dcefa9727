"""`jobs`, and any command that runs as one: on Hugging Face's machines, paid by whoever the token speaks for."""

import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ..jobs.settings import JobSettings
from ..settings import SourceSettings
from .options import ABOUT_THE_RUN, NAMESPACE
from .terminal import confirm_cost, say, tell
from .words import command_words

if TYPE_CHECKING:
    from ..jobs.jobs import Jobs, Need


@click.group(invoke_without_command=True)
@NAMESPACE
@click.pass_context
def jobs(context: click.Context, namespace: str | None) -> None:
    """List the jobs that `publish --on hf-jobs` started; see what one writes, or stop it.

    \b
    hswq-hub jobs
    hswq-hub jobs logs ID
    hswq-hub jobs cancel ID
    """
    context.obj = namespace
    if context.invoked_subcommand is not None:
        return
    from ..common.text import text_table
    from ..jobs.jobs import HEADINGS, Jobs, rows

    tell(text_table(HEADINGS, rows(Jobs(namespace).listing())))


@jobs.command()
@click.argument("id")
@click.pass_obj
def logs(namespace: str | None, id: str) -> None:
    """Follow what a job writes, from its beginning. ID as `hswq-hub jobs` lists it."""
    _follow(*_job(id, namespace))


@jobs.command()
@click.argument("id")
@click.pass_obj
def cancel(namespace: str | None, id: str) -> None:
    """Stop a job. ID as `hswq-hub jobs` lists it."""
    account, number = _job(id, namespace)
    account.cancel(number)
    tell(f"{id} is stopped")


def run_as_job(
    command: click.Command,
    values: Mapping[str, Any],
    settings: JobSettings,
    source: SourceSettings,
    *,
    yes: bool,
    dry_run: bool,
) -> None:
    """Say what a job that runs `command` with `values` would cost, ask, start it and follow it."""
    from ..jobs.jobs import Jobs

    account = Jobs(settings.namespace)
    reference, words, need = portable(command, values, source)
    offer = account.offer(settings, need)
    line = offer.command(words)
    say("\n".join([*offer.lines(), shlex.join(line)]))
    if dry_run:
        return
    confirm_cost("Start this job", yes)
    job = account.submit(line, reference, settings)
    tell(job.url)
    _follow(account, job.id)


def portable(
    command: click.Command, values: Mapping[str, Any], source: SourceSettings
) -> tuple[str, list[str], "Need"]:
    """Short reference, command for a machine that is not this one, and what that is to hold.

    Raises:
        JobError: it needs something of this machine, or nothing of it would be left.
        SourceError: the reference leads nowhere.
    """
    from ..jobs.jobs import check_portable, check_public, look_up

    check_portable(values["reference"], source, values["folder"], values.get("repo"))
    options = command_words(command, values, ABOUT_THE_RUN)
    check_public(options)
    reference, need = look_up(values["reference"], source)
    return reference, [str(command.name), reference, *options], need


def _job(id: str, namespace: str | None) -> tuple["Jobs", str]:
    """Whose job it is, and its number: ID, or NAMESPACE/ID."""
    from ..jobs.jobs import Jobs, split_id

    named, number = split_id(id)
    return Jobs(named or namespace), number


def _follow(account: "Jobs", job: str) -> None:
    """Print what a job writes until it ends; Ctrl-C leaves it running."""
    from ..jobs.jobs import SUCCEEDED

    try:
        for line in account.follow(job):
            tell(line)
    except KeyboardInterrupt:
        name = f"{account.namespace}/{job}"
        say(f"\nthe job goes on; hswq-hub jobs logs {name} follows it, jobs cancel {name} stops it")
        return
    status = account.look(job).status
    if status.stage != SUCCEEDED:
        say(f"Error: the job ended as {status.stage}{f', {status.message}' if status.message else ''}")
        sys.exit(1)
