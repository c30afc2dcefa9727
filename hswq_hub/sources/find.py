"""Finds what a reference means, looks at the file's header, and fetches the file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from hswq_runtime.architectures import ARCHITECTURES, base_named
from hswq_runtime.checkpoints.base import configured, find_base
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.checkpoints.configuration import CONFIG
from hswq_runtime.checkpoints.locate import HubOptions
from hswq_runtime.errors import AlreadyQuantizedError
from hswq_runtime.formats import FULL_PRECISION, Metadata
from hswq_runtime.text import several, shown

from ..common.text import plain
from ..settings import PromptSettings, SourceSettings
from .civitai import Civitai
from .components import vae_of
from .diffusers_folder import (
    architecture_of,
    find_denoiser,
    join,
    joined_header,
    joined_sha256,
    weights_of,
    whole_folder,
)
from .errors import DownloadError
from .http import cache
from .http.header import stand_in
from .http.tokens import hub_options
from .huggingface import Choose, Hub
from .licence import Licence
from .listing import Listing
from .prompts.choose import Offered
from .prompts.choose import choose as choose_prompts
from .prompts.given import GivenPrompts
from .prompts.lists import DEMO_CAPTIONS, style_of
from .reference import DEMO, CivitaiRef, HubRef, LocalRef, ModelRef, identify, parse
from .source import NOT_LISTED, Source

_MODELSPEC_LICENCE = "modelspec.license"
"""Where a safetensors header may say it in words: https://github.com/Stability-AI/ModelSpec."""


@dataclass(frozen=True)
class Components:
    """A model's licence and its components besides the denoiser, as far as known before the weights are fetched.

    base: folder or Hub repo of the components; None: only the file's header will tell. is_guess: whether `base` is
    derived from the host's name of the base model, which the header may overrule. bytes: size of the components in a
    Hub repo; None: not known, and `unknown` says why.
    """

    licence: str | None
    base: str | None
    is_guess: bool = False
    bytes: int | None = None
    unknown: str | None = None


