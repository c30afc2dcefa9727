"""From a checkpoint file, quantized or not, to the diffusers model that it describes.

The model is built on the meta device, its quantized layers are exchanged for FP8 ones, and the file's tensors
are put in their places. Nothing is left over and nothing is missing, or loading fails and names it.
"""

from pathlib import Path

import torch

from . import formats, fp8
from .checkpoint import Checkpoint, Piece
from .layers import SCALE_BUFFER, dequantize_, quantized_twin


def load_model(
    checkpoint: Checkpoint | str | Path, dtype: torch.dtype | None = None, *, dequantize: bool = False
) -> torch.nn.Module:
    """The diffusers model of a HSWQ V1, V2, plain FP8 or full-precision checkpoint, on the CPU, in eval mode.

    Args:
        checkpoint: the file, or its opened view.
        dtype: what the model computes in, and the dtype of everything that is not FP8. None: the
            file's own, see `Checkpoint.dtype`.
        dequantize: give the plain model with `weight · scale` in `dtype` instead of FP8 layers.

    Raises:
        FormatError: missing, unexpected or wrongly shaped keys, all of them named; a bad scale.
        UnknownArchitectureError: see :class:`Checkpoint`.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    dtype = dtype or checkpoint.dtype
    model = checkpoint.empty_model()
    checkpoint.check_fits(model)

    state, shapes = {}, {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, pieces in checkpoint.parameters.items():
        values = _assemble(checkpoint, pieces).reshape(shapes[name])
        scale = _scale(checkpoint, pieces[0].key)
        if not checkpoint.held_as_fp8(pieces[0].key):
            # Full precision, or something that foreign files cast although it cannot compute in FP8.
            state[name] = fp8.dequantize(values, scale, dtype)
            continue
        module = formats.layer_of(name)
        twin = quantized_twin(model.get_submodule(module), scaled=scale is not None, compute_dtype=dtype)
        model.set_submodule(module, twin)
        state[name] = values
        if scale is not None:
            state[f"{module}.{SCALE_BUFFER}"] = scale
    model.load_state_dict(state, strict=True, assign=True)
    model.requires_grad_(False)
    if dequantize:
        dequantize_(model)
    return model.eval()


def _scale(checkpoint: Checkpoint, key: str) -> torch.Tensor | None:
    """The checked scale of the stored tensor `key`; all layers of a fused tensor take its one scale."""
    weight = checkpoint.quantized.get(key)
    if weight is None:
        return None
    scale = weight.scale_key and formats.check_scale(weight.scale_key, checkpoint.tensor(weight.scale_key))
    if weight.comfy_scale_key is not None:
        comfy_scale = formats.check_scale(weight.comfy_scale_key, checkpoint.tensor(weight.comfy_scale_key))
        formats.check_agreement(weight, scale, comfy_scale)
    return scale


def _assemble(checkpoint: Checkpoint, pieces: list[Piece]) -> torch.Tensor:
    """The rows of one parameter. Each layer of a fused tensor gets memory of its own, so that moving or
    freeing one of them frees it."""
    if len(pieces) == 1 and checkpoint.is_whole(pieces[0]):
        return checkpoint.tensor(pieces[0].key)
    return torch.cat([checkpoint.tensor(piece.key)[piece.start : piece.stop] for piece in pieces])
