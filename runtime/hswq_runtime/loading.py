"""Load a checkpoint file, quantized or not, as the diffusers model that it describes.

The model is built on the meta device, its quantized layers are replaced by FP8 ones, and the file's tensors become its
parameters, memory-mapped where nothing has to be computed. A missing or left-over tensor is an error that names it.
"""

from pathlib import Path

import torch

from .checkpoints.checkpoint import Checkpoint
from .checkpoints.mapping import Piece
from .formats import Product, layer_of
from .layers import fp8
from .layers.alignment import aligned
from .layers.matmul import set_quantized_matmul
from .layers.modules import INPUT_SCALE_BUFFER, SCALE_BUFFER, HSWQLayer, HSWQLinear, quantized_twin
from .layers.numbers import dequantize as expand
from .quantizer import mark_quantized


def load_model(
    checkpoint: Checkpoint | str | Path,
    dtype: torch.dtype | None = None,
    *,
    dequantize: bool = False,
    quantized_matmul: bool = False,
    device: torch.device | str = "cpu",
) -> torch.nn.Module:
    """The diffusers model of an HSWQ V1, V2 or INT8, plain FP8 or full-precision checkpoint, in eval mode.

    Args:
        checkpoint: the file, or a :class:`Checkpoint` of it.
        dtype: the dtype to compute in, and of everything that is not quantized. None: `Checkpoint.dtype`.
        dequantize: return the plain model, with `weight · scale` in `dtype` instead of quantized layers.
        quantized_matmul: see :func:`hswq_runtime.layers.matmul.set_quantized_matmul`.
        device: where it is, and will compute.

    Raises:
        FormatError: missing, unexpected or wrongly shaped keys, all of which are named; a bad scale; FP8 as `dtype`.
        UnknownArchitectureError: see :class:`Checkpoint`.
        DeviceError: `quantized_matmul` and no such hardware.
        FullPrecisionError: `quantized_matmul` and a file that wants every layer multiplied in full precision.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    dtype = fp8.check_compute_dtype(dtype or checkpoint.dtype)
    model = checkpoint.empty_model()

    state: dict[str, torch.Tensor] = {}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, pieces in checkpoint.parameters.items():
        product = None if dequantize else checkpoint.product_of(pieces)
        if product is None:
            # Full precision, or a weight that foreign files quantized although its layer cannot hold it so.
            whole = _joined([_expanded(checkpoint, piece, dtype) for piece in pieces]).reshape(shapes[name])
            state[name] = aligned(whole) if torch.device(device).type == "cpu" else whole
            continue
        module, scale = layer_of(name), checkpoint.scale_of(pieces)
        scales = 0 if scale is None else scale.numel()
        plain = model.get_submodule(module)
        twin = quantized_twin(plain, scales=scales, compute_dtype=dtype, product=product)
        model.set_submodule(module, twin)
        state[name] = _joined([_rows(checkpoint, piece) for piece in pieces]).reshape(shapes[name])
        if scale is not None:
            state[f"{module}.{SCALE_BUFFER}"] = scale
        if isinstance(twin, HSWQLinear) and product.input_scale is not None:
            state[f"{module}.{INPUT_SCALE_BUFFER}"] = torch.tensor([product.input_scale], device="cpu")
    model.load_state_dict(state, strict=True, assign=True)
    model.to(device).requires_grad_(False).eval()
    if any(isinstance(layer, HSWQLayer) for layer in model.modules()):
        mark_quantized(model, dtype)
        set_quantized_matmul(model, quantized_matmul)
    return model


def joined_rows(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """The diffusers parameter `name` as the file stores it: in its stored dtype, and folded if the file is."""
    return _joined([_rows(checkpoint, piece) for piece in checkpoint.parameters[name]])


def _rows(checkpoint: Checkpoint, piece: Piece) -> torch.Tensor:
    """Rows of a stored tensor, as a view of the memory-mapped file."""
    stored = checkpoint.tensor(piece.key)
    return stored[piece.start : piece.stop] if stored.ndim else stored


def _expanded(checkpoint: Checkpoint, piece: Piece, dtype: torch.dtype) -> torch.Tensor:
    """Rows of a stored tensor in `dtype`, times their scale."""
    stored = checkpoint.products.get(piece.key, Product())
    return expand(_rows(checkpoint, piece), checkpoint.scale_of([piece]), dtype, stored.group)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
