"""A source: a full-precision checkpoint on this disk, and what is known of its origin."""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hswq_runtime.architectures import Architecture
from hswq_runtime.checkpoints.base import check_components, fetch_base
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.checkpoints.configuration import Configuration
from hswq_runtime.checkpoints.locate import HubOptions

from .licence import Licence
from .listing import Provenance
from .permissions import Permissions
from .prompts.choose import Offered, choose
from .prompts.given import GivenPrompts
from .prompts.prompts import Prompts

NOT_LISTED = "0" * 64
"""Stands for a SHA-256 that is not known yet; no file has this one."""


@dataclass(frozen=True)
class Source:
    """A full-precision checkpoint and its origin. No field is computed lazily: reading one does no I/O."""

    name: str
    """The stem of published files' names: `<name>-hswq-v1.safetensors`."""
    path: Path
    checkpoint: Checkpoint = field(repr=False, compare=False)
    """The file's header, already read."""
    sha256: str
    """Hex digest of the whole file, or `NOT_LISTED`."""
    base: str
    """diffusers folder or Hub repo of the other components."""
    origin: str
    """Where the file comes from, one phrase for the card without a path of this machine."""
    licence: Licence | None
    """None if none is stated."""
    prompts: Prompts
    reference: str
    """The reference in its short form, without a path of this machine or a secret."""
    provenance: Provenance = field(default_factory=Provenance)
    licence_text: str | None = None
    """The licence text that comes with it, whether or not a licence is stated."""
    asked: str = ""
    """What was asked for, as :func:`hswq_hub.sources.reference.identify` spells it."""
    offered: Offered = field(default_factory=Offered)
    """The prompts that the model brings."""
    vae: dict[str, Any] = field(default_factory=dict, repr=False)
    """The configuration of the base's VAE; empty if it states none, or cannot be reached."""

    @property
    def architecture(self) -> Architecture:
        """The row of its architecture, with the facts of the variant that `base` belongs to."""
        return self.checkpoint.architecture.with_base(self.base)

    @property
    def hub_base(self) -> str | None:
        """The Hub repo of the other components; None if they come from a folder of this machine."""
        return None if Path(self.base).is_dir() else self.base

    def with_prompts(self, given: GivenPrompts) -> "Source":
        """The same with the prompts that a user gave, or those of the model.

        Raises:
            PromptsError: see :func:`hswq_hub.sources.prompts.choose.choose`.
        """
        return replace(self, prompts=choose(self.offered, given))

    def negative_prompt(self, guidance: float | None = None) -> str | None:
        """The negative prompt for pictures with this guidance scale (None: the default one): that of the model's page;
        None if there is none, or if the model takes none at that scale.
        """
        takes = self.architecture.takes_negative_prompt and self.architecture.passes(guidance) > 1
        return self.prompts.negative if takes else None

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON values, of the checkpoint the configuration that its base states."""
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("checkpoint", "sha256", "path")}
        facts |= {name: asdict(facts[name]) for name in ("prompts", "provenance", "offered")}
        facts["licence"] = self.licence and asdict(self.licence)
        facts["stated"] = self.checkpoint.stated and asdict(self.checkpoint.stated)
        return facts | {"path": str(self.path), "digest": self.sha256}

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> "Source":
        """The inverse of :meth:`as_dict`; the file's header is read.

        Raises:
            FormatError: the file is no safetensors file any more.
            KeyError, TypeError: another release wrote `facts`.
        """
        provenance, licence = dict(facts["provenance"]), facts["licence"]
        if (said := provenance["permissions"]) is not None:
            uses = said["commercial_use"]
            provenance["permissions"] = Permissions(**said | {"commercial_use": uses if uses is None else tuple(uses)})
        path, stated = Path(facts["path"]), facts["stated"]
        rest = {name: value for name, value in facts.items() if name not in ("path", "digest", "stated")}
        return cls(
            **rest
            | {
                "path": path,
                "checkpoint": Checkpoint(path, stated=stated and Configuration(**stated)),
                "sha256": facts["digest"],
                "licence": licence and Licence(**licence),
                "prompts": Prompts.from_dict(facts["prompts"]),
                "offered": Offered.from_dict(facts["offered"]),
                "provenance": Provenance(**provenance),
            }
        )

    def check_components(self, hub: HubOptions | None = None) -> None:
        """Check that the base has all components besides the denoiser. hub: how it is asked, if it is there.

        Raises:
            ComponentError: names what is missing.
            FormatError: a base on the Hub may not be read, or cannot be reached.
        """
        check_components(self.checkpoint, self.base, hub=hub)

    def fetch_components(self) -> None:
        """Fetch the other components, if they are in a Hub repo; that repo's denoiser is not fetched.

        Raises:
            ComponentError: names what is missing.
            FormatError: they do not arrive.
        """
        self.check_components()
        if self.hub_base is not None:
            fetch_base(self.checkpoint, self.hub_base)
