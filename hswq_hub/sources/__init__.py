"""From a reference that a person types to a local file whose origin is known."""

from .source import Prompts, Source, UnknownReferenceError, resolve

__all__ = ["Prompts", "Source", "UnknownReferenceError", "resolve"]
