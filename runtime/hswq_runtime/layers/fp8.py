"""FP8 as `torch.float8_e4m3fn`: its grid, the cast to it and the way back.

E4M3FN has 256 codes: 4 exponent bits, 3 mantissa bits, no infinities, two NaN. Largest value 448, smallest
normal 2**-6, subnormal step 2**-9 (Micikevicius et al., "FP8 formats for deep learning", 2022). All limits
here are read from torch, none is typed in. `torch` saturates nothing: 449 would become NaN, hence
:func:`saturating_cast`.
"""

import threading
from collections.abc import Iterator

import torch

from ..errors import FormatError

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max


def grid() -> torch.Tensor:
    """All finite FP8 values in ascending order, float32, shape [253] (the two zeros are one entry).

    Taken from the 256 byte values themselves, so it is the grid that the hardware has.
    """
    values = torch.arange(256, dtype=torch.uint8).view(FP8).to(torch.float32)
    return torch.unique(values[values.isfinite()])


def saturating_cast(values: torch.Tensor) -> torch.Tensor:
    """Round to the nearest FP8 value, ties to even; beyond ±448 to ±448. Any shape; NaN stays NaN."""
    return values.clamp(-FP8_MAX, FP8_MAX).to(FP8)


def quantize(weight: torch.Tensor, scale: torch.Tensor | None = None, amax: float | None = None) -> torch.Tensor:
    """FP8 codes `q` such that `q · scale ≈ weight`.

    `weight`: any shape and float dtype. `scale`: None (1), or float32 with one value, or with one for each
    row (index of the first dimension). `amax`: what lies beyond ±amax becomes what ±amax becomes. All is computed
    in float32, whatever the dtype of `weight`.
    """
    weight, factors = weight.detach(), None if scale is None else _by_row(scale, weight)
    if not weight.is_cpu or weight.numel() <= _PIECE:
        return _to_range(weight.to(torch.float32, copy=True), factors, amax).to(FP8)
    codes, values = torch.empty(weight.shape, dtype=FP8, device="cpu"), None
    several = factors is not None and len(factors) > 1
    for here in _pieces(weight):
        part = weight[here]
        values = torch.empty(part.shape, dtype=torch.float32, device="cpu") if values is None else values[: len(part)]
        codes[here] = _to_range(values.copy_(part), factors[here] if several else factors, amax)
    return codes


def _to_range(values: torch.Tensor, scale: torch.Tensor | None, amax: float | None) -> torch.Tensor:
    """What becomes FP8, within ±448, in place."""
    if amax is not None:
        values.clamp_(-amax, amax)
    if scale is not None:
        values /= scale
    return values.clamp_(-FP8_MAX, FP8_MAX)


def dequantize(
    weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype, *, transient: bool = False
) -> torch.Tensor:
    """`weight · scale` in `dtype`, a new tensor; if `transient`, one that may be overwritten by the next such call.

    `weight`: FP8, any shape. `scale`: as in :func:`quantize`. The product is rounded once: it is made in
    float32 and then cast, since a scale in bfloat16 would be off by up to 0.4 %. Without a scale the cast is
    exact in every wider float dtype.
    """
    if _is_plain(weight) and not torch.compiler.is_compiling() and _keeps_denormals():
        result = _scratch(weight.shape, dtype) if transient else torch.empty(weight.shape, dtype=dtype, device="cpu")
        return _dequantize_on_cpu(weight, scale, result)
    if scale is None:
        return weight.to(dtype)
    return (weight.to(torch.float32) * _by_row(scale, weight)).to(dtype)


def fresh_scale(values: torch.Tensor, count: int) -> torch.Tensor:
    """The scale that brings the largest magnitude to 448: float32 [count], `count` 1 or the number of rows.

    An all-zero tensor or row has the scale 1.
    """
    amax = values.detach().abs().float().reshape(count, -1).amax(dim=1)
    return torch.where(amax > 0, amax / FP8_MAX, 1.0)


