"""A one-block Z-Image with random weights, in the layout in which checkpoints are distributed."""

from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file

PREFIX = "model.diffusion_model."
CONFIG = {
    "in_channels": 4,
    "dim": 96,
    "n_layers": 1,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 32,
    "axes_dims": [12, 18, 18],
    "axes_lens": [1024, 512, 512],
}


def model(seed: int = 0) -> diffusers.ZImageTransformer2DModel:
    torch.manual_seed(seed)
    tiny = diffusers.ZImageTransformer2DModel(**CONFIG)
    for parameter in tiny.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return tiny.to(torch.bfloat16).eval()


def original_layout(state: dict[str, torch.Tensor], prefix: str = PREFIX) -> dict[str, torch.Tensor]:
    """The inverse of diffusers' converter, written out independently of it."""
    renames = {
        "all_final_layer.2-1.": "final_layer.",
        "all_x_embedder.2-1.": "x_embedder.",
        ".attention.to_out.0.": ".attention.out.",
        ".attention.norm_q.": ".attention.q_norm.",
        ".attention.norm_k.": ".attention.k_norm.",
    }
    stored = {}
    for name, tensor in state.items():
        for new, old in renames.items():
            name = name.replace(new, old)
        stored[name] = tensor
    for name in [n for n in stored if n.endswith(".to_q.weight")]:
        rows = [stored.pop(name.replace("to_q", part)) for part in ("to_q", "to_k", "to_v")]
        stored[name.replace("to_q", "qkv")] = torch.cat(rows)
    return {prefix + name: tensor.contiguous() for name, tensor in stored.items()}


def checkpoint(folder: Path, prefix: str = PREFIX, metadata=None, change=None) -> Path:
    """Write the tiny model to `folder`/tiny.safetensors; `change` may alter the tensors first."""
    tensors = original_layout(model().state_dict(), prefix)
    if change is not None:
        change(tensors)
    path = folder / "tiny.safetensors"
    save_file(tensors, path, metadata=metadata)
    return path


def inputs(seed: int = 1) -> dict:
    """One call's arguments, float32."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": [torch.randn(4, 1, 8, 8, generator=generator)],
        "t": torch.tensor([0.4]),
        "cap_feats": [torch.randn(20, 32, generator=generator)],
        "return_dict": False,
    }


@torch.no_grad()
def run(denoiser) -> torch.Tensor:
    return denoiser(**inputs())[0][0]
