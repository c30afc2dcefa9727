"""Memory whose alignment changes no bit of a product.

On some CPUs the BLAS library chooses its kernel by where a matrix begins, and the kernels add in different orders.
Tensors that are mapped from a file begin wherever its header ends, so the same weights in two files would give two
results.
"""

import torch
from torch import nn

ALIGNMENT = 64
"""Bytes; where torch begins every tensor that it allocates on a CPU."""


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, or a copy of it if it is on the CPU and does not begin at a multiple of `ALIGNMENT` bytes."""
    return tensor if tensor.device.type != "cpu" or tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def align_(model: nn.Module) -> None:
    """Make every parameter of `model` aligned, in place, but for those of one byte, which are expanded to compute."""
    for parameter in model.parameters():
        if parameter.dtype.itemsize > 1:
            parameter.data = aligned(parameter.data)
