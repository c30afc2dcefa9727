"""A look at what a reference leads to, without fetching more than its header."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .diffusers_folder import CONFIG, find_denoiser, joined_header, weights_of
from .http.header import stand_in
from .huggingface import Choose
from .listing import Listing
from .reference import LocalRef, parse
from .source import host_of, resolve


@contextmanager
def peek(
    reference: str, civitai_endpoint: str | None = None, choose: Choose | None = None
) -> Iterator[tuple[Path, Listing | None]]:
    """The file that `reference` leads to, and its listing, None for what is on this machine already.

    Of what is elsewhere, and of shards, it is a stand-in that has the header and the size and is a hole otherwise.

    Raises:
        SourceError: see :func:`hswq_hub.sources.resolve`.
        FormatError: it has no header of a safetensors file.
    """
    found = parse(reference)
    host = host_of(found, civitai_endpoint, choose)
    if host is not None:
        listing = host.listing(found)
        with stand_in(host.header(listing), f"{listing.name}.safetensors") as path:
            yield path, listing
    elif isinstance(found, LocalRef) and found.path.is_dir():
        place = find_denoiser(found.path.resolve())
        weights = [place / name for name in weights_of([path.name for path in place.iterdir()])]
        with stand_in(joined_header(place / CONFIG, weights), f"{found}.safetensors") as path:
            yield path, None
    else:
        yield found.path if isinstance(found, LocalRef) else resolve(reference).path, None
