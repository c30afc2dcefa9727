"""Choose the layers that multiply in FP8 on the tensor cores instead of expanding their weight first."""

from collections.abc import Collection

import torch

from ..architectures import architecture_of
from ..errors import DeviceError, HSWQError
from ..formats import Reader
from . import fp8
from .modules import HSWQLinear

_BEHIND_LORA = ".base_layer"
"""How the name of a layer ends that PEFT has put an adapter around."""


def set_fp8_matmul(model: torch.nn.Module, enabled: bool = True, *, reader: Reader = Reader.HSWQ) -> int:
    """Let the FP8 linear layers of `model` multiply in FP8, or (False) expand their weights again.

    Their inputs are then rounded to FP8 as well, at the scale that the file has for them, or else with one scale a
    token: faster, but no longer exact. Layers that the file wants exact, that the architecture marks as sensitive, or
    whose shape the hardware cannot multiply, stay exact. The stored weights do not change.

    Args:
        reader: COMFYUI: every bit as ComfyUI computes it on a GPU with FP8 arithmetic, on any device. There only
            layers that the file wants exact, or that a LoRA is on, are exact; without a scale it takes 1.

    Returns:
        the number of layers that multiply in FP8.

    Raises:
        DeviceError: the GPU of this machine is older than SM 8.9.
        HSWQError: the file wants all of its layers exact.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, HSWQLinear)}
    if enabled and reader is Reader.HSWQ:
        _check_possible(layers.values())
    architecture = architecture_of(model)
    for name, layer in layers.items():
        layer.reader, layer.fp8_matmul = (reader if enabled else Reader.HSWQ), enabled and not layer.exact
        if reader is Reader.COMFYUI:
            layer.fp8_matmul &= not name.endswith(_BEHIND_LORA)
            continue
        fits = layer.in_features % fp8.MULTIPLE == 0 and layer.out_features % fp8.MULTIPLE == 0
        sensitive = architecture is not None and architecture.is_sensitive(name.removeprefix("_orig_mod."))
        layer.fp8_matmul &= fits and not sensitive
    return sum(layer.fp8_matmul for layer in layers.values())


def _check_possible(layers: Collection[HSWQLinear]) -> None:
    if torch.cuda.is_available() and not fp8.can_matmul(torch.device("cuda")):
        major, minor = torch.cuda.get_device_capability()
        raise DeviceError(
            f"{torch.cuda.get_device_name()} (SM {major}.{minor}) has no FP8 matrix product, which needs SM 8.9; "
            "load the model without fp8_matmul"
        )
    if layers and all(layer.exact for layer in layers):
        raise HSWQError(
            "the file wants exact products in all of its layers; load it without fp8_matmul, or quantize it again with "
            "--speed"
        )