@dataclass(frozen=True)
class Found:
    """What a reference means. listing: what its host lists; None: it is on this machine. given: prompts of the user."""

    reference: str
    settings: SourceSettings
    meant: ModelRef
    listing: Listing | None
    host: Civitai | Hub | None
    given: GivenPrompts = field(default_factory=GivenPrompts)

    def check_permitted(self) -> None:
        """Check that the creator allows derivatives, or that the user has the permission.

        Raises:
            NotPermittedError: neither is so.
        """
        if self.listing is not None:
            self.listing.check_permitted(self.settings.permitted)

    @property
    def is_here(self) -> bool:
        """Whether :meth:`fetch` would transfer no weights."""
        return self.host is None or self.listing is None or self.host.weights_here(self.listing) is not None

    @contextmanager
    def header(self) -> Iterator[Path]:
        """The file if it is here in one piece, else a sparse stand-in with the same header and size.

        Of a remote file only the header is fetched, some kilobytes.

        Raises:
            SourceError: it cannot be had.
            FormatError: it has no header of a safetensors file.
        """
        if self.host is not None and self.listing is not None:
            here = self.host.weights_here(self.listing)
            if here is not None and len(self.listing.files) == 1:
                yield here[0]
                return
            with stand_in(self.host.header(self.listing), f"{self.listing.name}.safetensors") as path:
                yield path
        elif self._shards is not None:
            with stand_in(joined_header(*self._shards), f"{self.meant}.safetensors") as path:
                yield path
        else:
            yield self._file

    @contextmanager
    def look(self, *, hub: HubOptions | None = None) -> Iterator[Source]:
        """A source whose file is that of :meth:`header`, with the same checks as in :meth:`fetch`.

        Nothing is hashed: its SHA-256 is the listed or remembered one, else `NOT_LISTED`. `hub`: how a base on the Hub
        is asked for the configuration.

        Raises:
            SourceError, FormatError, UnknownArchitectureError, AlreadyQuantizedError: see :func:`resolve`.
        """
        with self.header() as path:
            yield self._source(path, cache.known_sha256(path) or self._known_sha256() or NOT_LISTED, hub)

    def _known_sha256(self) -> str | None:
        if self.host is not None and self.listing is not None:
            return self.host.known_sha256(self.listing)
        return None if self._shards is None else joined_sha256(*self._shards)

    @cached_property
    def _shards(self) -> tuple[Path, list[Path]] | None:
        """Configuration and weights of the denoiser in a local diffusers folder; None: it is something else."""
        if not isinstance(self.meant, LocalRef) or not self.meant.path.is_dir():
            return None
        place = find_denoiser(self.meant.path.resolve())
        return place / CONFIG, [place / name for name in weights_of([path.name for path in place.iterdir()])]

    @property
    def _file(self) -> Path:
        """A local checkpoint, or the demo model."""
        if isinstance(self.meant, LocalRef):
            return self.meant.path
        return Path(str(files("hswq_hub.data") / "demo_model" / "demo.safetensors"))

    def fetch(self) -> Source:
        """The source, downloaded if it is not here yet, with its SHA-256.

        Raises:
            NotPermittedError: see :meth:`check_permitted`.
            SourceError, TargetError, FormatError, UnknownArchitectureError, AlreadyQuantizedError: see :func:`resolve`.
        """
        self.check_permitted()
        verify = self.settings.verify
        if self.host is not None and self.listing is not None:
            path, known = self.host.fetch(self.listing, self._check_header, verify=verify)
        elif self._shards is not None:
            path, known = join(*self._shards, str(self.meant), verify=verify)
        else:
            path, known = self._file, None
        source = self._source(path, known or NOT_LISTED)
        return source if known else replace(source, sha256=cache.sha256_of(path, verify=verify))

    def components(self) -> Components:
        """Its licence and its other components, as far as known without its weights.

        Raises:
            SourceError, FormatError, UnknownArchitectureError: see :func:`resolve`.
        """
        if self.listing is not None:
            base = self.settings.base or self.listing.base
            guess = None if base else _base_of(self.listing.provenance.base_model)
            licence = self.listing.licence or self.settings.licence
            return _sized(Components(str(licence) if licence else None, base or guess, guess is not None))
        if isinstance(self.meant, LocalRef) and self.meant.path.is_dir():
            place = find_denoiser(self.meant.path.resolve())
            base = self.settings.base or whole_folder(place) or architecture_of(place / CONFIG).base_repo
            return _sized(Components(self.settings.licence, base))
        with self.look() as source:
            stated = str(source.licence) if source.licence else None
            stated = stated or plain(source.checkpoint.metadata.get(_MODELSPEC_LICENCE))
            return _sized(Components(stated, source.base))

    def _check_header(self, path: Path) -> None:
        """Raise if a file with this header cannot be used; called before the rest is downloaded."""
        self._source(path, NOT_LISTED)

    def _source(self, path: Path, sha256: str, hub: HubOptions | None = None) -> Source:
        hub = hub or hub_options()
        checkpoint = Checkpoint(path)
        _require_full_precision(checkpoint)
        settings, listing = self.settings, self.listing
        licence = Licence(settings.licence) if settings.licence else None
        if listing is not None:
            named = base_named(checkpoint.architecture, listing.provenance.base_model)
            base = find_base(checkpoint, settings.base or listing.base or named)
            offered = Offered(style_of(checkpoint.architecture, listing.families), listing.examples)
            return Source(
                name=listing.name,
                path=path,
                checkpoint=_checked(checkpoint, base, hub),
                sha256=sha256,
                base=base,
                vae=vae_of(base, hub),
                origin=listing.origin,
                licence=listing.licence or licence,
                prompts=choose_prompts(offered, self.given),
                offered=offered,
                reference=listing.reference,
                provenance=listing.provenance,
                licence_text=listing.licence_text,
                asked=identify(self.reference),
            )
        if isinstance(self.meant, LocalRef):
            is_folder = self.meant.path.is_dir()
            given = settings.base
            if is_folder:
                given = given or whole_folder(find_denoiser(self.meant.path.resolve()))
            base = find_base(checkpoint, given)
            name = str(self.meant) if is_folder else self.meant.path.stem
            offered = Offered(style_of(checkpoint.architecture, [name]))
            return Source(
                name=name,
                path=path,
                checkpoint=_checked(checkpoint, base, hub),
                sha256=sha256,
                base=base,
                vae=vae_of(base, hub),
                origin=f"the local {'folder' if is_folder else 'file'} {shown(self.meant)}",
                licence=licence,
                prompts=choose_prompts(offered, self.given),
                offered=offered,
                reference=str(self.meant),
                asked=os.path.realpath(self.meant.path),
            )
        data = files("hswq_hub.data") / "demo_model"
        base = find_base(checkpoint, settings.base or str(data / "components"))
        offered = Offered(DEMO_CAPTIONS)
        return Source(
            name=path.stem,
            path=path,
            checkpoint=_checked(checkpoint, base, hub),
            sha256=sha256,
            base=base,
            vae=vae_of(base, hub),
            origin="the demo model that ships with hswq-hub",
            licence=Licence("apache-2.0"),
            prompts=choose_prompts(offered, self.given),
            offered=offered,
            reference=DEMO,
            asked=DEMO,
        )


