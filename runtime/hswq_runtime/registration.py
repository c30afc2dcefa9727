"""Register HSWQ with diffusers and PEFT as soon as they are imported.

Both keep their registries in plain dictionaries and functions, without a public way to add to them. `quantizer.py`,
`lora.py` and `fusing.py` add their entries when they are imported. A post-import hook imports them together with the
module that holds the registry, so importing this package stays cheap.
"""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import wrapt


def register() -> None:
    """Add the entries as soon as the libraries are imported, or now if they are."""
    for ours, theirs in (
        ("quantizer", "diffusers.quantizers.auto"),
        ("layers.lora", "peft.tuners.lora.model"),
        ("layers.fusing", "diffusers.loaders.peft"),
    ):
        wrapt.register_post_import_hook(_importer(ours), theirs)


def _importer(name: str) -> Callable[[ModuleType], None]:
    def run(_module: ModuleType) -> None:
        import_module(f"{__package__}.{name}")

    return run
