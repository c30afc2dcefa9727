"""Listings, the catalog and the cache as people read them on a terminal."""

from collections.abc import Iterable
from pathlib import Path

from hswq_runtime.text import shown

from ..common.text import megabytes, text_table
from ..sources.catalog import Entry
from ..sources.find import Components, Found
from ..sources.http.cache import Cached
from ..sources.listing import Listing
from ..workflow.collect import Kept
from ..workflow.workspace import Product

CATALOG_HEADINGS = ("name", "Civitai", "version", "licence", "keep", "MSE", "SSIM", "naive SSIM")
CACHE_HEADINGS = ("file", "SHA-256", "size", "days unused")
PRODUCT_HEADINGS = ("model", "product", "size", "days unused", "needed")
UNFINISHED = "unfinished"
_SHOWN = 160
"""Characters of what a host says of a model."""


def catalog_table(entries: Iterable[Entry]) -> list[tuple[str, ...]]:
    """A row for each model, under `CATALOG_HEADINGS`. The figures are upstream's, by its own protocol."""
    return [
        (
            entry.name,
            f"{entry.model}@{entry.version}",
            entry.release,
            entry.licence,
            f"{entry.keep_ratio:g}",
            f"{entry.reported.latent_mse:.4f}",
            f"{entry.reported.ssim:.4f}",
            f"{entry.reported.naive_ssim:.4f}",
        )
        for entry in entries
    ]


def cache_table(entries: Iterable[Cached]) -> list[tuple[str, ...]]:
    """A row for each file, under `CACHE_HEADINGS`."""
    return [
        (entry.name, entry.sha256[:12] if entry.sha256 else UNFINISHED, megabytes(entry.size), f"{entry.days:.0f}")
        for entry in entries
    ]


def kept_lines(kept: Kept) -> list[str]:
    """Downloads and products in two tables; one that would be empty is left out."""
    tables = []
    if kept.downloads or not kept.products:
        tables.append(text_table(CACHE_HEADINGS, cache_table(kept.downloads)))
    if kept.products:
        tables.append(text_table(PRODUCT_HEADINGS, product_table(kept.products), left=("product", "needed")))
    return "\n\n".join(tables).splitlines()


def product_table(products: Iterable[Product]) -> list[tuple[str, ...]]:
    """A row for each product of a step, under `PRODUCT_HEADINGS`."""
    return [(p.workspace, p.name, megabytes(p.bytes), f"{p.days:.0f}", "yes" if p.needed else "no") for p in products]


def found_lines(found: Found) -> list[str]:
    """What would be fetched, its size, its licence and what its creator allows, unless the user says to have more."""
    components = found.components()
    if found.listing is None:
        lines = ["the model is on this machine", f"  {'licence':<12}{shown(components.licence or 'not stated')}"]
    else:
        lines = _listing_lines(found.listing, found.settings.permitted)
    return [*lines, f"  {'components':<12}{_components(components)}"]


def _components(found: Components) -> str:
    if found.base is None:
        return "of the base repo of the architecture, which the file's header shows"
    if Path(found.base).is_dir():
        return f"of {found.base}, on this machine"
    size = f"size not known: {found.unknown}" if found.bytes is None else megabytes(found.bytes)
    return (
        f"of the base repo {shown(found.base)}{' (by its name; the header decides)' if found.is_guess else ''}, {size}"
    )


def _listing_lines(listing: Listing, permitted: bool) -> list[str]:
    found = listing.provenance
    facts = {
        "model": listing.origin,
        "page": found.url,
        "creator": found.creator,
        "base model": found.base_model,
        "licence": f"{listing.licence or 'not stated'}" + (f", {link}" if (link := _link(listing)) else ""),
        "gated": found.gated,
        "for adults": "yes" if found.nsfw else None,
    }
    lines = [
        shown(listing.reference),
        *(f"  {name:<12}{shown(value, _SHOWN)}" for name, value in facts.items() if value),
    ]
    for file in listing.files:
        size = megabytes(file.size) if file.size is not None else "size not listed"
        lines.append(f"  {'file':<12}{shown(file.name)}, {size}, SHA-256 {file.sha256 or 'not listed'}")
    lines.append(f"  {'in all':<12}{megabytes(listing.size) if listing.size is not None else 'size not listed'}")
    if found.permissions is not None:
        lines += [f"  {'permissions' if i == 0 else '':<12}{line}" for i, line in enumerate(found.permissions.lines())]
    if permitted:
        return lines + [f"  {'permitted':<12}{objection}, but you have permission" for objection in listing.objections]
    return lines + [f"  {'refused':<12}{objection} (--i-have-permission)" for objection in listing.objections]


def _link(listing: Listing) -> str | None:
    return listing.licence.link if listing.licence else None
