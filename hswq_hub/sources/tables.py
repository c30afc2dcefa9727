"""Listings, the catalog and the cache as people read them on a terminal."""

from collections.abc import Iterable

from ..report import megabytes
from .cache import Cached
from .catalog import Entry
from .listing import Listing

CATALOG_HEADINGS = ("name", "Civitai", "version", "licence", "keep", "MSE", "SSIM", "naive SSIM")
CACHE_HEADINGS = ("file", "SHA-256", "size", "days unused")
UNFINISHED = "unfinished"


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


def listing_lines(listing: Listing | None, base: str | None) -> list[str]:
    """What would be fetched, its size, its licence and what its creator allows."""
    if listing is None:
        return ["nothing to fetch: it is on this machine"]
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
    lines = [f"{listing.reference}", *(f"  {name:<12}{value}" for name, value in facts.items() if value)]
    for file in listing.files:
        size = megabytes(file.size) if file.size is not None else "size not listed"
        lines.append(f"  {'file':<12}{file.name}, {size}, SHA-256 {file.sha256 or 'not listed'}")
    lines.append(f"  {'in all':<12}{megabytes(listing.size) if listing.size is not None else 'size not listed'}")
    if found.permissions is not None:
        lines += [f"  {'permissions' if i == 0 else '':<12}{line}" for i, line in enumerate(found.permissions.lines())]
    lines += [f"  {'refused':<12}{objection} (--i-have-permission)" for objection in listing.objections]
    others = base or listing.base or "of the base repo of the architecture, which the file's header shows"
    return [*lines, f"  {'components':<12}{others}"]


def _link(listing: Listing) -> str | None:
    return listing.licence.link if listing.licence else None
