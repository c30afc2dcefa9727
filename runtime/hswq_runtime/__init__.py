"""Run HSWQ FP8 models with diffusers.

    from hswq_runtime import HSWQPipeline
    pipe = HSWQPipeline.from_pretrained("folder-or-file")

Importing it makes diffusers know :class:`HSWQConfig`, and PEFT how to fuse a LoRA into FP8 layers. It is cheap:
torch and diffusers are loaded when a name that needs them is used.
"""

from importlib import import_module

from .registration import register

_HOMES = {
    "Checkpoint": "checkpoints.checkpoint",
    "Format": "formats",
    "HSWQConfig": "quantizer",
    "HSWQConv2d": "layers.modules",
    "HSWQError": "errors",
    "HSWQLinear": "layers.modules",
    "HSWQPipeline": "pipeline",
    "HSWQQuantizer": "quantizer",
    "dequantize_": "layers.modules",
    "load_model": "loading",
    "set_fp8_matmul": "layers.matmul",
    "weight_bytes": "layers.modules",
}

__all__ = sorted(_HOMES)

register()


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
