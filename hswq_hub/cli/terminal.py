"""Talking to whoever sits at the terminal: what is said goes to stderr, and nobody is asked where nobody can answer.

Whatever is printed goes through here: names, keys and descriptions are from strangers, and a terminal obeys what
cannot be printed.
"""

import sys
from collections.abc import Callable

import click

from hswq_runtime.text import shown

Choose = Callable[[str, list[str]], int]


def say(line: str) -> None:
    """A line for people, beside the output that programs read."""
    click.echo(_safe(line), err=True)


def tell(lines: object) -> None:
    """The output, which programs may read: one line or several."""
    click.echo(_safe(str(lines)))


def _safe(text: str) -> str:
    """A text whose lines a terminal shows and does not obey."""
    return "\n".join(shown(line, len(line) * _LONGEST_ESCAPE) for line in text.split("\n"))


_LONGEST_ESCAPE = len(r"\U0001f600")
"""Characters that one may become: nothing is cut."""


def is_attended() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def chooser() -> Choose | None:
    """Somebody to ask, if there is a terminal; nobody is asked the same thing twice."""
    answered: dict[str, int] = {}

    def choose(question: str, answers: list[str]) -> int:
        if question not in answered:
            answered[question] = ask(question, answers)
        return answered[question]

    return choose if is_attended() else None


def ask(question: str, answers: list[str]) -> int:
    """The number of one of `answers`, from 0."""
    say(f"{shown(question)}:")
    for number, answer in enumerate(answers, start=1):
        say(f"  {number}  {shown(answer)}")
    return int(click.prompt("Which one", type=click.IntRange(1, len(answers)), err=True)) - 1


def confirm_cost(question: str, yes: bool) -> None:
    """Ask before something that costs money, unless --yes was given; where nobody can answer that is needed."""
    if yes:
        return
    if not is_attended():
        raise click.UsageError("this costs money, and there is no terminal to ask; say --yes")
    click.confirm(f"{_safe(question)}?", abort=True, err=True)


def quiet() -> None:
    """Keep other libraries' progress bars and notices out of our output; their warnings stay."""
    import diffusers
    import transformers
    from huggingface_hub.utils import disable_progress_bars

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        disable_progress_bars()
