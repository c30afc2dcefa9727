"""What a source is, and how a reference becomes one."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from hswq_runtime.architectures import Architecture, base_named
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.pipeline import check_components, fetch_base, find_base

from ..common.files import file_sha256
from .civitai import Civitai
from .diffusers_folder import CONFIG, find_denoiser, join, weights_of, whole_folder
from .huggingface import Choose, Hub
from .licence import Licence
from .listing import Listing, Provenance
from .permissions import Permissions
from .reference import DEMO, CivitaiRef, DemoRef, HubRef, LocalRef, ModelRef, parse

_NOT_LISTED = "0" * 64


@dataclass(frozen=True)
class Prompts:
    """Two lists without a prompt in common: one to calibrate with, one to measure with."""

    calibration: tuple[str, ...]
    evaluation: tuple[str, ...]

    @classmethod
    def read(cls, folder) -> "Prompts":
        """`calibration.txt` and `evaluation.txt` of a folder, one prompt a line, empty lines left out."""
        return cls(*(_lines(folder / f"{name}.txt") for name in ("calibration", "evaluation")))


@dataclass(frozen=True)
class Source:
    """A full-precision checkpoint on this disk, and all that is known of where it came from."""

    name: str
    """What published files are named after: `<name>-hswq-v1.safetensors`."""
    path: Path
    base: str
    """diffusers folder or Hub repo of the other components."""
    origin: str
    """One phrase for the card: where the file came from, without a path of this machine."""
    licence: Licence | None
    """None if nobody said."""
    prompts: Prompts
    reference: str
    """The reference in its short form, without a path of this machine or a secret."""
    provenance: Provenance = field(default_factory=Provenance)
    licence_text: str | None = None
    """What came with it, whether or not a licence is stated."""
    digest: str | None = None
    """SHA-256 of the file, if it was found out on the way here."""
    asked: str = ""
    """What was asked for, as :func:`identify` has it."""

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.path)

    @cached_property
    def architecture(self) -> Architecture:
        """The facts of this model: those of its architecture, or of the variant that its base is of."""
        return self.checkpoint.architecture.with_base(self.base)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the whole file."""
        return self.digest or file_sha256(self.path)

    def as_dict(self) -> dict:
        """All of it as JSON can hold it, the digest found out."""
        return asdict(self) | {"path": str(self.path), "digest": self.sha256}

    @classmethod
    def from_dict(cls, facts: dict) -> "Source":
        """The inverse of :meth:`as_dict`."""
        provenance, licence = dict(facts["provenance"]), facts["licence"]
        if (said := provenance["permissions"]) is not None:
            uses = said["commercial_use"]
            provenance["permissions"] = Permissions(**said | {"commercial_use": uses if uses is None else tuple(uses)})
        return cls(
            **facts
            | {
                "path": Path(facts["path"]),
                "licence": licence and Licence(**licence),
                "prompts": Prompts(*(tuple(facts["prompts"][name]) for name in ("calibration", "evaluation"))),
                "provenance": Provenance(**provenance),
            }
        )

    def check_components(self) -> None:
        """Check that the base has all components besides the denoiser.

        Raises:
            ComponentError: names what is missing.
        """
        check_components(self.checkpoint, self.base)

    def fetch_components(self) -> None:
        """Bring the other components here, if they are in a Hub repo; its own denoiser is left there.

        Raises:
            ComponentError: names what is missing.
            FormatError: they do not arrive.
        """
        self.check_components()
        if self.hub_base is not None:
            fetch_base(self.checkpoint, self.hub_base)

    @property
    def hub_base(self) -> str | None:
        """The Hub repo of the other components; None if they come from a folder of this machine."""
        return None if Path(self.base).is_dir() else self.base


def identify(reference: str) -> str:
    """What `reference` means, in one spelling; of something on this machine its path."""
    found = parse(reference)
    return os.path.realpath(found.path) if isinstance(found, LocalRef) else str(found)


def locate(reference: str, civitai_endpoint: str | None = None, choose: Choose | None = None) -> Listing | None:
    """What `reference` leads to on its host, without fetching it; None for what is on this machine already.

    Raises:
        SourceError: see :func:`resolve`.
    """
    found = parse(reference)
    host = host_of(found, civitai_endpoint, choose)
    return host and host.listing(found)


