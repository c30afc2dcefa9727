"""What is kept on this machine, and what can go: downloads and the products of steps."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..sources.http import cache
from ..sources.http.cache import Cached
from .workspace import Product, Workspace


@dataclass(frozen=True)
class Kept:
    """downloads: models and unfinished downloads. products: what steps left in workspaces. The largest first."""

    downloads: list[Cached]
    products: list[Product]


def kept() -> Kept:
    """Everything that is kept."""
    products = [product for workspace in Workspace.existing() for product in workspace.products()]
    return Kept(cache.contents(), sorted(products, key=lambda product: -product.bytes))


def prune(older_than: float) -> Kept:
    """Remove what nobody used for `older_than` days, and products that no target needs any more; returns what went.

    What a run is using stays: the workspace that it works in, and the file that it works on.
    """
    products: list[Product] = []
    sources_in_use: set[Path] = set()
    with ExitStack() as stack:  # a run that begins now waits until all is done
        for workspace in Workspace.existing():
            if not stack.enter_context(workspace.locked_if_free()):
                if (note := workspace.note()) is not None:
                    sources_in_use.add(Path(note["source"]["path"]))
                continue
            old = [p for p in workspace.products() if not p.needed or p.days >= older_than]
            workspace.remove(old)
            products += old
        downloads = cache.prune(older_than, keep=sources_in_use)
    return Kept(downloads, products)
