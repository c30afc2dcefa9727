"""The values of a source's weights: none may be NaN or infinity, and weights of nothing but zeros are worth a word."""

import math

import torch

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import FormatError
from hswq_runtime.formats import FULL_PRECISION
from hswq_runtime.text import several

from ..common.prefetch import prefetched
from ..common.progress import progress


def empty_weights(checkpoint: Checkpoint) -> list[str]:
    """Keys of the weights of layers that are all zeros, in file order.

    It reads every full-precision tensor of the denoiser once: as long as reading the file takes, with two tensors in
    memory at most.

    Raises:
        FormatError: a tensor holds NaN or infinity; the message names the first few and says how many there are.
    """
    keys = [key for key, info in checkpoint.denoiser_tensors.items() if info.dtype in FULL_PRECISION]

    def extremes(key: str) -> tuple[str, float, float]:
        low, high = torch.aminmax(checkpoint.tensor(key))  # both are NaN if one value is
        return key, float(low), float(high)

    bad, empty = [], []
    for key, low, high in progress(prefetched(keys, extremes), total=len(keys), desc="check weights", unit="tensor"):
        if not (math.isfinite(low) and math.isfinite(high)):
            bad.append(key)
        elif low == high == 0 and key in checkpoint.layers:
            empty.append(key)
    if bad:
        named = several(bad)
        raise FormatError(f"{checkpoint.path} is damaged: NaN or infinity in {named}; fetch the model again")
    return empty
