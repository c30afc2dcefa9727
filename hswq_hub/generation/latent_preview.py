"""What a picture looks like while it is being made."""

import numpy as np
import torch

_SIDE = 32
"""Latent positions a side that are decoded at most: a glance, at the cost of a small picture whatever the size."""


@torch.no_grad()
def preview(pipeline, latents: torch.Tensor) -> np.ndarray | None:
    """A small decoded view, uint8 [H, W, 3], of latents [1, C, h, w] between two steps, noise and all.

    Large latents are averaged down to 32 positions a side before the VAE sees them. None where a pipeline packs its
    latents in another shape.
    """
    if latents.ndim != 4:
        return None
    vae = pipeline.vae
    small = latents[:1].to(torch.float32)
    ratio = _SIDE / max(small.shape[-2:])
    if ratio < 1:
        size = [max(1, round(side * ratio)) for side in small.shape[-2:]]
        small = torch.nn.functional.adaptive_avg_pool2d(small, size)
    small = small / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    decoded = vae.decode(small.to(vae.dtype), return_dict=False)[0]
    image = pipeline.image_processor.postprocess(decoded, output_type="np")[0]
    return (image * 255).round().astype(np.uint8)
