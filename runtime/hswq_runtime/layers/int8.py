"""INT8 by ComfyUI's arithmetic: the rotation of inputs, the cast to it and back, and the matrix product.

A weight is `codes · scale`, with codes from -127 to 127 and one scale a row. If it is rotated, that is W R: R has a
regular Hadamard matrix for each group of neighbouring inputs on its diagonal and is its own inverse, so that x W^T is
(x R)(W R)^T. It spreads what one input has over its group. A regular Hadamard matrix is a Kronecker power of a 4 x 4
matrix with one -1 in each row, divided by the root of its size, so that no column is constant ("ConvRot: rotation-based
plug-and-play 4-bit quantization for diffusion transformers", 2025).

Each step is rounded as in the portable backend of comfy-kitchen, ComfyUI's library, so that the bits are the same.
"""

import math
from functools import cache

import torch

from ..formats import GROUPS, LARGEST_GROUP

INT8 = torch.int8
INT8_MAX = 127
_LEAST_INPUT_SCALE = 1e-30
_EXACT_COLUMNS = 1024
"""Columns whose products, of two codes each, float32 sums without rounding: 1024 · 128² is 2²⁴."""
_ROWS, _MULTIPLE, _TURING_MULTIPLE = 32, 8, 32
"""On CUDA a product has at least so many rows of input, and multiples of these many columns, and outputs on Turing."""


def group_of(columns: int) -> int | None:
    """How many of a layer's inputs are rotated together: the largest power of 4, 256 at most, that divides `columns`;
    None if there is none."""
    return max((group for group in GROUPS if group <= LARGEST_GROUP and columns % group == 0), default=None)


def rotation(group: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The regular Hadamard matrix [group, group] of norm 1; symmetric, and exact in every float dtype."""
    if torch.compiler.is_compiling():
        return _hadamard(group, dtype, device)
    kept: torch.Tensor = _kept_hadamard(group, dtype, device)
    return kept


@cache
def _kept_hadamard(group: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # an inference tensor could not be used in training
        return _hadamard(group, dtype, device)


def _hadamard(group: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    one = torch.ones(4, 4, dtype=dtype, device=device) - 2 * torch.eye(4, dtype=dtype, device=device).flip(0)
    matrix: torch.Tensor = one
    while len(matrix) < group:
        matrix = torch.kron(matrix, one)
    return matrix / math.sqrt(group)


def rotate(values: torch.Tensor, group: int | None) -> torch.Tensor:
    """`values` [..., K], any float dtype, with each group of neighbours times the Hadamard matrix. Twice is not at all.

    Args:
        group: None: `values` itself.
    """
    return values if group is None else _by_group(values, rotation(group, values.dtype, values.device))


def _by_group(values: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    groups = values.reshape(-1, values.shape[-1] // len(matrix), len(matrix))
    return torch.matmul(groups, matrix).reshape(values.shape)


def quantize(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Codes for `weight` [N, K], rotated already, rounded to nearest: of its shape.

    Args:
        scale: float32 with one value, or one for each row.
    """
    return saturating_cast(weight.to(torch.float32) / scale.reshape(-1, 1))


def saturating_cast(values: torch.Tensor) -> torch.Tensor:
    """Round to the nearest whole number from -127 to 127, ties to even. Any shape."""
    return values.round().clamp(-INT8_MAX, INT8_MAX).to(INT8)


def dequantize(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, group: int | None = None) -> torch.Tensor:
    """The weight [N, K] in `dtype`, its rotation undone. Computed in float32.

    Args:
        codes: INT8 [N, K].
        scale: float32 with one value, or one for each row.
        group: inputs that are rotated together.
    """
    values = codes.to(torch.float32) * scale.reshape(-1, *[1] * (codes.ndim - 1))
    if group is not None:  # symmetric, but for the library that multiplies, and its bits, the other way round
        values = _by_group(values, rotation(group, values.dtype, values.device).t())
    return values.to(dtype)


def quantize_rows(input: torch.Tensor, group: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of the rotated `input` [..., K], of its shape, and the scale of each row, amax / 127: float32 [rows, 1].

    The input is rotated, and the scale and the quotient are rounded, in the dtype of `input`.
    """
    rows = rotate(input, group).reshape(-1, input.shape[-1])
    scale = row_scale(rows)
    divisor = scale.to(rows.dtype)
    divisor = torch.where(divisor == 0, torch.finfo(rows.dtype).tiny, divisor)
    codes = (rows / divisor).round().clamp(-INT8_MAX - 1, INT8_MAX).to(INT8)
    return codes.reshape(input.shape), scale


def row_scale(rows: torch.Tensor) -> torch.Tensor:
    """The scale at which each row of an input [rows, K], rotated already, is rounded: amax / 127, float32 [rows, 1]."""
    return (rows.abs().amax(dim=-1, keepdim=True).float() / INT8_MAX).clamp(min=_LEAST_INPUT_SCALE)


def multiply(
    input: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    group: int | None,
) -> torch.Tensor:
    """`input @ W.T + bias` with the input rounded to INT8, one scale for each token: [..., N] in `dtype`.

    Args:
        input: [..., K], a float dtype.
        weight: INT8 [N, K].
        scale: float32 [1] or [N].
        bias: [N] in `dtype`.
        group: inputs that are rotated together.
    """
    codes, input_scale = quantize_rows(input, group)
    sums = _sums(codes.reshape(-1, codes.shape[-1]), weight)
    product = (sums.to(torch.float32) * (input_scale * scale.reshape(1, -1))).to(dtype)
    product = product if bias is None else product + bias
    return product.reshape(*input.shape[:-1], len(weight))


def _sums(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a @ b.T` of codes [M, K] and [N, K], exact: int32 [M, N], or float32 where that is exact as well."""
    if not a.is_cuda:  # torch's product of INT8 takes 100 times as long on many CPUs
        parts = [
            x.float() @ w.float().t()
            for x, w in zip(a.split(_EXACT_COLUMNS, 1), b.split(_EXACT_COLUMNS, 1), strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.stack([part.int() for part in parts]).sum(0, dtype=torch.int32)
    rows, outputs = a.shape[0], b.shape[0]
    multiple = _TURING_MULTIPLE if torch.cuda.get_device_capability(a.device) == (7, 5) else _MULTIPLE
    a, b = _padded(a, _ROWS, _MULTIPLE), _padded(b, multiple, _MULTIPLE)
    return torch._int_mm(a, b.t())[:rows, :outputs]


def _padded(codes: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """`codes` with zeros below and to the right, so that both sizes are multiples."""
    below, right = -codes.shape[0] % rows, -codes.shape[1] % columns
    return torch.nn.functional.pad(codes, (0, right, 0, below)) if below or right else codes
