"""Choose the layers that multiply in FP8 on the tensor cores instead of expanding their weight first."""

import torch

from ..architectures import architecture_of
from ..errors import DeviceError
from . import fp8
from .modules import HSWQLinear

_MULTIPLE = 16
"""The hardware requires a weight's rows and columns to be multiples of this."""


def set_fp8_matmul(model: torch.nn.Module, enabled: bool = True) -> int:
    """Let the FP8 linear layers of `model` multiply in FP8, or (False) expand their weights again.

    Their inputs are then rounded to FP8 as well, with one scale per token: faster, but no longer exact. Layers that the
    architecture marks as sensitive, and those whose shape the hardware cannot multiply, stay exact. The stored weights
    do not change.

    Returns:
        the number of layers that multiply in FP8.

    Raises:
        DeviceError: the GPU of this machine is older than SM 8.9.
    """
    if enabled and torch.cuda.is_available() and not fp8.can_matmul(torch.device("cuda")):
        major, minor = torch.cuda.get_device_capability()
        raise DeviceError(
            f"{torch.cuda.get_device_name()} (SM {major}.{minor}) has no FP8 matrix product, which needs SM 8.9; "
            "load the model without fp8_matmul"
        )
    architecture = architecture_of(model)
    count = 0
    for name, layer in model.named_modules():
        if isinstance(layer, HSWQLinear):
            fits = layer.in_features % _MULTIPLE == 0 and layer.out_features % _MULTIPLE == 0
            sensitive = architecture is not None and architecture.is_sensitive(name.removeprefix("_orig_mod."))
            layer.fp8_matmul = enabled and fits and not sensitive
            count += layer.fp8_matmul
    return count
