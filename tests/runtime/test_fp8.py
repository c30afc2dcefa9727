"""The FP8 grid and the casts to it and from it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hswq_runtime.errors import FormatError
from hswq_runtime.layers import fp8


def test_grid_is_what_the_256_bytes_are():
    """Decoded by hand: sign, four exponent bits with bias 7, three mantissa bits; 0x7F and 0xFF are NaN."""
    decoded = set()
    for byte in range(256):
        sign, exponent, mantissa = -1 if byte & 0x80 else 1, (byte >> 3) & 15, byte & 7
        if (exponent, mantissa) == (15, 7):
            continue
        decoded.add(sign * (mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)))
    assert fp8.grid().tolist() == sorted(decoded)
    assert fp8.grid().max() == fp8.FP8_MAX == 448


def test_cast_goes_to_the_nearest_grid_value():
    grid = fp8.grid().double()
    generator = torch.Generator().manual_seed(0)
    exponents = torch.empty(20_000, dtype=torch.float64).uniform_(-14, 9, generator=generator)
    values = (torch.randn(20_000, generator=generator).sign() * 2**exponents).float()
    nearest = (values.double().unsqueeze(1) - grid).abs().min(dim=1).values
    found = (fp8.saturating_cast(values).double() - values.double()).abs()
    assert torch.equal(found, nearest)


@pytest.mark.parametrize("value", [448.0, 449.0, 1e6, float("inf")])
def test_cast_saturates(value):
    codes = fp8.saturating_cast(torch.tensor([value, -value]))
    assert codes.float().tolist() == [448, -448]


def test_grid_values_survive_the_round_trip_in_every_wider_dtype():
    grid = fp8.grid()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(fp8.dequantize(fp8.quantize(grid), None, dtype).float(), grid)


def test_scaled_round_trip_is_exact_for_multiples_of_the_scale():
    scale = torch.tensor([0.0123])
    weight = fp8.grid() * scale
    assert torch.equal(fp8.dequantize(fp8.quantize(weight, scale), scale, torch.float32), weight)


@pytest.mark.parametrize("shape", [(700, 500), (70, 20, 15, 17), (350_000,)], ids=str)
@pytest.mark.parametrize("scales", [None, "one", "rows"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rounding_in_chunks_is_rounding_the_whole(dtype, scales, shape):
    weight = torch.randn(shape).to(dtype)
    assert weight.numel() > fp8.CHUNK_VALUES and weight.numel() % fp8.CHUNK_VALUES
    before = weight.clone()
    scale = scales and torch.rand(1 if scales == "one" else shape[0]) + 0.01
    factor = 1 if scale is None else scale.reshape(-1, *[1] * (len(shape) - 1))
    whole = fp8.saturating_cast(weight.float().clamp(-0.9, 0.9) / factor)
    assert torch.equal(fp8.quantize(weight, scale, 0.9).float(), whole.float())
    few = slice(0, shape[0] // 7)
    some = scale[few] if scales == "rows" else scale
    assert torch.equal(fp8.quantize(weight[few], some, 0.9).float(), whole[few].float()), "and so is a small one"
    assert torch.equal(weight, before)


def test_bfloat16_product_is_rounded_once():
    scale, codes = torch.tensor([0.0123]), fp8.saturating_cast(fp8.grid())
    once = (codes.double() * scale.double()).float().bfloat16()
    assert torch.equal(fp8.dequantize(codes, scale, torch.bfloat16), once)


FINITE = torch.arange(256, dtype=torch.uint8).view(fp8.FP8)[torch.arange(256) % 128 != 127]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scales", [None, [0.00137], [300.0], [1e-30], "rows"], ids=str)
def test_every_code_is_dequantized_to_the_bit(scales, dtype):
    """Against torch's own cast, multiplied in float32."""
    rows = FINITE.unsqueeze(1).repeat(1, 3)
    scale = torch.rand(len(rows)) + 1e-6 if scales == "rows" else scales and torch.tensor(scales)
    product = rows.float() if scale is None else rows.float() * scale.reshape(-1, 1)
    assert torch.equal(fp8.dequantize(rows, scale, dtype), product.to(dtype))


