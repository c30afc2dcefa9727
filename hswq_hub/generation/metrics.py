"""How far one picture is from another."""

import numpy as np
import torch
from skimage import metrics  # which loads scipy.stats when it is first used

DATA_RANGE = 255


def ssim(reference: np.ndarray, image: np.ndarray) -> float:
    """Structural similarity of two uint8 [H, W, 3] pictures, mean over pixels and channels; 1 for equal ones.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, with its own
    settings: Gaussian window of 11×11 and σ 1.5, K1 0.01, K2 0.03, data range 255, float arithmetic.
    """
    return float(
        metrics.structural_similarity(
            reference,
            image,
            data_range=DATA_RANGE,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def psnr(reference: np.ndarray, image: np.ndarray) -> float | None:
    """Peak signal-to-noise ratio in dB of two uint8 pictures of one shape; None for equal ones (it is infinite)."""
    if np.array_equal(reference, image):
        return None
    return float(metrics.peak_signal_noise_ratio(reference, image, data_range=DATA_RANGE))


def latent_mse(reference: torch.Tensor, latents: torch.Tensor) -> float:
    """Mean squared difference of two latents of one shape, in float64."""
    return (reference.double() - latents.double()).square().mean().item()
