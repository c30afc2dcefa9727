"""FP8 as `torch.float8_e4m3fn`: its grid, the cast to it, the cast back, and the matrix product.

E4M3FN has 256 codes: 4 exponent bits, 3 mantissa bits, no infinities, two NaN. Largest value 448, smallest
normal 2**-6, subnormal step 2**-9 (Micikevicius et al., "FP8 formats for deep learning", 2022). All limits
here are read from torch. Beyond ±448 a cast by torch gives NaN or ±448, depending on its release and the device, hence
:func:`saturating_cast`.
"""

import threading
import warnings
from collections.abc import Iterator
from functools import cache
from types import ModuleType

import torch

from ..errors import FormatError
from ..scales import LEAST_SCALE

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
MULTIPLE = 16
"""For a product in FP8 the hardware requires a weight's rows and columns to be multiples of this."""
CHUNK_VALUES = 1 << 18
"""Values that the CPU expands or rounds at once: few enough to stay in its cache."""


def grid() -> torch.Tensor:
    """All finite FP8 values in ascending order, float32 [253] (the two zeros are one entry).

    They are decoded from the 256 byte values, so this is the grid of the hardware.
    """
    values = torch.arange(256, dtype=torch.uint8).view(FP8).to(torch.float32)
    finite: torch.Tensor = values[values.isfinite()].unique()
    return finite


def saturating_cast(values: torch.Tensor) -> torch.Tensor:
    """Round to the nearest FP8 value, ties to even; values beyond ±448 become ±448, NaN stays NaN. Any shape."""
    return values.clamp(-FP8_MAX, FP8_MAX).to(FP8)


def quantize(weight: torch.Tensor, scale: torch.Tensor | None = None, amax: float | None = None) -> torch.Tensor:
    """FP8 codes `q` such that `q · scale ≈ weight`, computed in float32.

    Args:
        weight: any shape and float dtype.
        scale: None (1), or float32 with one value, or with one value for each row (index of the first dimension).
        amax: values are clamped to ±amax first; None: they are not.
    """
    weight, factors = weight.detach(), None if scale is None else _by_row(scale, weight)
    if not weight.is_cpu or weight.numel() <= CHUNK_VALUES:
        return _to_range(weight.to(torch.float32, copy=True), factors, amax).to(FP8)
    codes, buffer = torch.empty(weight.shape, dtype=FP8, device="cpu"), None
    for rows in _row_chunks(weight):
        part = weight[rows]
        buffer = torch.empty(part.shape, dtype=torch.float32, device="cpu") if buffer is None else buffer
        here = factors[rows] if factors is not None and len(factors) > 1 else factors
        codes[rows] = _to_range(buffer[: len(part)].copy_(part), here, amax)
    return codes


def _to_range(values: torch.Tensor, scale: torch.Tensor | None, amax: float | None) -> torch.Tensor:
    """Clamp to ±amax, divide by `scale`, clamp to ±448; in place."""
    if amax is not None:
        values.clamp_(-amax, amax)
    if scale is not None:
        values /= scale
    return values.clamp_(-FP8_MAX, FP8_MAX)


def dequantize(
    weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype, *, transient: bool = False
) -> torch.Tensor:
    """`weight · scale` in `dtype`, a new tensor.

    The product is computed in float32 and rounded once, since a scale in bfloat16 would be off by up to 0.4 %. Without
    a scale the cast is exact in every wider float dtype.

    Args:
        weight: FP8, any shape.
        scale: as in :func:`quantize`.
        transient: the next such call of this thread may overwrite the result.
    """
    if _is_plain(weight) and not torch.compiler.is_compiling() and _keeps_denormals():
        result = _scratch(weight.shape, dtype) if transient else torch.empty(weight.shape, dtype=dtype, device="cpu")
        return _dequantize_on_cpu(weight, scale, result)
    if scale is None:
        return weight.to(dtype)
    if kernels := _kernels(weight):
        expanded: torch.Tensor = kernels.expand(weight, scale, dtype)
        return expanded
    return (weight.to(torch.float32) * _by_row(scale, weight)).to(dtype)


def fresh_scale(values: torch.Tensor, count: int, largest: float = FP8_MAX) -> torch.Tensor:
    """The scale that maps the largest magnitude to `largest`: float32 [count]; `count` is 1 or the number of rows.

    The scale of an all-zero tensor or row is 1.
    """
    amax = values.detach().abs().reshape(count, -1).amax(dim=1).float()
    return torch.where(amax > 0, (amax / largest).clamp(min=LEAST_SCALE), 1.0)