def test_flushing_denormals_does_not_flush_small_weights():
    rows = FINITE.unsqueeze(1)
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush denormals")
        found = [fp8.dequantize(rows, None, dtype) for dtype in (torch.float32, torch.bfloat16)]
    finally:
        torch.set_flush_denormal(False)
    for values in found:
        assert torch.equal(values.float(), rows.float())


def test_another_default_device_changes_nothing():
    rows, scale = FINITE.unsqueeze(1), torch.rand(len(FINITE))
    with torch.device("meta"):
        found = fp8.dequantize(rows, scale, torch.float16, transient=True)
    assert found.device.type == "cpu" and torch.equal(found, (rows.float() * scale[:, None]).half())


def test_a_large_weight_is_dequantized_like_a_small_one():
    """It is done chunk by chunk; no chunk is left out or scaled twice."""
    codes = torch.randint(0, 127, (3000, 300), dtype=torch.uint8).view(fp8.FP8)
    scale = torch.rand(3000)
    assert torch.equal(fp8.dequantize(codes, scale, torch.float32), codes.float() * scale[:, None])


def test_a_fresh_scale_brings_the_largest_value_to_448():
    values = torch.tensor([[1.0, -7.0], [0.5, 0.25], [0.0, 0.0]])
    assert fp8.fresh_scale(values, 1).tolist() == [7 / 448]
    assert torch.equal(fp8.fresh_scale(values, 3), torch.tensor([7 / 448, 0.5 / 448, 1.0]))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("count", [0, 1, 48], ids=["none", "one", "rows"])
def test_fp8_product_has_the_error_of_rounding_its_input_and_no_more(count, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    inputs, weight = torch.randn(2, 5, 64) * torch.logspace(-3, 3, 10).reshape(2, 5, 1), torch.randn(48, 64)
    scale = fp8.fresh_scale(weight, count) if count else None
    codes = fp8.quantize(weight, scale)
    scale_there = None if scale is None else scale.to(device)
    rounded, row_scale = fp8.quantize_rows(inputs.to(device))
    found = fp8.matmul(rounded, codes.to(device), scale_there, row_scale, None, torch.float32).cpu()
    expected = inputs @ fp8.dequantize(codes, scale, torch.float32).T
    assert found.shape == expected.shape
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert (error < 0.06).all(), "every row has its own scale, so rows of any magnitude are equally exact"
    assert (error > 1e-4).all(), "the input is rounded to FP8"
    step = inputs.abs().amax(-1, keepdim=True) / 448
    rounded = (inputs / step).to(torch.float8_e4m3fn).float() * step
    by_hand = rounded @ fp8.dequantize(codes, scale, torch.float32).T
    assert ((found - by_hand).norm(dim=-1) < 2**-8 * by_hand.norm(dim=-1)).all(), "bfloat16 is all that comes on top"


def test_nobody_computes_in_fp8_or_integers():
    for dtype in (fp8.FP8, torch.int8):
        with pytest.raises(FormatError, match=r"pass torch\.bfloat16"):
            fp8.check_compute_dtype(dtype)


def test_transient_results_share_memory_in_a_thread_and_with_no_other():
    one, two = (fp8.saturating_cast(torch.randn(5, 7)) for _ in range(2))
    first = fp8.dequantize(one, None, torch.float32, transient=True)
    assert torch.equal(first, one.float())
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(fp8.dequantize, two, None, torch.float32, transient=True).result()
    assert torch.equal(first, one.float()) and torch.equal(other, two.float())
    second = fp8.dequantize(two[:3], None, torch.float32, transient=True)
    assert torch.equal(second, two[:3].float()) and second.data_ptr() == first.data_ptr()
    kept = fp8.dequantize(one, None, torch.float32)
    fp8.dequantize(two, None, torch.float32, transient=True)
    assert torch.equal(kept, one.float())
