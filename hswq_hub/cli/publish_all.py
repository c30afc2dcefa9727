"""`publish-all`: every model of a list. An entry is typed as the command line is, without being one."""

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..jobs.settings import JobSettings
from .groups import takes
from .jobs import portable
from .options import ABOUT_THE_RUN, AGAIN, DESTINATIONS, EXISTING_FILE, JOB, LICENSED_SOURCE, PUBLISH, YES
from .publish import agree_to_upload, carry_out, publish, shown_command
from .terminal import chooser, confirm_cost, quiet, say, tell
from .words import command_words

if TYPE_CHECKING:
    from ..jobs.batch import Entry, State
    from ..jobs.jobs import Need
    from ..workflow.request import PublishRequest

REFERENCE = "reference"


@click.command("publish-all")
@click.argument("models", type=EXISTING_FILE)
@click.option("--again", is_flag=True, help="Try also what failed for good.")
@takes(job=JOB)
@YES
def publish_all(models: Path, again: bool, job: JobSettings | None, yes: bool) -> None:
    """Publish every model of a list, one after another or each as a job.

    MODELS is a YAML list. An entry is a reference, or a mapping of `reference` and options of `publish` without
    their dashes. What is done stays done, whatever happens; run it again for the rest. Exit code 1: some are not done.

    \b
    hswq-hub publish-all models.yaml
    hswq-hub publish-all models.yaml --on hf-jobs --flavor l40sx1 --yes
    """
    from ..common.text import text_table
    from ..jobs.batch import HEADINGS, publish_all, read_list, summary

    entries = read_list(models, read_entry)
    if job is None:
        quiet()
        states = publish_all(models, entries, _publish_here, again=again, log=say)
    else:
        states = _publish_as_jobs(models, entries, job, yes, again)
    tell(text_table(HEADINGS, summary(entries, states)))
    sys.exit(0 if all(state.done for state in states) else 1)


def read_entry(options: Mapping[str, Any]) -> "Entry":
    """An entry of a list, checked as `publish` checks what is typed.

    Raises:
        ValueError: an unknown name, with the nearest one, or a value that the option does not take.
    """
    from ..jobs.batch import Entry

    values = values_of(publish, options)
    _checked(DESTINATIONS.of, values)
    _checked(_request_of, values)
    return Entry((options[REFERENCE], *command_words(publish, values, ABOUT_THE_RUN)), values)


def _request_of(values: Mapping[str, Any]) -> "PublishRequest":
    from ..workflow.request import PublishRequest

    return PublishRequest(
        values[REFERENCE],
        LICENSED_SOURCE.of(values),
        PUBLISH.of(values),
        values["folder"],
        AGAIN.of(values),
        shown_command(values),
    )


def values_of(command: click.Command, options: Mapping[str, Any]) -> dict[str, Any]:
    """The value of each parameter of `command`, by its name: what `options` say, by the long names of the options with
    hyphens or underscores, and the default of the others.

    Raises:
        ValueError: an unknown name, with the nearest one, or a value that the option does not take.
    """
    context = click.Context(command)
    known = {p.opts[-1].lstrip("-"): p for p in command.params if p.name not in ABOUT_THE_RUN}
    values = {str(parameter.name): _default(parameter, context) for parameter in command.params}
    for key, value in options.items():
        name = str(key).replace("_", "-")
        if (parameter := known.get(name)) is None:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(f"there is no option {key!r}" + (f"; did you mean {near[0]}?" if near else ""))
        if isinstance(parameter, click.Option) and parameter.is_flag:
            if not isinstance(value, bool):
                raise ValueError(f"{key} is true or false, not {value!r}")
        elif not isinstance(value, str | int | float) or isinstance(value, bool):
            raise ValueError(f"{key} takes one value, not {value!r}")
        else:
            value = _checked(lambda text, p=parameter: p.type_cast_value(context, text), str(value))
        values[str(parameter.name)] = value
    return values


def _default(parameter: click.Parameter, context: click.Context) -> Any:
    default = parameter.get_default(context)
    return None if parameter.value_is_missing(default) else default


def _checked(make: Any, value: Any) -> Any:
    """What `make` makes of `value`; a mistake of usage as a ValueError."""
    try:
        return make(value)
    except click.UsageError as error:
        raise ValueError(error.format_message()) from error


def _publish_here(entry: "Entry") -> None:
    destinations = DESTINATIONS.of(entry.values)
    destination = agree_to_upload(destinations, yes=True)
    carry_out(_request_of(entry.values), destinations, destination, choose=chooser())


def _publish_as_jobs(
    models: Path, entries: list["Entry"], settings: JobSettings, yes: bool, again: bool
) -> list["State"]:
    """Ask once for all of them, then start a job for each that is not done and wait for them."""
    from ..jobs.batch import publish_all_as_jobs
    from ..jobs.jobs import Jobs

    def prepare(entry: "Entry") -> tuple[str, list[str], "Need"]:
        return portable(publish, entry.values, LICENSED_SOURCE.of(entry.values))

    def agree(count: int, most: float) -> None:
        confirm_cost(f"Start {count} jobs, for at most ${most:.2f} in all", yes)

    account = Jobs(settings.namespace)
    return publish_all_as_jobs(models, entries, account, settings, prepare, agree, again=again, log=say)
