"""Facts of a source for the record of a published folder. Unknown facts are left out."""

from dataclasses import asdict
from importlib.resources import files
from typing import Any

from ..sources.licence import Licence
from ..sources.source import Source

_LICENCE_TEXTS = ("apache-2.0",)


def source_facts(source: Source) -> dict[str, Any]:
    """Origin, file, digest, and all that the source's host said."""
    found = source.provenance
    said = {name: value for name, value in asdict(found).items() if value not in (None, False)}
    if found.permissions is not None:
        said["permission_lines"] = found.permissions.lines()
    if source.checkpoint.has_diffusers_layout:
        said["layout"] = "diffusers"
    return {
        "origin": source.origin,
        "reference": source.reference,
        "file": source.path.name,
        "sha256": source.sha256,
        **said,
    }


def licence_facts(licence: Licence | None) -> dict[str, Any]:
    """The Hub's licence fields, under the names that the record gives them."""
    facts: dict[str, Any] = {"licence": licence.id if licence else None}
    if licence and licence.name:
        facts["licence_name"] = licence.name
    if licence and licence.link:
        facts["licence_link"] = licence.link
    return facts


def licence_text(licence: Licence | None, shipped: str | None = None) -> str | None:
    """The text that was shipped with the source, or one that ships with us; None if there is neither."""
    if shipped is not None:
        return shipped
    if licence is None or licence.id not in _LICENCE_TEXTS:
        return None
    return (files("hswq_hub.cards") / "licences" / f"{licence.id}.txt").read_text(encoding="utf-8")
