"""One folder a model for the products of the steps, each named by what it was made from.

The name of a product holds a digest of everything that decides its content. So a product that exists is the right
one, a changed setting makes a new one, and a run that was killed goes on where it stopped.
"""

import hashlib
import json
import os
from pathlib import Path

import hswq_hub
import hswq_runtime

HOME_VARIABLE = "HSWQ_HOME"


def home() -> Path:
    """Where work and caches are kept: $HSWQ_HOME, or ~/.cache/hswq-hub."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".cache" / "hswq-hub")


def fingerprint(made_from) -> str:
    """Twelve hex digits of the SHA-256 of `made_from` as canonical JSON."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]


def code_digest() -> str:
    """Twelve hex digits of the project's own source: a product of other code is another product."""
    digest = hashlib.sha256()
    for package in (hswq_hub, hswq_runtime):
        for path in sorted(Path(package.__file__).parent.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Workspace:
    """The products of one source."""

    def __init__(self, name: str, source_sha256: str):
        self.folder = home() / "work" / f"{name}-{source_sha256[:12]}"

    def product(self, step: str, made_from, name: str) -> Path:
        """Where the product `name` of `step` made from `made_from` is, or will be."""
        return self.folder / f"{step}-{fingerprint(made_from)}" / name
