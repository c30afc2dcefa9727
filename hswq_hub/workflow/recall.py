"""Sources that were worked on before: what is known of them without asking their host or reading the file again."""

from dataclasses import replace
from pathlib import Path

from hswq_runtime.checkpoints.base import configured
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.checkpoints.locate import HubOptions

from ..settings import SourceSettings
from ..sources.components import vae_of
from ..sources.prompts.given import GivenPrompts
from ..sources.reference import identify
from ..sources.source import Source
from .workspace import Workspace, notes


def remember(workspace: Workspace, source: Source) -> None:
    """Note in its workspace what `source` is, and the size and time of its file."""
    size, mtime_ns = _state(source.path)
    workspace.write_note({"source": source.as_dict(), "size": size, "mtime_ns": mtime_ns})


def recall(reference: str, settings: SourceSettings | None = None) -> Source | None:
    """The source that `reference` led to when it was worked on last; None if it never was or its file has changed.

    Of `settings` the base counts (None: the one it had then), and the prompts.

    Raises:
        PromptsError: the prompts cannot be used.
    """
    settings, asked = settings or SourceSettings(), identify(reference)
    base, given = settings.base, GivenPrompts.read(settings.prompts)
    for note in notes():
        try:
            facts, then = note["source"], (note["size"], note["mtime_ns"])
            path = Path(facts["path"])
            if facts["asked"] != asked or not path.is_file() or _state(path) != then:
                continue
            source = Source.from_dict(facts).with_prompts(given)
        except (KeyError, TypeError):  # another release wrote it, and made its products
            continue
        if base in (None, source.base):
            return source
        here = HubOptions(local_files_only=True)
        checkpoint = configured(Checkpoint(path), base, hub=here)
        return replace(source, base=base, checkpoint=checkpoint, vae=vae_of(base, here))
    return None


def _state(path: Path) -> tuple[int, int]:
    now = path.stat()
    return now.st_size, now.st_mtime_ns