def quantize_input(input: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """FP8 codes `q` such that `q · scale ≈ input`, by the arithmetic of stock ComfyUI: of the shape of `input`.

    Its product with 1 / scale is rounded to its own dtype before it is rounded to FP8, as that of ComfyUI is.

    Args:
        input: any shape, float32, bfloat16 or float16.
        scale: float32 with one value; None: 1.
    """
    if kernels := _kernels(input):
        codes: torch.Tensor = kernels.quantize(input, _ones(input.device, 1) if scale is None else scale)
        return codes
    return saturating_cast(input if scale is None else input * (1.0 / scale).to(input.dtype))


def quantize_rows(input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 codes of the shape of `input` [..., K], and the scale of each row, amax / 448: float32 [rows].

    The quotient is computed in float32.
    """
    rows = input.reshape(-1, input.shape[-1])
    if kernels := _kernels(input):
        codes, scale = kernels.quantize_rows(rows)
        return codes.reshape(input.shape), scale
    scale = fresh_scale(rows, len(rows))
    return saturating_cast(rows / scale[:, None]).reshape(input.shape), scale


def comfyui_weight(weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """`weight · scale` as stock ComfyUI expands it: both in `dtype`, and so is their product. Arguments: see
    :func:`dequantize`."""
    values = dequantize(weight, None, dtype)
    return values if scale is None else values.mul_(_by_row(scale, weight).to(dtype))


def matmul(
    codes: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    input_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`(codes · input_scale) @ (weight · scale).T + bias` on the tensor cores: [..., N] in `dtype`.

    Args:
        codes: FP8 [..., K].
        weight: FP8 [N, K]; it :func:`fits`.
        scale: as in :func:`quantize`.
        input_scale: float32 with one value, or with one for each row of `codes`; None: 1.
        bias: [N] in `dtype`.
    """
    rows, device = codes.reshape(-1, codes.shape[-1]).contiguous(), weight.device
    scale_a = _ones(device, 1) if input_scale is None else input_scale
    scale_b = _ones(device, 1) if scale is None else scale
    result = dtype if dtype.itemsize <= torch.float32.itemsize else torch.float32
    if scale_a.numel() == scale_b.numel() == 1:
        scale_a, scale_b = scale_a.reshape(()), scale_b.reshape(())
    else:
        scale_a = scale_a.reshape(-1, 1).expand(len(rows), 1).contiguous()
        scale_b = _ones(device, len(weight)) if scale is None else scale.reshape(-1).expand(len(weight)).contiguous()
        scale_b = scale_b.reshape(1, -1)
        if weight.is_cuda:
            result = torch.bfloat16  # all that its kernels with several scales write
    inside = bias if bias is not None and result == dtype and adds_bias(device, dtype) else None
    # Fast accumulation, which Hopper has, keeps about 14 bits of a sum: over a long row that costs more than a bfloat16
    # result rounds off. ComfyUI does without it as well.
    product = _scaled_mm(rows, weight.t(), scale_a, scale_b, inside, result)
    product = product.to(dtype).reshape(*codes.shape[:-1], len(weight))
    return product if bias is None or inside is not None else product + bias


def _scaled_mm(
    rows: torch.Tensor,
    columns: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """On a CPU by the function that ComfyUI's library takes, where torch has it: the older one rounds otherwise on CPUs
    with AMX."""
    newer = getattr(torch.nn.functional, "scaled_mm", None)
    if rows.device.type == "cpu" and newer is not None:
        kinds = torch.nn.functional.ScalingType
        recipe = kinds.TensorWise if scale_a.numel() == scale_b.numel() == 1 else kinds.RowWise
        made: torch.Tensor = newer(rows, columns, scale_a, recipe, scale_b, recipe, bias=bias, output_dtype=dtype)
        return made
    return torch._scaled_mm(
        rows, columns, scale_a=scale_a, scale_b=scale_b, bias=bias, out_dtype=dtype, use_fast_accum=False
    )


def adds_bias(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether :func:`matmul` can add a bias before it rounds to `dtype`; on CUDA not to float32."""
    return device.type != "cuda" or dtype != torch.float32


def fits(weight: torch.Tensor) -> bool:
    """Whether the hardware can multiply by an FP8 weight [N, K]: both are multiples of 16."""
    return all(size % MULTIPLE == 0 for size in weight.shape)


def _ones(device: torch.device, count: int) -> torch.Tensor:
    """Scales of 1, float32 [count], made once for each device; they are only read."""
    return torch.ones(count, device=device) if torch.compiler.is_compiling() else _kept_ones(device, count)


@cache
def _kept_ones(device: torch.device, count: int) -> torch.Tensor:
    with torch.inference_mode(False):  # an inference tensor could not be used in training
        return torch.ones(count, device=device)


def check_compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, if layers can compute in it.

    Raises:
        FormatError: `dtype` is FP8 or an integer.
    """
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise FormatError(f"cannot compute in {dtype}; pass torch.bfloat16, torch.float16 or torch.float32 as dtype")
    return dtype


def _by_row(scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`scale` in the shape [1 or N, 1, ...], which broadcasts over `weight`."""
    return scale.reshape(-1, *[1] * (weight.ndim - 1))


def _kernels(values: torch.Tensor) -> ModuleType | None:
    """The kernels that do an operation on `values` in one pass; None where the plain operations have to do.

    That is on a CPU, where Triton is missing or fails, for float64, and for a compiler, which fuses the plain ones.
    """
    usable = values.is_cuda and type(values) in (torch.Tensor, torch.nn.Parameter) and values.dtype != torch.float64
    return _import_kernels(values.device) if usable and not torch.compiler.is_compiling() else None


@cache
def _import_kernels(device: torch.device) -> ModuleType | None:
    try:
        from . import kernels

        kernels.quantize(torch.zeros(1, device=device), torch.ones(1, device=device))
    except ImportError:
        return None
    except Exception as error:  # it builds with this machine's C compiler and driver, and fails in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"Triton builds no kernels here ({reason}); FP8 layers are slower than they could be", stacklevel=2
        )
        return None
    return kernels


# Put the four exponent and three mantissa bits of an FP8 value into the lowest exponent and highest mantissa bits of a
# wider float. The result is the value times 2^-120, subnormals included; 120 is the difference of the biases, 127 - 7.
_BIAS = 2.0**120
_WIDE = torch.float32, torch.int32, 20, 0x87F00000 - (1 << 32)
_HALF = torch.bfloat16, torch.int16, 4, 0x87F0 - (1 << 16)


def _row_chunks(values: torch.Tensor) -> Iterator[slice]:
    """Slices of the first dimension, of about `CHUNK_VALUES` values each."""
    rows = max(1, CHUNK_VALUES // max(1, values[:1].numel()))
    for start in range(0, len(values), rows):
        yield slice(start, start + rows)


def _is_plain(weight: torch.Tensor) -> bool:
    """Whether it is an FP8 tensor with data on the CPU, not a fake tensor or another subclass."""
    return weight.is_cpu and weight.dtype == FP8 and type(weight) in (torch.Tensor, torch.nn.Parameter)


def _keeps_denormals() -> bool:
    """Whether the CPU computes with denormals; `torch.set_flush_denormal` and some libraries turn that off."""
    return (torch.tensor(2.0**-129, device="cpu") * _BIAS).item() != 0


def _dequantize_on_cpu(weight: torch.Tensor, scale: torch.Tensor | None, result: torch.Tensor) -> torch.Tensor:
    """Write `weight · scale` into `result`.

    Bit-identical, NaN aside, to torch's cast from FP8, which is not vectorized and takes three times as long.
    """
    dtype = result.dtype
    exact, integer, shift, mask = _HALF if scale is None and dtype == torch.bfloat16 else _WIDE
    factors = None if scale is None else _by_row(scale, weight).expand(len(weight), *[1] * (weight.ndim - 1))
    for rows in _row_chunks(weight):
        values = result[rows] if dtype == exact else torch.empty(result[rows].shape, dtype=exact, device="cpu")
        bits = values.view(integer)
        bits.copy_(weight[rows].view(torch.int8))
        bits <<= shift
        bits &= mask
        values *= _BIAS
        if factors is not None:
            values *= factors[rows]
        if dtype != exact:
            result[rows] = values
    return result


_buffers = threading.local()


def _scratch(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """A tensor in this thread's buffer, which is reused and as large as its largest weight.

    Fresh memory would cost more time in page faults than the expansion itself.
    """
    held: torch.Tensor | None = getattr(_buffers, str(dtype), None)
    if held is None or held.numel() < shape.numel():
        with torch.inference_mode(False):  # an inference tensor could not be written to outside of that mode
            held = torch.empty(shape.numel(), dtype=dtype, device="cpu")
        setattr(_buffers, str(dtype), held)
    return held[: shape.numel()].view(shape)
