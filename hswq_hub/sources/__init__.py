"""From a reference that a person types to a local file whose origin is known."""

from .errors import SourceError, UnknownReferenceError
from .listing import Listing, Provenance
from .source import Prompts, Source, identify, locate, resolve

__all__ = [
    "Listing",
    "Prompts",
    "Provenance",
    "Source",
    "SourceError",
    "UnknownReferenceError",
    "identify",
    "locate",
    "resolve",
]
