"""FLUX.1: dev, its descendants Krea and Kontext, and schnell."""

from dataclasses import replace

from ..errors import FormatError
from .row import TEXT_STREAM, Architecture, Config, Shapes, count


def rotary_axes(head: int) -> list[int]:
    """Channels of a head for each rotary axis (index, row, column): 16, 56 and 56 of 128, as in published models."""
    return [head // 8, head * 7 // 16, head * 7 // 16]


def head_dim(shapes: Shapes) -> int:
    """Channels of an attention head."""
    return shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]


def block_config(shapes: Shapes) -> Config:
    """The part of the configuration that all models with double and single blocks share: blocks, heads, inputs."""
    width, channels = shapes["img_in.weight"]
    return {
        "in_channels": channels,
        "num_layers": count(shapes, "double_blocks"),
        "num_single_layers": count(shapes, "single_blocks"),
        "attention_head_dim": head_dim(shapes),
        "num_attention_heads": width // head_dim(shapes),
        "joint_attention_dim": shapes["txt_in.weight"][1],
    }


def _flux_config(shapes: Shapes) -> Config:
    channels = shapes["img_in.weight"][1]
    out_channels = shapes["final_layer.linear.weight"][0]
    if channels != out_channels:
        raise FormatError(
            f"a FLUX.1 that is given a picture besides the prompt ({channels} input channels instead of "
            f"{out_channels}: Fill, Canny or Depth), which this release does not quantize, because it calibrates with "
            "prompts alone"
        )
    return {
        **block_config(shapes),
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": rotary_axes(head_dim(shapes)),
    }


# https://huggingface.co/docs/diffusers/api/pipelines/flux
FLUX_DEV = Architecture(
    name="flux-1-dev",
    title="FLUX.1 [dev]",
    model_class="FluxTransformer2DModel",
    pipeline_class="FluxPipeline",
    component="transformer",
    base_repo="black-forest-labs/FLUX.1-dev",
    licence="other",
    licence_name="flux-1-dev-non-commercial-license",
    licence_link="https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    # `vector_in` tells it from Chroma, whose blocks have the same names.
    signature=(
        "double_blocks.0.img_attn.norm.query_norm.scale",
        "single_blocks.0.linear1.weight",
        "vector_in.in_layer.weight",
    ),
    config=_flux_config,
    never_quantized={},
    sensitive=(r"embed", r"norm", r"^proj_out$"),
    keep_ratio=0.10,
    steps=50,
    guidance=3.5,
    size=1024,
    text_tokens=512,
    text_only=TEXT_STREAM,
    guided_above=None,
    guessed=("axes_dims_rope",),
    fits=lambda config: bool(config.get("guidance_embeds", False)),
    civitai_base_models=("Flux.1 D",),
    variants={
        "black-forest-labs/FLUX.1-Krea-dev": {
            "title": "FLUX.1 Krea [dev]",
            "steps": 28,
            "guidance": 4.5,
            "civitai_base_models": ("Flux.1 Krea",),
        },
        "black-forest-labs/FLUX.1-Kontext-dev": {
            "title": "FLUX.1 Kontext [dev]",
            "steps": 28,
            "guidance": 2.5,
            "civitai_base_models": ("Flux.1 Kontext",),
        },
    },
)

FLUX_SCHNELL = replace(
    FLUX_DEV,
    name="flux-1-schnell",
    title="FLUX.1 [schnell]",
    base_repo="black-forest-labs/FLUX.1-schnell",
    licence="apache-2.0",
    licence_name=None,
    licence_link=None,
    steps=4,
    guidance=0.0,
    fits=lambda config: not config.get("guidance_embeds", False),
    text_tokens=256,
    call={"max_sequence_length": 256},
    civitai_base_models=("Flux.1 S",),
    variants={},
)
