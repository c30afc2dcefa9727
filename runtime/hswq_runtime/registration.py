"""Make diffusers and PEFT know HSWQ, once they are imported.

Both keep their registries in plain dictionaries and functions without a way to add to them from outside.
`quantizer.py`, `lora.py` and `fusing.py` put their entries there when they are imported, and that happens when the
module that holds the registry is: so importing this package stays cheap.
"""

from importlib import import_module

import wrapt


def register() -> None:
    """Add the entries now, or as soon as the libraries are imported."""
    for ours, theirs in (
        ("quantizer", "diffusers.quantizers.auto"),
        ("layers.lora", "peft.tuners.lora.model"),
        ("layers.fusing", "diffusers.loaders.peft"),
    ):
        wrapt.register_post_import_hook(_importer(ours), theirs)


def _importer(name: str):
    def run(_module) -> None:
        import_module(f"{__package__}.{name}")

    return run
