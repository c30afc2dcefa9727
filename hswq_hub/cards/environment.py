"""The templates, and what they put values into a card with."""

import json

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..common.text import megabytes, share
from .markdown import FILTERS, Shown, finished


def literal(value: object) -> str:
    """A value as Python text; text in double quotes, as JSON has it."""
    said = json.dumps(value, ensure_ascii=not value.isprintable()) if isinstance(value, str) else repr(value)
    return Shown(said)


def environment() -> Environment:
    """Of `templates/`; a name that is not there is an error."""
    environment = Environment(
        loader=PackageLoader("hswq_hub.cards", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
        finalize=finished,
    )
    environment.filters["megabytes"] = megabytes
    environment.filters["share"] = share
    environment.filters |= FILTERS
    return environment
