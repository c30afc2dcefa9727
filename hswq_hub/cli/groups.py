"""Options that belong together and become one settings object; and help that lists them under headings."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import click

T = TypeVar("T")
Command = Callable[..., Any]
Decorator = Callable[[Command], Command]


class OptionGroup(Generic[T]):
    """Options of the command line, and the object that their values make.

    build: is called with the values by the options' names. options: click's decorators. parts: groups whose object is
    given to `build` under that name, and whose options come first.
    """

    def __init__(self, build: Callable[..., T], *options: Decorator, **parts: "OptionGroup[Any]"):
        self._build, self._parts = build, parts
        self._own = tuple(name for name in inspect.signature(build).parameters if name not in parts)
        self.options: tuple[Decorator, ...] = (*(o for part in parts.values() for o in part.options), *options)
        self.names: frozenset[str] = frozenset(self._own).union(*(part.names for part in parts.values()))

    def of(self, values: Mapping[str, Any]) -> T:
        """The object that the values of a command's parameters make.

        Raises:
            click.UsageError: they exclude each other.
        """
        made = {name: part.of(values) for name, part in self._parts.items()}
        return self._build(**made, **{name: values[name] for name in self._own})


def takes(**groups: OptionGroup[Any]) -> Decorator:
    """A command with the options of `groups`, that is called with the objects they make, under the names given here."""
    taken = frozenset[str]().union(*(group.names for group in groups.values()))

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def with_objects(**values: Any) -> Any:
            made = {name: group.of(values) for name, group in groups.items()}
            return function(**made, **{name: value for name, value in values.items() if name not in taken})

        command: Command = with_objects
        for option in reversed([option for group in groups.values() for option in group.options]):
            command = option(command)
        return command

    return decorate


class Grouped(click.Command):
    """A command with many options: its help has them under headings."""

    headings: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Heading -> names of parameters; what is not named comes under the last."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {heading: [] for heading in self.headings}
        last = list(groups)[-1]
        for parameter in self.get_params(context):
            heading = next((h for h, names in self.headings.items() if parameter.name in names), last)
            if record := parameter.get_help_record(context):
                groups[heading].append(record)
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
