"""What a host lists of a model, known before a byte of it is fetched."""

import re
from dataclasses import dataclass, field

from .errors import NotPermittedError
from .licence import Licence
from .permissions import Permissions
from .prompts.examples import Examples

NAME_LENGTH = 100
NSFW_TAG = "not-for-all-audiences"


@dataclass(frozen=True)
class RemoteFile:
    """One file to fetch. size: bytes, rounded on some hosts. sha256: lower-case hex. None: not listed."""

    name: str
    """Its name here: only letters, digits, dots, hyphens and underscores."""
    size: int | None
    sha256: str | None
    id: int | str
    """Its id on the host: a file id on Civitai, a path in a Hub repo."""


@dataclass(frozen=True)
class Provenance:
    """Where a source comes from, for its card; None: the host does not say."""

    url: str | None = None
    title: str | None = None
    version: str | None = None
    creator: str | None = None
    creator_url: str | None = None
    base_model: str | None = None
    """The host's name of the model that this one was made from."""
    repo: str | None = None
    """The Hub repo that it comes from."""
    nsfw: bool = False
    gated: str | None = None
    """"auto" or "manual" for a Hub repo that asks for approval; what is made from it is published gated as well."""
    private: bool = False
    """Whether it is a private Hub repo; what is made from it is published as private as well."""
    permissions: Permissions | None = None


@dataclass(frozen=True)
class Listing:
    """What the host lists of a model."""

    name: str
    """The stem of published files' names."""
    reference: str
    """The short form of the reference, which means the same file."""
    version: int | str
    """The host's id of the version: a number on Civitai, a commit on the Hub."""
    origin: str
    """One phrase for the card."""
    files: tuple[RemoteFile, ...]
    """The weight file; of a diffusers model on the Hub config.json, then its weight files."""
    licence: Licence | None
    provenance: Provenance
    licence_text: str | None = None
    """The licence text that comes with it, whether or not a licence is stated."""
    base: str | None = None
    """Hub repo of the other components, if the model's own repo has them."""
    objections: tuple[str, ...] = ()
    """Why it may not be quantized and published, each as a clause."""
    families: tuple[str, ...] = ()
    """What its host calls it and what it was made from, the clearest first: see `prompts.lists.style_of`."""
    examples: Examples = field(default_factory=Examples)
    """The prompts of the pictures that its page shows."""

    @property
    def size(self) -> int | None:
        """Bytes of all files; None if one of the sizes is not listed."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if len(sizes) == len(self.files) else None

    def check_permitted(self, permitted: bool) -> None:
        """Raise NotPermittedError if there are objections. permitted: the user has the creator's permission."""
        if self.objections and not permitted:
            raise NotPermittedError(
                f"{self.reference} is not free to be quantized and published: {'; '.join(self.objections)}; if its "
                "creator allowed it to you, say so with --i-have-permission"
            )


def safe_name(name: str, instead: str = "model") -> str:
    """Sanitize a file name from a stranger: no folders, no leading dot, `[A-Za-z0-9._-]` only, limited length.

    instead: the stem if nothing of it is left.
    """
    last = re.split(r"[/\\]", str(name))[-1]
    stem, suffix = (_safe(part) for part in (last.rpartition(".")[::2] if "." in last else (last, "")))
    return f"{stem or instead}.{suffix}" if suffix else stem or instead


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:NAME_LENGTH]
