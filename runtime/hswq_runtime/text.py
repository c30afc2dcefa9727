"""What strangers wrote, as an error message or a terminal may show it: names of files, keys, values of metadata."""

import itertools
import re
from collections.abc import Iterable

LONGEST_NAME = 80
"""Characters of a name that are shown."""
LONGEST_SENTENCE = 300
"""Characters of an error message, whatever names are in it."""
_LISTED = 3
"""Names of a list that are shown."""
_PASSWORD = re.compile(r"//[^/\s]*@")
"""A user's name and password in an address."""


def shown(text: object, most: int = LONGEST_NAME) -> str:
    """A stranger's text (of anything else its `str`) with at most `most` characters.

    What cannot be printed (control characters, marks that turn the direction of writing, line breaks) is escaped as in
    Python, and what is too long is cut in its middle: the end of a name tells it from others, as its beginning does.
    """
    said = _cut(str(text), most)
    if said.isprintable():
        return said
    return _cut("".join(c if c.isprintable() else ascii(c)[1:-1] for c in said), most)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - most // 2 - 1]}…{text[len(text) - most // 2 :]}"


def address(text: object) -> str:
    """What somebody typed as a reference or a web address, as a message may show it: without a query or a password,
    where tokens are."""
    return shown(_PASSWORD.sub("//", str(text).split("?", 1)[0]))


def written(value: object) -> str:
    """A value that a stranger wrote, as Python has it. Numbers of thousands of digits and lists within lists within
    lists have no such text."""
    try:
        return shown(repr(value))
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that is too large to be shown"


def several(names: Iterable[object], most: int = _LISTED, length: int = LONGEST_NAME) -> str:
    """A list of strangers' names as a sentence has it: the first `most` of them, each with at most `length`
    characters, and how many were left out."""
    rest = iter(names)
    first = [shown(name, length) for name in itertools.islice(rest, most)]
    left = sum(1 for _ in rest)
    return ", ".join(first) + (f" and {left} more" if left else "")


def sentence(text: str) -> str:
    """A message on one line, with at most `LONGEST_SENTENCE` characters."""
    return shown(" ".join(text.split()), LONGEST_SENTENCE)
