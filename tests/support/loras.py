"""LoRAs for the tiny model in every layout, and pipelines to load them into."""

import torch
from diffusers import ZImagePipeline

from hswq_runtime import load_model

from . import tiny

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3"]
RANK = 4


def weights(seed: int, strength: float = 0.6) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B for every large layer of the main block, by its name in diffusers."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, module in tiny.model().named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith("layers.0.") and name.endswith(tuple(TARGETS)):
            down = torch.randn(RANK, module.in_features, generator=generator) / module.in_features**0.5
            up = torch.randn(module.out_features, RANK, generator=generator) * strength
            found[name] = (down, up)
    return found


def diffusers_layout(seed=0):
    return {
        f"transformer.{name}.lora_{part}.weight": tensor
        for name, pair in weights(seed).items()
        for part, tensor in zip("AB", pair, strict=True)
    }


def comfyui_layout(seed=0):
    renamed = {key: value for key, value in diffusers_layout(seed).items()}
    return {key.replace("transformer.", "diffusion_model."): value for key, value in renamed.items()}


def kohya_layout(seed=0):
    stored = {}
    for name, (down, up) in weights(seed).items():
        key = "lora_unet_" + name.replace(".", "_")
        stored |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        stored[f"{key}.alpha"] = torch.tensor(float(RANK))
    return stored


LAYOUTS = {"diffusers": diffusers_layout, "comfyui": comfyui_layout, "kohya": kohya_layout}


def pipeline(denoiser):
    """A pipeline is what people load a LoRA into; its other parts play no role here."""
    parts = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer"))
    return ZImagePipeline(transformer=denoiser, **parts)


def quantized(tmp_path, style="v2"):
    return pipeline(load_model(tiny.quantized(tmp_path, style), torch.float32))


def plain(tmp_path, style="v2"):
    return pipeline(load_model(tiny.quantized(tmp_path, style), torch.float32, dequantize=True))


def distance(one, other):
    return ((one - other).norm() / other.norm()).item()
