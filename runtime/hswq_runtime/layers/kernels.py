"""Triton kernels that round to FP8 and expand from it in one pass over memory; `fp8.py` is the only caller.

Bit for bit what the plain operations there give, NaN payloads aside. FP8 and bfloat16 are put together of integers, to
nearest with ties to even: the same on every GPU and in Triton's interpreter, whose own casts truncate.
"""

import torch
import triton
import triton.language as tl

_BLOCK = 1024
"""Values that one program holds at once."""


@triton.jit
def _widened(raw, BFLOAT16: tl.constexpr):
    """Loaded values as float32; those of bfloat16 come as int16."""
    return (raw.to(tl.int32) << 16).to(tl.float32, bitcast=True) if BFLOAT16 else raw.to(tl.float32)


@triton.jit
def _bfloat16_bits(values):
    """Float32 rounded to bfloat16, as bits of a float32: int32 whose lower half is 0."""
    bits = values.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    return tl.where(values != values, 0x7FC00000, rounded)


@triton.jit
def _rounded(values, BFLOAT16: tl.constexpr, FLOAT16: tl.constexpr):
    """Float32 values rounded to the dtype, still as float32."""
    if BFLOAT16:
        result = _bfloat16_bits(values).to(tl.float32, bitcast=True)
    elif FLOAT16:
        result = values.to(tl.float16).to(tl.float32)
    else:
        result = values
    return result


@triton.jit
def _codes(values):
    """FP8 codes of float32 values as uint8, saturating."""
    clipped = tl.where(values > 448.0, 448.0, tl.where(values < -448.0, -448.0, values))
    bits = clipped.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # 20 of the 23 bits of mantissa go; the bias goes from 127 to 7.
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    # Beside 2^14 the last bit of a float32 is 2^-9, the step of FP8 below 2^-6.
    small = (magnitude.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0x3C800000, small, normal)
    code = tl.where(values != values, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _decoded(codes):
    """FP8 codes, uint8, as float32."""
    wide = codes.to(tl.int32)
    magnitude = wide & 0x7F
    normal = ((magnitude << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    value = tl.where(magnitude < 8, magnitude.to(tl.float32) * 0.001953125, normal)  # 2^-9
    bits = value.to(tl.int32, bitcast=True) | ((wide & 0x80) << 24)
    return tl.where(magnitude == 0x7F, 0x7FC00000, bits).to(tl.float32, bitcast=True)


@triton.jit
def _quantize_kernel(inputs, scale, codes, count, BFLOAT16: tl.constexpr, FLOAT16: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    values = _widened(tl.load(inputs + at, mask=inside, other=0), BFLOAT16)
    one = tl.full((1,), 1.0, tl.float32)
    inverse = _rounded(tl.div_rn(one, tl.load(scale + tl.arange(0, 1))), BFLOAT16, FLOAT16)
    tl.store(codes + at, _codes(_rounded(values * inverse, BFLOAT16, FLOAT16)), mask=inside)


@triton.jit
def _quantize_rows_kernel(inputs, codes, scales, columns, BFLOAT16: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((BLOCK,), tl.float32)
    strange = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        values = _widened(tl.load(inputs + row * columns + at, mask=at < columns, other=0), BFLOAT16)
        largest = tl.maximum(largest, tl.abs(values))
        strange = tl.maximum(strange, (values != values).to(tl.int32))
    amax = tl.max(largest, axis=0)
    usable = (amax > 0.0) & (tl.max(strange, axis=0) == 0)
    scale = tl.where(usable, tl.div_rn(tl.zeros((1,), tl.float32) + amax, tl.full((1,), 448.0, tl.float32)), 1.0)
    tl.store(scales + row + tl.arange(0, 1), scale)
    for start in range(0, columns, BLOCK):  # now from the cache
        at = start + tl.arange(0, BLOCK)
        values = _widened(tl.load(inputs + row * columns + at, mask=at < columns, other=0), BFLOAT16)
        quotient = tl.div_rn(values, tl.broadcast_to(scale, (BLOCK,)))
        tl.store(codes + row * columns + at, _codes(quotient), mask=at < columns)


@triton.jit
def _expand_kernel(codes, scales, result, columns, SEVERAL: tl.constexpr, BFLOAT16: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < columns
    values = _decoded(tl.load(codes + row * columns + at, mask=inside, other=0))
    values = values * tl.load(scales + (row if SEVERAL else 0))
    if BFLOAT16:
        tl.store(result + row * columns + at, (_bfloat16_bits(values) >> 16).to(tl.int16), mask=inside)
    else:
        tl.store(result + row * columns + at, values.to(result.dtype.element_ty), mask=inside)


def _raw(values: torch.Tensor) -> torch.Tensor:
    """Values as the kernels take them: bfloat16 as int16, FP8 as uint8."""
    views = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8}
    return values.view(views[values.dtype]) if values.dtype in views else values


def quantize(input: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """FP8 codes of `input` times 1 / `scale`, both rounded to the dtype of `input` before, in its shape.

    Args:
        input: float32, bfloat16 or float16, any shape.
        scale: float32 with one value.
    """
    input = input.contiguous()
    codes = torch.empty(input.shape, dtype=torch.float8_e4m3fn, device=input.device)
    dtypes = input.dtype == torch.bfloat16, input.dtype == torch.float16
    if count := input.numel():
        # Without fused multiplication and addition, which would skip a rounding.
        with torch.cuda.device_of(input):
            _quantize_kernel[(triton.cdiv(count, _BLOCK),)](
                _raw(input), scale, _raw(codes), count, *dtypes, _BLOCK, enable_fp_fusion=False
            )
    return codes


def quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 codes of `rows` [M, K], float32, bfloat16 or float16, and the scale of each row: float32 [M]."""
    rows = rows.contiguous()
    codes = torch.empty(rows.shape, dtype=torch.float8_e4m3fn, device=rows.device)
    scales = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
    if len(rows):
        is_bfloat16 = rows.dtype == torch.bfloat16
        with torch.cuda.device_of(rows):
            _quantize_rows_kernel[(len(rows),)](
                _raw(rows), _raw(codes), scales, rows.shape[1], is_bfloat16, _BLOCK, enable_fp_fusion=False
            )
    return codes, scales


def expand(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`codes · scale`, computed in float32 and rounded once to `dtype`, in the shape of `codes`.

    Args:
        codes: FP8 [N, ...].
        scale: float32 with one value, or with one for each row.
        dtype: float32, bfloat16 or float16.
    """
    codes = codes.contiguous()
    result = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    if codes.numel():
        columns, several, is_bfloat16 = codes.numel() // len(codes), scale.numel() > 1, dtype == torch.bfloat16
        with torch.cuda.device_of(codes):
            _expand_kernel[(len(codes), triton.cdiv(columns, _BLOCK))](
                _raw(codes), scale, _raw(result), columns, several, is_bfloat16, _BLOCK, enable_fp_fusion=False
            )
    return result
