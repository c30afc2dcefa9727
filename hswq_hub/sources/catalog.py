"""The models that HSWQ was published for: data, in `catalog.yaml`."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Reported:
    """Figures that upstream reports. Its SSIM is another one than ours: quote them, never compare with them."""

    latent_mse: float
    ssim: float
    naive_ssim: float


@dataclass(frozen=True)
class Entry:
    """One model: its ids on Civitai, and the figures that upstream reports."""

    name: str
    model: int
    version: int
    """Ids on Civitai."""
    release: str
    """What its creator calls that version."""
    architecture: str
    licence: str
    """Hub licence id."""
    keep_ratio: float
    """The share of layers that upstream kept in full precision."""
    reported: Reported

    @property
    def reference(self) -> str:
        """The short form of a reference to it."""
        return f"civitai:{self.model}@{self.version}"

    @property
    def url(self) -> str:
        """Its page."""
        return f"https://civitai.com/models/{self.model}?modelVersionId={self.version}"


@cache
def catalog() -> dict[str, Entry]:
    """All entries, by lower-case name."""
    import yaml  # here, because references are read where help must stay quick

    text = (files("hswq_hub.data") / "catalog.yaml").read_text(encoding="utf-8")
    entries = [Entry(**row | {"reported": Reported(**row["reported"])}) for row in yaml.safe_load(text)]
    return {entry.name.casefold(): entry for entry in entries}


def entry_of(reference: str | None) -> Entry | None:
    """The entry with this reference (its short form), None if there is none."""
    return next((entry for entry in catalog().values() if entry.reference == reference), None)
