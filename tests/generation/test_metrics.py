"""The metrics against their formulas written out."""

import numpy as np
import pytest
import torch

from hswq_hub.generation.metrics import latent_mse, psnr, ssim


def pictures(seed=0, noise=12.0):
    rng = np.random.default_rng(seed)
    one = rng.integers(0, 256, (24, 20, 3)).astype(np.uint8)
    other = np.clip(one + rng.normal(0, noise, one.shape), 0, 255).round().astype(np.uint8)
    return one, other


def ssim_by_the_paper(one, other) -> float:
    """Wang et al. 2004, eq. 13, one 11×11 Gaussian window at a time, where it fits whole."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2, values = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for channel in range(3):
        x, y = one[..., channel].astype(np.float64), other[..., channel].astype(np.float64)
        for i in range(5, x.shape[0] - 5):
            for j in range(5, x.shape[1] - 5):
                a, b = x[i - 5 : i + 6, j - 5 : j + 6], y[i - 5 : i + 6, j - 5 : j + 6]
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                cov = (window * (a - ma) * (b - mb)).sum()
                values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(values))


def test_ssim_is_that_of_the_paper():
    one, other = pictures()
    assert ssim(one, other) == pytest.approx(ssim_by_the_paper(one, other), abs=1e-6)
    assert ssim(one, one) == 1


def test_psnr():
    one, other = pictures()
    mse = ((one.astype(float) - other) ** 2).mean()
    assert psnr(one, other) == pytest.approx(10 * np.log10(255**2 / mse))
    assert psnr(one, one) is None


def test_difference_of_unsigned_pixels_does_not_wrap_around():
    black, dark = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 1, np.uint8)
    assert psnr(black, dark) == psnr(dark, black) == pytest.approx(20 * np.log10(255))


def test_latent_mse():
    assert latent_mse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])) == 2
