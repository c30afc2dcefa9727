"""The one place where options become a command line again: for the card, for another process, for a job."""

import shlex
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import click


def command_words(
    command: click.Command,
    values: Mapping[str, Any],
    leaving_out: Collection[str],
    *,
    shown: Callable[[Any], str] = str,
) -> list[str]:
    """The options of `command` whose values differ from its defaults, as a person types them, each value as `shown`.

    values: by parameter name. leaving_out: parameter names. Arguments are never among them.
    """
    context, words = click.Context(command), list[str]()
    for parameter in command.params:
        name = str(parameter.name)
        if not isinstance(parameter, click.Option) or name in leaving_out:
            continue
        value = values[name]
        if value is None or value == parameter.get_default(context):
            continue
        if parameter.is_flag:
            words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            words += [parameter.opts[0], shown(value)]
    return words


def command_line(
    command: click.Command, values: Mapping[str, Any], reference: str, leaving_out: Collection[str]
) -> str:
    """The command line that does the same again, for a published card.

    `reference` is in its short form, since the one that was typed may hold a token; paths of this machine are cut to
    their last part.
    """

    def shown(value: Any) -> str:
        return Path(value).name if isinstance(value, Path) or Path(str(value)).exists() else str(value)

    words = command_words(command, values, leaving_out, shown=shown)
    return shlex.join(["hswq-hub", str(command.name), reference, *words])