def matmul(input: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """`input @ weight.T` with both factors in FP8 on the tensor cores: bfloat16 [..., N].

    `input`: [..., K], any float dtype; every row gets a scale of its own, amax / 448, as in "FP8 formats for deep
    learning". `weight`: FP8 [N, K]. `scale`: as in :func:`quantize`. K and N are multiples of 16.
    """
    rows = input.reshape(-1, input.shape[-1]).to(torch.float32)
    row_scale = fresh_scale(rows, len(rows))[:, None]
    of_weight = torch.ones((), device=weight.device) if scale is None else scale
    product = torch._scaled_mm(
        saturating_cast(rows / row_scale),
        weight.t(),
        scale_a=row_scale,
        scale_b=of_weight.reshape(1, -1).expand(1, len(weight)).contiguous(),
        out_dtype=torch.bfloat16,
    )
    return product.reshape(*input.shape[:-1], len(weight))


def can_matmul(device: torch.device) -> bool:
    """Whether :func:`matmul` runs on `device`: NVIDIA from SM 8.9 (Ada, Hopper, Blackwell), and the CPU."""
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)
    return device.type == "cpu"


def check_compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, if one can compute in it.

    Raises:
        FormatError: it is FP8 or an integer: the weights stay FP8 anyway, what is asked for is the dtype beside them.
    """
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise FormatError(f"cannot compute in {dtype}; pass torch.bfloat16, torch.float16 or torch.float32 as dtype")
    return dtype


def _by_row(scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return scale.reshape(-1, *[1] * (weight.ndim - 1))


# The four exponent and three mantissa bits of an FP8 value, put into the lowest exponent and highest mantissa bits of
# a wider float, are that value divided by 2 to the difference of the exponent biases (127 - 7), subnormals included.
_BIAS = 2.0**120
_WIDE = torch.float32, torch.int32, 20, 0x87F00000 - (1 << 32)
_HALF = torch.bfloat16, torch.int16, 4, 0x87F0 - (1 << 16)
_PIECE = 1 << 18
"""Values expanded or rounded at once: few enough to stay in the cache."""


def _pieces(values: torch.Tensor) -> Iterator[slice]:
    rows = max(1, _PIECE // max(1, values[:1].numel()))
    for start in range(0, len(values), rows):
        yield slice(start, start + rows)


def _is_plain(weight: torch.Tensor) -> bool:
    """FP8 values in the memory of this machine; not a fake that only has a shape."""
    return weight.is_cpu and weight.dtype == FP8 and type(weight) in (torch.Tensor, torch.nn.Parameter)


def _keeps_denormals() -> bool:
    """Whether the processor computes with denormals: `torch.set_flush_denormal`, and some libraries, turn that off."""
    return (torch.tensor(2.0**-129, device="cpu") * _BIAS).item() != 0


def _dequantize_on_cpu(weight: torch.Tensor, scale: torch.Tensor | None, result: torch.Tensor) -> torch.Tensor:
    """The same to the bit (NaN aside), three times as fast as torch's cast from FP8, which is not vectorized."""
    dtype = result.dtype
    exact, integer, shift, mask = _HALF if scale is None and dtype == torch.bfloat16 else _WIDE
    factors = None if scale is None else _by_row(scale, weight).expand(len(weight), *[1] * (weight.ndim - 1))
    for here in _pieces(weight):
        values = result[here] if dtype == exact else torch.empty(result[here].shape, dtype=exact, device="cpu")
        bits = values.view(integer)
        bits.copy_(weight[here].view(torch.int8))
        bits <<= shift
        bits &= mask
        values *= _BIAS
        if factors is not None:
            values *= factors[here]
        if dtype != exact:
            result[here] = values
    return result


_buffers = threading.local()


def _scratch(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Memory of this thread, used again and again: as large as its largest layer, and mapped by the system only once,
    which otherwise takes longer than expanding a weight."""
    held = getattr(_buffers, str(dtype), None)
    if held is None or held.numel() < shape.numel():
        with torch.inference_mode(False):  # what is made in that mode could not be written to outside of it
            held = torch.empty(shape.numel(), dtype=dtype, device="cpu")
        setattr(_buffers, str(dtype), held)
    return held[: shape.numel()].view(shape)
