"""What a reference leads to, as its host lists it, before a byte of it is fetched."""

import re
from dataclasses import dataclass

from .errors import NotPermittedError
from .licence import Licence
from .permissions import Permissions

NAME_LENGTH = 100
NSFW_TAG = "not-for-all-audiences"


@dataclass(frozen=True)
class RemoteFile:
    """One file to fetch. size: bytes, as far as the host is exact; sha256: lower-case hex; None where not listed."""

    name: str
    """What it is called here: never anything but letters, digits, dots, hyphens and underscores."""
    size: int | None
    sha256: str | None
    id: int | str
    """How its host calls it: a file id on Civitai, a path in a Hub repo."""


@dataclass(frozen=True)
class Provenance:
    """Where a source came from, for its card; None: the host does not say."""

    url: str | None = None
    title: str | None = None
    version: str | None = None
    creator: str | None = None
    creator_url: str | None = None
    base_model: str | None = None
    """What the host calls the model that this one was made from."""
    repo: str | None = None
    """The Hub repo it is from."""
    nsfw: bool = False
    gated: str | None = None
    """"auto" or "manual" for a Hub repo that asks for approval; what is made from it is published gated as well."""
    private: bool = False
    """Whether it is a private Hub repo; what is made from it is published as private as well."""
    permissions: Permissions | None = None


@dataclass(frozen=True)
class Listing:
    """All that is known before the download."""

    name: str
    """What published files are named after."""
    reference: str
    """The reference in its short form, which leads to the same file again."""
    version: int | str
    """How its host calls the version: an id on Civitai, a commit on the Hub."""
    origin: str
    """One phrase for the card."""
    files: tuple[RemoteFile, ...]
    """The model itself; several if it is sharded."""
    licence: Licence | None
    provenance: Provenance
    licence_text: str | None = None
    """What its host ships with it, whether or not a licence is stated."""
    base: str | None = None
    """Hub repo of the other components, where the reference itself says it."""
    objections: tuple[str, ...] = ()
    """Why its creator would not want it quantized and published."""

    @property
    def size(self) -> int | None:
        """Bytes of all files, None if one of them is not known."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if len(sizes) == len(self.files) else None

    def check_permitted(self, permitted: bool) -> None:
        """Raise NotPermittedError if there are objections, unless the user says to have permission."""
        if self.objections and not permitted:
            raise NotPermittedError(
                f"{self.reference} is not free to be quantized and published: {'; '.join(self.objections)}; if its "
                "creator allowed it to you, say so with --i-have-permission"
            )


def safe_name(name: str, instead: str = "model") -> str:
    """A name from a stranger as one that is only a name: no folders, nothing hidden, nothing special, not long.

    instead: what to call it if nothing is left of the name before the suffix.
    """
    last = re.split(r"[/\\]", str(name))[-1]
    stem, suffix = (_safe(part) for part in (last.rpartition(".")[::2] if "." in last else (last, "")))
    return f"{stem or instead}.{suffix}" if suffix else stem or instead


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:NAME_LENGTH]
