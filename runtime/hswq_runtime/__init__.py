"""Run HSWQ FP8 models with diffusers.

    from hswq_runtime import HSWQPipeline
    pipe = HSWQPipeline.from_pretrained("folder-or-file")

Importing this package registers :class:`HSWQConfig` with diffusers, and with PEFT the layers that fuse a LoRA into FP8
weights. It is cheap: torch and diffusers are loaded when a name that needs them is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .registration import register

if TYPE_CHECKING:
    from .checkpoints.checkpoint import Checkpoint
    from .errors import (
        AlreadyQuantizedError,
        ComponentError,
        DeviceError,
        FormatError,
        FullPrecisionError,
        HSWQError,
        UnknownArchitectureError,
    )
    from .formats import Format, Reader
    from .layers.matmul import set_quantized_matmul
    from .layers.modules import HSWQConv2d, HSWQLinear, dequantize_, weight_bytes
    from .loading import load_model
    from .pipeline import HSWQPipeline
    from .quantizer import HSWQConfig, HSWQQuantizer

__all__ = [
    "AlreadyQuantizedError",
    "Checkpoint",
    "ComponentError",
    "DeviceError",
    "Format",
    "FormatError",
    "FullPrecisionError",
    "HSWQConfig",
    "HSWQConv2d",
    "HSWQError",
    "HSWQLinear",
    "HSWQPipeline",
    "HSWQQuantizer",
    "Reader",
    "UnknownArchitectureError",
    "dequantize_",
    "load_model",
    "set_quantized_matmul",
    "weight_bytes",
]

_MODULES = {
    "AlreadyQuantizedError": "errors",
    "Checkpoint": "checkpoints.checkpoint",
    "ComponentError": "errors",
    "DeviceError": "errors",
    "Format": "formats",
    "FormatError": "errors",
    "FullPrecisionError": "errors",
    "HSWQConfig": "quantizer",
    "HSWQConv2d": "layers.modules",
    "HSWQError": "errors",
    "HSWQLinear": "layers.modules",
    "HSWQPipeline": "pipeline",
    "HSWQQuantizer": "quantizer",
    "Reader": "formats",
    "UnknownArchitectureError": "errors",
    "dequantize_": "layers.modules",
    "load_model": "loading",
    "set_quantized_matmul": "layers.matmul",
    "weight_bytes": "layers.modules",
}
"""The module of each public name; it is imported when the name is first used."""

register()


if not TYPE_CHECKING:  # a type checker reads the imports above, and reports other names

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
