"""What stands beside the quantized weights of one file: their scales, and how they are to be multiplied."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch

from .. import fold, formats
from .header import TensorInfo
from .mapping import is_convolution, row_count


def stored_weights(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]
) -> tuple[dict[str, formats.StoredWeight], set[str]]:
    """The quantized weights by key, and the keys of what stands beside them, from a header.

    Raises:
        FormatError: scales and weights do not belong together.
    """
    dtypes = {key: info.dtype for key, info in tensors.items()}
    unscaled: Collection[str] = ()
    if formats.has_plain_convolutions(metadata):
        unscaled = {key for key, info in tensors.items() if is_convolution(info.shape)}
    return formats.find_weights(dtypes, formats.format_of(metadata), unscaled)


def unfold_factors(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Powers of two that take the fold of a file back, by key: float32 [1] or [rows]; {} if it is not folded.

    Raises:
        FormatError: a fold that does not fit.
    """
    rows = {key: row_count(info.shape) for key, info in tensors.items()}
    return fold.unfold_factors(fold.fold_of(metadata, rows))


def read_scales(
    weights: Mapping[str, formats.StoredWeight],
    tensors: Mapping[str, TensorInfo],
    tensor: Callable[[str], torch.Tensor],
    unfold: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor | None]:
    """The scale of every weight by key: float32 [1] or [rows]; None if it has none.

    Args:
        tensors: what the header says of every tensor.
        tensor: reads the stored tensor of a key.
        unfold: factors that take a fold back, by key; {} if there is none.

    Raises:
        FormatError: a bad scale.
    """
    scales = {key: formats.read_scale(weight, row_count(tensors[key].shape), tensor) for key, weight in weights.items()}
    if not unfold:
        return scales
    # Then every weight has a scale, as in V2, so that a model that is saved states all of them.
    one = torch.ones(1, device="cpu")
    return {key: (one if scale is None else scale) * unfold.get(key, one) for key, scale in scales.items()}


def read_products(
    weights: Mapping[str, formats.StoredWeight],
    tensors: Mapping[str, TensorInfo],
    tensor: Callable[[str], torch.Tensor],
    header: Mapping[str, formats.Product],
    *,
    unfolded: bool,
) -> dict[str, formats.Product]:
    """How the layer of every weight is to be multiplied, by key.

    Args:
        tensors: what the header says of every tensor.
        tensor: reads the stored tensor of a key.
        header: as of :func:`hswq_runtime.formats.read_product`.
        unfolded: leave input scales out, since inputs are not those that they were found for.

    Raises:
        FormatError: a bad input scale, or a description that does not fit.
    """
    columns = {key: (tensors[key].shape or (1,))[-1] for key in weights}
    products = {key: formats.read_product(w, columns[key], tensor, header) for key, w in weights.items()}
    return {key: replace(product, input_scale=None) if unfolded else product for key, product in products.items()}
