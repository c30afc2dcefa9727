"""From a checkpoint file, quantized or not, to the diffusers model that it describes.

The model is built on the meta device, its quantized layers are exchanged for FP8 ones, and the file's tensors
are put in their places. Nothing is left over and nothing is missing, or loading fails and names it.
"""

from pathlib import Path

import torch

from . import formats
from .checkpoint import Checkpoint, Piece
from .errors import FormatError
from .layers import SCALE_BUFFER, dequantize_, quantized_twin

_TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_model(
    checkpoint: Checkpoint | str | Path, dtype: torch.dtype | None = None, *, dequantize: bool = False
) -> torch.nn.Module:
    """The diffusers model of a HSWQ V1, V2, plain FP8 or full-precision checkpoint, on the CPU, in eval mode.

    Args:
        checkpoint: the file, or its opened view.
        dtype: what the model computes in, and the dtype of everything that is not FP8. None: the dtype
            that most of the file's unquantized values have.
        dequantize: give the plain model with `weight · scale` in `dtype` instead of FP8 layers.

    Raises:
        FormatError: missing, unexpected or wrongly shaped keys, all of them named; a bad scale.
        UnknownArchitectureError: see :class:`Checkpoint`.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    dtype = dtype or _own_dtype(checkpoint)
    model = checkpoint.empty_model()
    checkpoint.check_fits(model)

    state = {}
    for name, pieces in checkpoint.parameters.items():
        weight = checkpoint.quantized.get(pieces[0].key)
        if weight is None:
            state[name] = _assemble(checkpoint, pieces).to(dtype)
            continue
        module = formats.layer_of(name)
        twin = quantized_twin(model.get_submodule(module), scaled=weight.scale_key is not None, compute_dtype=dtype)
        model.set_submodule(module, twin)
        state[name] = _assemble(checkpoint, pieces)
        if weight.scale_key is not None:
            # `modules` lists several layers for a fused tensor: they all take its one scale.
            state[f"{module}.{SCALE_BUFFER}"] = formats.check_scale(
                weight.scale_key, checkpoint.tensor(weight.scale_key)
            )
    model.load_state_dict(state, strict=True, assign=True)
    model.requires_grad_(False)
    if dequantize:
        dequantize_(model)
    return model.eval()


def _own_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of most of the values that the file holds in full precision."""
    sizes: dict[str, int] = {}
    for pieces in checkpoint.parameters.values():
        info = checkpoint.tensors[pieces[0].key]
        sizes[info.dtype] = sizes.get(info.dtype, 0) + torch.Size(info.shape).numel()
    full = {dtype: size for dtype, size in sizes.items() if dtype in _TORCH_DTYPES}
    if not full:
        raise FormatError(f"{checkpoint.path} holds nothing in full precision; say what to compute in with dtype")
    return _TORCH_DTYPES[max(full, key=full.get)]


def _assemble(checkpoint: Checkpoint, pieces: list[Piece]) -> torch.Tensor:
    """The rows of one parameter. Each layer of a fused tensor gets memory of its own, so that moving or
    freeing one of them frees it."""
    if len(pieces) == 1 and checkpoint.is_whole(pieces[0]):
        return checkpoint.tensor(pieces[0].key)
    return torch.cat([checkpoint.tensor(piece.key)[piece.start : piece.stop] for piece in pieces])
