"""Stable Diffusion 3.5, Medium and Large."""

from dataclasses import replace
from math import isqrt

from .row import TEXT_STREAM, Architecture, Config, Shapes, count


def _sd3_config(shapes: Shapes) -> Config:
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    head = shapes["joint_blocks.0.x_block.attn.ln_q.weight"][0]
    blocks = count(shapes, "joint_blocks")
    return {
        "patch_size": patch,
        "in_channels": channels,
        "num_layers": blocks,
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "pos_embed_max_size": isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": [i for i in range(blocks) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes],
        "qk_norm": "rms_norm",
    }


def _table_values(config: Config) -> int:
    """Of sines and cosines: for each place of a square, all channels."""
    side = config.get("pos_embed_max_size") or config.get("sample_size", 0) // config.get("patch_size", 1)
    return int(side**2 * config.get("num_attention_heads", 0) * config.get("attention_head_dim", 0))


# https://huggingface.co/stabilityai/stable-diffusion-3.5-medium
SD35_MEDIUM = Architecture(
    name="sd-3.5-medium",
    title="Stable Diffusion 3.5 Medium",
    model_class="SD3Transformer2DModel",
    pipeline_class="StableDiffusion3Pipeline",
    component="transformer",
    base_repo="stabilityai/stable-diffusion-3.5-medium",
    licence="other",
    licence_name="stabilityai-ai-community",
    licence_link="https://huggingface.co/stabilityai/stable-diffusion-3.5-medium/blob/main/LICENSE.md",
    # `ln_q` tells it from Stable Diffusion 3.0.
    signature=(
        "joint_blocks.0.x_block.attn.ln_q.weight",
        "joint_blocks.0.context_block.attn.qkv.weight",
        "pos_embed",
    ),
    config=_sd3_config,
    never_quantized={},
    sensitive=(r"embed", r"norm", r"^proj_out$"),
    keep_ratio=0.10,
    steps=40,
    guidance=4.5,
    size=1024,
    text_tokens=333,
    text_only=TEXT_STREAM,
    fits=lambda config: bool(config.get("dual_attention_layers")),
    table_values=_table_values,
)

# https://huggingface.co/stabilityai/stable-diffusion-3.5-large
SD35_LARGE = replace(
    SD35_MEDIUM,
    name="sd-3.5-large",
    title="Stable Diffusion 3.5 Large",
    base_repo="stabilityai/stable-diffusion-3.5-large",
    licence_link="https://huggingface.co/stabilityai/stable-diffusion-3.5-large/blob/main/LICENSE.md",
    steps=28,
    guidance=3.5,
    fits=lambda config: not config.get("dual_attention_layers"),
    variants={
        "stabilityai/stable-diffusion-3.5-large-turbo": {
            "title": "Stable Diffusion 3.5 Large Turbo",
            "licence_link": "https://huggingface.co/stabilityai/stable-diffusion-3.5-large-turbo/blob/main/LICENSE.md",
            "steps": 4,
            "guidance": 1.0,
        }
    },
)