def find(reference: str, settings: SourceSettings | None = None, choose: Choose | None = None) -> Found:
    """What `reference` means. Of a remote model only the host's listing is fetched.

    Args:
        reference: see :mod:`hswq_hub.sources.reference`.
        settings: how it becomes a file.
        choose: asked which of several models in a repo is meant; None: several models are an error.

    Raises:
        SourceError: see :func:`resolve`.
    """
    settings, meant = settings or SourceSettings(), parse(reference)
    given = GivenPrompts.read(settings.prompts)
    if isinstance(meant, CivitaiRef):
        civitai = Civitai.of(meant, settings.civitai_endpoint)
        return Found(reference, settings, meant, civitai.listing(meant), civitai, given)
    if isinstance(meant, HubRef):
        hub = Hub(choose)
        return Found(reference, settings, meant, hub.listing(meant), hub, given)
    return Found(reference, settings, meant, None, None, given)


def resolve(
    reference: str,
    base: str | None = None,
    licence: str | None = None,
    *,
    civitai_endpoint: str | None = None,
    permitted: bool = False,
    verify: bool = False,
    choose: Choose | None = None,
    prompts: Path | None = None,
    evaluation_prompts: Path | None = None,
) -> Source:
    """The source that `reference` names, downloaded if it is not here yet.

    A local file is hashed once; its digest is remembered for as long as its size and modification time stay.

    Args:
        reference: see :mod:`hswq_hub.sources.reference`.
        base: diffusers folder or Hub repo with the other components. None: the first of these that there is: the
            diffusers folder or repo that holds the file, the repo of the base model that the host names, the base
            repo of the architecture.
        licence: Hub licence id, if its host names none.
        civitai_endpoint: where Civitai's API is; None: the site that the reference names.
        permitted: the user has the creator's permission where the listing has objections.
        verify: read a file that is here already again, in full.
        choose: see :func:`find`.
        prompts: text file with a prompt a line, to calibrate with. None: those of the model, see
            :mod:`hswq_hub.sources.prompts.choose`.
        evaluation_prompts: the same to measure on.

    Raises:
        SourceError: there is no usable file; its subclasses in :mod:`hswq_hub.sources.errors` say why.
        TargetError: the disk has no room for it.
        FormatError: the file is not a complete safetensors file, or does not fit its architecture.
        UnknownArchitectureError: its keys match no known architecture.
        AlreadyQuantizedError: it is not full precision.
    """
    given = PromptSettings(prompts, evaluation_prompts)
    settings = SourceSettings(base, licence, civitai_endpoint, permitted, verify, given)
    return find(reference, settings, choose).fetch()


def _require_full_precision(checkpoint: Checkpoint) -> None:
    """Raise AlreadyQuantizedError for a file with tensors that are FP8, integers or packed, or that is folded."""
    if Metadata.FOLD.value in checkpoint.metadata:
        raise AlreadyQuantizedError(f"{checkpoint.path} is a folded file; start from the original of the model")
    low = {info.dtype for info in checkpoint.denoiser_tensors.values()} - FULL_PRECISION
    if low:
        raise AlreadyQuantizedError(
            f"{checkpoint.path} is quantized already (it holds {several(sorted(low))}); "
            "start from the full-precision (FP16, BF16 or FP32) file of the model"
        )


def _checked(checkpoint: Checkpoint, base: str, hub: HubOptions | None) -> Checkpoint:
    """The checkpoint with the configuration that its base states, checked: it fits, and can be quantized."""
    checkpoint = configured(checkpoint, base, hub=hub)
    _ = checkpoint.layers  # or an error that names what does not fit
    _ = checkpoint.scheduler  # one that is not supported is refused here, before anything costs time
    return checkpoint


def _base_of(base_model: str | None) -> str | None:
    """The base repo of the model that a host means by `base_model`."""
    found = (base_named(row, base_model) for row in ARCHITECTURES.values())
    return next((base for base in found if base is not None), None)


def _sized(found: Components) -> Components:
    """The same with the bytes of a Hub repo's components."""
    if found.base is None or Path(found.base).is_dir():
        return found
    try:
        return replace(found, bytes=Hub().components_size(found.base))
    except DownloadError as error:  # no reason to say nothing of the model
        return replace(found, unknown=str(error))
