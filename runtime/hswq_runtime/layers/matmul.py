"""Choose the layers that multiply in FP8 on the tensor cores instead of expanding their weight first."""

import torch

from ..architectures import architecture_of
from ..errors import DeviceError, FullPrecisionError
from ..formats import Reader
from . import fp8
from .modules import HSWQLinear


def set_fp8_matmul(model: torch.nn.Module, enabled: bool = True, *, reader: Reader = Reader.HSWQ) -> int:
    """Let the FP8 linear layers of `model` multiply in FP8, or (False) expand their weights again.

    Their inputs are then rounded to FP8 as well: faster, but no longer exact. Layers that the file marks for full
    precision stay exact. The stored weights do not change.

    By `reader`:

    - HSWQ: inputs are rounded with the file's `input_scale`, else with one scale per token. Layers that the
      architecture marks as sensitive, and those whose shape the hardware cannot multiply, stay exact.
    - COMFYUI: what stock ComfyUI computes from the same file on a GPU with FP8 arithmetic, simulated on any device.
      Inputs are rounded with the file's `input_scale`, or 1. Layers whose shape the hardware cannot
      multiply, and those with one scale a row, round their input and expand their weight. Layers on which a LoRA is on
      are exact. Weights are expanded as there: `weight · scale` in the compute dtype, with the scale in it as well. A
      folded file has to be loaded as it is stored, from `Checkpoint(file, unfold=False)`.

    Args:
        reader: whose arithmetic; without meaning for `enabled=False`.

    Returns:
        the number of layers that round their inputs.

    Raises:
        DeviceError: HSWQ, and the GPU is older than SM 8.9.
        FullPrecisionError: HSWQ, and the file marks every FP8 linear layer for full precision.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, HSWQLinear)}
    if enabled:
        if reader is Reader.HSWQ:
            _check_device()
        if layers and reader is Reader.HSWQ and all(layer.exact for layer in layers.values()):
            raise FullPrecisionError(
                "the file wants every FP8 layer multiplied in full precision: load the model without fp8_matmul, or "
                "quantize its source with `hswq-hub quantize --speed`"
            )
    architecture = architecture_of(model)
    for name, layer in layers.items():
        layer.reader = reader if enabled else Reader.HSWQ
        layer.fp8_matmul = enabled and not layer.exact
        if layer.fp8_matmul and reader is Reader.HSWQ:
            sensitive = architecture is not None and architecture.is_sensitive(name.removeprefix("_orig_mod."))
            layer.fp8_matmul = not sensitive and fp8.fits(layer.weight)
    return sum(layer.fp8_matmul for layer in layers.values())


def _check_device() -> None:
    """Check that the GPU of this machine, if there is one, multiplies in FP8.

    Raises:
        DeviceError: it is older than SM 8.9.
    """
    if torch.cuda.is_available() and not fp8.can_matmul(torch.device("cuda")):
        major, minor = torch.cuda.get_device_capability()
        raise DeviceError(
            f"{torch.cuda.get_device_name()} (SM {major}.{minor}) has no FP8 matrix product, which needs SM 8.9; "
            "load the model without fp8_matmul"
        )
