"""A small decoded view of the latents between two denoising steps."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_SIDE = 32
"""The most latent positions a side that are decoded: the cost does not grow with the picture."""


@torch.no_grad()
def decode_preview(pipeline: "DiffusionPipeline", latents: torch.Tensor) -> NDArray[np.uint8] | None:
    """Noisy latents [1, C, h, w], decoded to uint8 [H, W, 3].

    Larger latents are averaged down to 32 positions a side first. None where the pipeline packs its latents in
    another shape.
    """
    if latents.ndim != 4:
        return None
    vae = pipeline.vae
    small = latents[:1].to(torch.float32)
    ratio = _SIDE / max(small.shape[-2:])
    if ratio < 1:
        height, width = (max(1, round(side * ratio)) for side in small.shape[-2:])
        small = torch.nn.functional.adaptive_avg_pool2d(small, (height, width))
    small = small / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    decoded = vae.decode(small.to(vae.dtype), return_dict=False)[0]
    image: NDArray[np.float32] = pipeline.image_processor.postprocess(decoded, output_type="np")[0]
    return (image * 255).round().astype(np.uint8)
