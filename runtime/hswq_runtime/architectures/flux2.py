"""FLUX.2 [klein], of 4 and 9 billion parameters."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .flux import block_config, head_dim
from .row import TEXT_STREAM, Architecture, Config, Shapes


def _flux2_config(shapes: Shapes) -> Config:
    mlp_width, width = shapes["double_blocks.0.img_mlp.2.weight"][1], shapes["img_in.weight"][0]
    return {
        **block_config(shapes),
        "timestep_guidance_channels": shapes["time_in.in_layer.weight"][1],
        "mlp_ratio": mlp_width / width,
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        # Four rotary axes share a head equally.
        "axes_dims_rope": [head_dim(shapes) // 4] * 4,
    }


def _is_klein(config: Mapping[str, Any]) -> bool:
    """Whether it is not FLUX.2 [dev], which embeds the guidance scale and has another text encoder."""
    return not config.get("guidance_embeds", True)


def _is_9b(config: Mapping[str, Any]) -> bool:
    return bool(config.get("num_attention_heads", 48) >= 32)


# https://github.com/black-forest-labs/flux2
FLUX2_KLEIN_4B = Architecture(
    name="flux-2-klein-4b",
    title="FLUX.2 [klein] 4B",
    model_class="Flux2Transformer2DModel",
    pipeline_class="Flux2KleinPipeline",
    component="transformer",
    base_repo="black-forest-labs/FLUX.2-klein-4B",
    licence="apache-2.0",
    # One modulation for all blocks tells it from FLUX.1, which has one in each.
    signature=(
        "single_stream_modulation.lin.weight",
        "double_stream_modulation_img.lin.weight",
        "double_blocks.0.img_attn.qkv.weight",
        "single_blocks.0.linear1.weight",
    ),
    config=_flux2_config,
    never_quantized={},
    sensitive=(r"embed", r"modulation", r"norm", r"^proj_out$"),
    keep_ratio=0.10,
    steps=4,
    guidance=1.0,
    size=1024,
    text_tokens=512,
    text_only=TEXT_STREAM,
    guessed=("axes_dims_rope",),
    fits=lambda config: _is_klein(config) and not _is_9b(config),
    civitai_base_models=("Flux.2 Klein 4B",),
    takes_negative_prompt=False,
    variants={
        "black-forest-labs/FLUX.2-klein-base-4B": {
            "title": "FLUX.2 [klein] 4B Base",
            "steps": 50,
            "guidance": 4.0,
            "civitai_base_models": ("Flux.2 Klein 4B-base",),
        }
    },
)

FLUX2_KLEIN_9B = replace(
    FLUX2_KLEIN_4B,
    name="flux-2-klein-9b",
    title="FLUX.2 [klein] 9B",
    base_repo="black-forest-labs/FLUX.2-klein-9B",
    licence="other",
    licence_name="flux-non-commercial-license",
    licence_link="https://huggingface.co/black-forest-labs/FLUX.2-klein-9B/blob/main/LICENSE.md",
    fits=lambda config: _is_klein(config) and _is_9b(config),
    civitai_base_models=("Flux.2 Klein 9B",),
    variants={
        "black-forest-labs/FLUX.2-klein-base-9B": {
            "title": "FLUX.2 [klein] 9B Base",
            "steps": 50,
            "guidance": 4.0,
            "civitai_base_models": ("Flux.2 Klein 9B-base",),
        }
    },
)
