"""Every command that a document shows is one that the command line takes: its name, its options, and their values."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from hswq_hub.cli.main import main
from hswq_hub.cli.publish import publish

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
SKILL = ROOT / "skills/hswq-hub/SKILL.md"
DOCUMENTS = [
    ROOT / "README.md",
    *PAGES,
    SKILL,
    ROOT / "spaces_app/README.md",
    ROOT / "extensions/hf-hswq/README.md",
]
PROGRAM = "(?:hswq-hub|hf hswq)"
LINE = re.compile(rf"^ {{4}}{PROGRAM} (.*)$|`{PROGRAM} ([^`]+)`", re.MULTILINE)
ALONE = re.compile(r"`(--?[a-z][\w-]*)[^`]*`")
OF_OTHERS = {"--local-dir"}


def shown(document: Path) -> list[str]:
    """The command lines of a document, without the program: a line each, or between backticks."""
    return [line or inline for line, inline in LINE.findall(document.read_text())]


def commands(group: click.Group = main, name: str = "hswq-hub"):
    """All commands, those of groups among them, by what is typed, with hyphens."""
    for command in group.commands.values():
        yield f"{name}-{command.name}", command
        yield from commands(command, f"{name}-{command.name}") if isinstance(command, click.Group) else ()


def parse(command: click.Command, words: list[str], parent: click.Context | None = None) -> None:
    """Parse without running anything, and without looking for files.

    Raises:
        click.UsageError: there is no such command or option, or the option does not take that value.
    """
    context = click.Context(command, info_name=command.name, parent=parent)
    values, rest, _ = command.make_parser(context).parse_args(args=list(words))
    for parameter in command.params:
        if not isinstance(parameter.type, click.Path) and isinstance(value := values.get(str(parameter.name)), str):
            parameter.type_cast_value(context, value)
    if isinstance(command, click.Group) and rest and not (rest[0].isupper() or rest[0].startswith("-")):
        _, found, left = command.resolve_command(context, rest)
        assert found is not None
        parse(found, left, context)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_there(document):
    for line in shown(document):
        try:
            parse(main, shlex.split(line, comments=True))
        except click.UsageError as error:
            raise AssertionError(f"hswq-hub {line}: {error.format_message()}") from error


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_are_there(document):
    """Those that a sentence names by themselves, of any command."""
    known = {"--help", *(name for _, c in commands() for p in c.params for name in (*p.opts, *p.secondary_opts))}
    assert set(ALONE.findall(document.read_text())) - known - OF_OTHERS == set()


def test_a_wrong_command_is_found():
    for wrong in ("publsh demo", "publish demo --fodler out", "publish demo --on nowhere", "cache delete"):
        with pytest.raises(click.UsageError):
            parse(main, wrong.split())


def test_the_pages_name_every_command():
    named = {words.split()[0] for document in (ROOT / "README.md", *PAGES) for words in shown(document)}
    assert set(main.commands) - named == set()


def test_the_reference_has_every_command_and_option(tmp_path):
    """The pages are built as by `make docs`: what Sphinx warns of, a link that leads nowhere, say, is an error."""
    build = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-b", "html", "-c", "docs"]
    result = subprocess.run([*build, ".", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    reference = (tmp_path / "docs/cli.html").read_text()
    for name, command in commands():
        assert f'id="{name}"' in reference
        for option in [p for p in command.params if isinstance(p, click.Option) and not p.hidden]:
            for spelling in (*option.opts, *option.secondary_opts):
                assert f'id="cmdoption-{name}-{spelling.lstrip("-")}"' in reference, spelling
    helped = re.findall(r"^  --(?!help)([\w-]+)", publish.get_help(click.Context(publish)), re.MULTILINE)
    places = [reference.index(f'id="cmdoption-hswq-hub-publish-{option}"') for option in helped]
    assert len(places) > 40 and places == sorted(places), "options are under the headings of the help"
