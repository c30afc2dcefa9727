"""Choose the layers that multiply in FP8 or INT8 on the tensor cores instead of expanding their weight first."""

from collections.abc import Collection

import torch

from ..architectures import architecture_of
from ..errors import DeviceError, FullPrecisionError
from ..formats import Number, Reader
from . import fp8
from .modules import HSWQLinear
from .numbers import NUMBERS


def set_quantized_matmul(model: torch.nn.Module, enabled: bool = True, *, reader: Reader = Reader.HSWQ) -> int:
    """Let the quantized linear layers of `model` multiply in FP8 or INT8, whichever their weight is, or (False) expand
    their weights again.

    Their inputs are then rounded as well: faster, but no longer exact. Layers that the file marks for full precision
    stay exact. The stored weights do not change. Inputs of INT8 layers are rotated if the weight is, and rounded with
    one scale per token.

    By `reader`:

    - HSWQ: inputs of FP8 layers are rounded with the file's `input_scale`, else with one scale per token. Layers that
      the architecture marks as sensitive, and those whose shape the hardware cannot multiply, stay exact.
    - COMFYUI: what stock ComfyUI computes from the same file on a GPU with such arithmetic, simulated on any device.
      Inputs of FP8 layers are rounded with the file's `input_scale`, or 1. Layers whose shape the hardware cannot
      multiply, and those with one scale a row, round their input and expand their weight. Layers on which a LoRA is on
      are exact. Weights are expanded as there: `weight · scale` in the compute dtype, with the scale in it as well. A
      folded file has to be loaded as it is stored, from `Checkpoint(file, unfold=False)`.

    Args:
        reader: whose arithmetic; without meaning for `enabled=False`.

    Returns:
        the number of layers that round their inputs.

    Raises:
        DeviceError: HSWQ, and the GPU is older than SM 8.9, or than SM 7.5 if all layers are INT8.
        FullPrecisionError: HSWQ, and the file marks every quantized linear layer for full precision.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, HSWQLinear)}
    if enabled:
        if reader is Reader.HSWQ:
            _check_device({layer.number for layer in layers.values()})
        if layers and reader is Reader.HSWQ and all(layer.exact for layer in layers.values()):
            raise FullPrecisionError(
                "the file wants every quantized layer multiplied in full precision: load the model without "
                "quantized_matmul, or quantize its source with `hswq-hub quantize --speed`"
            )
    architecture = architecture_of(model)
    for name, layer in layers.items():
        layer.reader = reader if enabled else Reader.HSWQ
        layer.quantized_matmul = enabled and not layer.exact
        if layer.quantized_matmul and reader is Reader.HSWQ:
            sensitive = architecture is not None and architecture.is_sensitive(name.removeprefix("_orig_mod."))
            layer.quantized_matmul = not sensitive and fp8.fits(layer.weight)
    return sum(layer.quantized_matmul for layer in layers.values())


def _check_device(numbers: Collection[Number]) -> None:
    """Check that the GPU of this machine, if there is one, multiplies in these number formats.

    Raises:
        DeviceError: it is too old for one of them.
    """
    if not torch.cuda.is_available():
        return
    for number in sorted(numbers):
        if not NUMBERS[number].can_multiply(torch.device("cuda")):
            (major, minor), needed = torch.cuda.get_device_capability(), "{}.{}".format(*NUMBERS[number].since)
            raise DeviceError(
                f"{torch.cuda.get_device_name()} (SM {major}.{minor}) has no {number.name} matrix product, which needs "
                f"SM {needed}; load the model without quantized_matmul"
            )
