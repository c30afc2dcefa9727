"""What a product depends on besides its inputs: our code, the libraries, the hardware."""

import hashlib
import json
import platform
from functools import cache
from pathlib import Path

import torch

import hswq_hub
import hswq_runtime

from .hardware import describe


def fingerprint(made_from) -> str:
    """Twelve hex digits of the SHA-256 of `made_from` as canonical JSON."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]


@cache
def code_digest() -> str:
    """Twelve hex digits of the project's own source: a product of other code is another product."""
    digest = hashlib.sha256()
    for package in (hswq_hub, hswq_runtime):
        for path in sorted(Path(package.__file__).parent.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def environment_fingerprint(device: str) -> list:
    """What a computed product depends on besides its inputs: our code, the libraries, the hardware."""
    return [code_digest(), versions(), describe(torch.device(device))]


def versions() -> dict[str, str]:
    """Versions of everything that a figure depends on."""
    import diffusers
    import transformers

    from .. import __version__

    return {
        "hswq-hub": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
