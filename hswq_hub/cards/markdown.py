"""What strangers wrote, as Markdown and YAML that show it and do nothing else: escaped text, code, addresses."""

import re
from collections.abc import Callable
from urllib.parse import quote, urlsplit

from ..common.text import plain

_LONGEST = 2_000
"""Characters of a stranger's text in a card."""
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#|!&~])")
_AUTOLINK = re.compile(r"(?i)\b(https?|ftp|www|mailto)([:.])")


class Shown(str):
    """Text that is safe where it stands, as the functions below make it."""


def finished(value: object) -> object:
    """Whatever else a template puts into a card: figures, and what a damaged record has in their place. No HTML."""
    return value if isinstance(value, Shown) or not isinstance(value, str) else _line(value).replace("<", "&lt;")


def lines(text: object) -> "Shown":
    """Figures of ours on several lines of a cell in a table."""
    return Shown("<br>".join(str(finished(line)) for line in str(text).split("\n")))


def escaped(text: object) -> "Shown":
    """A stranger's text as Markdown on one line: no markup, no HTML, no link."""
    said = _SPECIAL.sub(r"\\\1", _line(text))
    return Shown(_AUTOLINK.sub(r"\1\\\2", said))  # an address alone becomes a link


def code(text: object) -> "Shown":
    """A stranger's text as a code span, also within a table."""
    said = _line(text).replace("|", "¦")  # a cell ends there, in code as well
    marks = "`" * (_longest_run(said) + 1)
    gap = " " if said.startswith("`") or said.endswith("`") else ""
    return Shown(f"{marks}{gap}{said}{gap}{marks}" if said else "` `")


def block(text: object) -> "Shown":
    """Lines with a stranger's text in them as a fenced block of code."""
    lines = [plain(line, _LONGEST) or "" for line in str(text).split("\n")]
    marks = "`" * max(3, max(map(_longest_run, lines)) + 1)
    return Shown("\n".join([marks, *lines, marks]))


def bibtex(text: object) -> "Shown":
    """A stranger's text as a value in braces within an entry for BibTeX, within a fenced block of code."""
    return Shown(re.sub(r"[\\{}`$%#]", "", _line(text)))


def address(text: object) -> "Shown":
    """A stranger's address as the target of a link: of a web page, or of something beside the card."""
    said = quote(_line(text), safe="/:?&=#%+,;@~.-_")
    return Shown(said if urlsplit(said).scheme in ("", "http", "https") else said.replace(":", "%3A"))


def front_matter(value: object) -> object:
    """A value of the YAML front matter, with every text in it on one line of characters that can be printed."""
    if isinstance(value, dict):
        return {_line(name): front_matter(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [front_matter(inner) for inner in value]
    return _line(value) if isinstance(value, str) else value


FILTERS: dict[str, Callable[[object], Shown]] = {
    "escaped": escaped,
    "lines": lines,
    "code": code,
    "block": block,
    "bibtex": bibtex,
    "address": address,
}
"""By their names in the templates."""


def _line(text: object) -> str:
    return plain(str(text), _LONGEST) or ""


def _longest_run(text: str) -> int:
    """Of backticks."""
    return max(map(len, re.findall(r"`+", text)), default=0)
