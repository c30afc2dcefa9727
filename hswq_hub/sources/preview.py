"""What `resolve` would fetch, found out without fetching it."""

from dataclasses import dataclass
from pathlib import Path

from hswq_runtime.architectures import ARCHITECTURES, base_named
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.pipeline import find_base

from ..common.text import plain
from .diffusers_folder import CONFIG, architecture_of, find_denoiser, whole_folder
from .errors import DownloadError
from .huggingface import Choose, Hub
from .listing import Listing
from .reference import DemoRef, LocalRef, parse
from .source import locate, resolve

_MODELSPEC_LICENCE = "modelspec.license"
"""Where a safetensors header may say it in words: https://github.com/Stability-AI/ModelSpec."""


@dataclass(frozen=True)
class Preview:
    """A model and the components that go with it."""

    listing: Listing | None
    """None: the model is on this machine."""
    licence: str | None
    base: str | None
    """Folder or Hub repo of the other components; None: the file's header has to be read first."""
    is_guess: bool = False
    """Whether `base` follows from what the host calls the model; the header decides."""
    components: int | None = None
    """Bytes of the components in a Hub repo."""
    unknown: str | None = None
    """Why `components` is not known."""


def preview(
    reference: str, base: str | None = None, civitai_endpoint: str | None = None, choose: Choose | None = None
) -> Preview:
    """What `reference` leads to, and the base that it needs: arguments as of :func:`hswq_hub.sources.resolve`.

    Raises:
        SourceError, FormatError, UnknownArchitectureError: see there.
    """
    listing = locate(reference, civitai_endpoint, choose)
    if listing is None:
        licence, base = _here(reference, base)
        return Preview(None, licence, base, **_size(base))
    base = base or listing.base
    guess = None if base else _base_of(listing.provenance.base_model)
    licence = str(listing.licence) if listing.licence else None
    return Preview(listing, licence, base or guess, guess is not None, **_size(base or guess))


def _here(reference: str, base: str | None) -> tuple[str | None, str]:
    """Licence and base of what is on this machine."""
    found = parse(reference)
    if isinstance(found, DemoRef):
        demo = resolve(reference, base)
        return str(demo.licence), demo.base
    assert isinstance(found, LocalRef)
    if found.path.is_dir():
        place = find_denoiser(found.path.resolve())
        return None, base or whole_folder(place) or architecture_of(place / CONFIG).base_repo
    checkpoint = Checkpoint(found.path)
    return plain(checkpoint.metadata.get(_MODELSPEC_LICENCE)), find_base(checkpoint, base)


def _base_of(base_model: str | None) -> str | None:
    """The base repo of the model that a host means by `base_model`."""
    found = (base_named(row, base_model) for row in ARCHITECTURES.values())
    return next((base for base in found if base is not None), None)


def _size(base: str | None) -> dict:
    if base is None or Path(base).is_dir():
        return {}
    try:
        return {"components": Hub().components_size(base)}
    except DownloadError as error:  # no reason to say nothing of the model
        return {"unknown": str(error)}
