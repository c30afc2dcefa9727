"""Run HSWQ FP8 models with diffusers.

    from hswq_runtime import HSWQPipeline
    pipe = HSWQPipeline.from_pretrained("folder-or-file")

Importing this package is cheap: torch and diffusers are loaded when a name that needs them is used.
"""

from importlib import import_module

_HOMES = {
    "Checkpoint": "checkpoint",
    "Format": "formats",
    "HSWQConv2d": "layers",
    "HSWQError": "errors",
    "HSWQLinear": "layers",
    "HSWQPipeline": "pipeline",
    "dequantize_": "layers",
    "load_model": "loading",
    "weight_bytes": "layers",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
