"""The models that HSWQ was published for: data, in `catalog.yaml`."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Reported:
    """Figures of upstream, by its own protocol (another SSIM than ours): to quote, never to compare with."""

    latent_mse: float
    ssim: float
    naive_ssim: float


@dataclass(frozen=True)
class Entry:
    """One model: where it is, and what upstream says of it."""

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
    """The share of layers that upstream kept."""
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
    """All entries by their names in lower case."""
    import yaml  # here, because references are read where help must stay quick

    text = (files("hswq_hub.data") / "catalog.yaml").read_text(encoding="utf-8")
    entries = [Entry(**row | {"reported": Reported(**row["reported"])}) for row in yaml.safe_load(text)]
    return {entry.name.casefold(): entry for entry in entries}


def entry_of(reference: str | None) -> Entry | None:
    """The entry that a reference in its short form leads to."""
    return next((entry for entry in catalog().values() if entry.reference == reference), None)
