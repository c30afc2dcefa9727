"""The FP8 grid and the casts to it and from it."""

import pytest
import torch

from hswq_runtime import fp8


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


def test_bfloat16_product_is_rounded_once():
    scale, codes = torch.tensor([0.0123]), fp8.saturating_cast(fp8.grid())
    once = (codes.double() * scale.double()).float().bfloat16()
    assert torch.equal(fp8.dequantize(codes, scale, torch.bfloat16), once)