def resolve(
    reference: str,
    base: str | None = None,
    licence: str | None = None,
    *,
    civitai_endpoint: str | None = None,
    permitted: bool = False,
    verify: bool = False,
    choose: Choose | None = None,
    inspect: Callable[["Source"], None] | None = None,
) -> Source:
    """The source that `reference` names, fetched if it is not here yet. Of a local file only the header is read.

    Args:
        reference: see :mod:`hswq_hub.sources.reference`.
        base: diffusers folder or Hub repo with the other components; None: the folder of the file, or the repo that
            it is from, if that is a diffusers one, else that of the model which its host says it was made from, else
            the base repo of the architecture.
        licence: Hub licence id, if its host names none.
        civitai_endpoint: where Civitai's API is; None: the site that the reference names.
        permitted: the user has the creator's permission where the listing has objections.
        verify: read a file that is in a cache again, in full.
        choose: whom to ask which of several models of a repo is meant; None: nobody, it is an error.
        inspect: is shown what is about to be fetched, as soon as its header is here, and may raise to stop it. The
            file has its size and its header by then, and nothing else. Not called for shards and what is here already.

    Raises:
        SourceError: no file came of it; its subclasses in :mod:`hswq_hub.sources.errors` say why.
        TargetError: the disk has no room for it.
        FormatError: the file is not a complete safetensors file, or does not fit its architecture.
        UnknownArchitectureError: its keys match no architecture that we know.
        AlreadyQuantizedError: it is not full precision.
    """
    found = parse(reference)
    if isinstance(found, DemoRef):
        return _demo(base)
    if isinstance(found, LocalRef):
        return _local(found, base, licence, verify)
    host = host_of(found, civitai_endpoint, choose)
    listing = host.listing(found)
    listing.check_permitted(permitted)

    def described(path: Path, digest: str | None) -> Source:
        checkpoint = _checked(path)
        named = base_named(checkpoint.architecture, listing.provenance.base_model)
        return Source(
            name=listing.name,
            path=path,
            base=find_base(checkpoint, base or listing.base or named),
            origin=listing.origin,
            licence=listing.licence or (Licence(licence) if licence else None),
            prompts=_general_prompts(),
            reference=listing.reference,
            provenance=listing.provenance,
            licence_text=listing.licence_text,
            digest=digest,
            asked=identify(reference),
        )

    def check_header(path: Path) -> None:
        found = described(path, listing.files[0].sha256 or _NOT_LISTED)
        if inspect is not None:
            inspect(found)

    return described(*host.fetch(listing, check_header, verify=verify))


def _demo(base: str | None) -> Source:
    data = files("hswq_hub.data") / "demo_model"
    path = Path(str(data / "demo.safetensors"))
    return Source(
        name=path.stem,
        path=path,
        base=find_base(_checked(path), base or str(data / "components")),
        origin="the demo model that ships with hswq-hub",
        licence=Licence("apache-2.0"),
        prompts=Prompts.read(data / "prompts"),
        reference=DEMO,
        asked=DEMO,
    )


def _local(reference: LocalRef, base: str | None, licence: str | None, verify: bool) -> Source:
    path, digest, kind, name = reference.path, None, "file", reference.path.stem
    if path.is_dir():
        place, kind, name = find_denoiser(path.resolve()), "folder", str(reference)
        base = base or whole_folder(place)
        weights = weights_of([file.name for file in place.iterdir()])
        path, digest = join(place / CONFIG, [place / file for file in weights], name, verify=verify)
    return Source(
        name=name,
        path=path,
        base=find_base(_checked(path), base),
        origin=f"the local {kind} {reference}",
        licence=Licence(licence) if licence else None,
        prompts=_general_prompts(),
        reference=str(reference),
        digest=digest,
        asked=os.path.realpath(reference.path),
    )


def host_of(reference: ModelRef, civitai_endpoint: str | None, choose: Choose | None) -> Civitai | Hub | None:
    """Who has it: something with `listing(reference)` and `fetch(listing, check_header)`."""
    if isinstance(reference, CivitaiRef):
        return Civitai.of(reference, civitai_endpoint)
    return Hub(choose) if isinstance(reference, HubRef) else None


def _checked(path: Path) -> Checkpoint:
    """The checkpoint, if it is one that can be quantized."""
    checkpoint = Checkpoint(path)
    checkpoint.require_full_precision()
    checkpoint.empty_model(constants=False)  # or an error that names what does not fit
    _ = checkpoint.scheduler  # one that is not supported is refused here, before anything costs time
    return checkpoint


def _general_prompts() -> Prompts:
    return Prompts.read(files("hswq_hub.data") / "prompts")


def _lines(file) -> tuple[str, ...]:
    return tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
