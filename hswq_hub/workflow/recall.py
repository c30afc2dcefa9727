"""Models that were worked on before: what is known of them without asking their host or reading the file again."""

from dataclasses import replace

from ..sources.source import Source, identify
from .workspace import Workspace, notes


def remember(workspace: Workspace, source: Source) -> None:
    """Note in its workspace what `source` is, and the size and time of its file."""
    now = source.path.stat()
    workspace.note({"source": source.as_dict(), "size": now.st_size, "mtime_ns": now.st_mtime_ns})


def recall(reference: str, base: str | None = None) -> Source | None:
    """The source that `reference` led to when it was worked on last; None if it never was or its file has changed.

    `base`: as of :func:`hswq_hub.sources.resolve`; None: the one it had then.
    """
    asked = identify(reference)
    for note in notes():
        try:
            source, then = Source.from_dict(note["source"]), (note["size"], note["mtime_ns"])
        except (KeyError, TypeError):  # another release wrote it, and made its products
            continue
        if source.asked == asked and source.path.is_file():
            now = source.path.stat()
            if (now.st_size, now.st_mtime_ns) == then:
                return source if base is None else replace(source, base=base)
    return None
