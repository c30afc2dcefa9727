"""Chroma: FLUX.1 [schnell] with its modulation layers replaced by one small network."""

from .flux import block_config, head_dim, rotary_axes
from .row import TEXT_STREAM, Architecture, Config, Shapes


def _chroma_config(shapes: Shapes) -> Config:
    hidden, approximator_channels = shapes["distilled_guidance_layer.in_proj.weight"]
    return {
        **block_config(shapes),
        "axes_dims_rope": rotary_axes(head_dim(shapes)),
        "approximator_num_channels": approximator_channels,
        "approximator_hidden_dim": hidden,
        "approximator_layers": len([key for key in shapes if key.startswith("distilled_guidance_layer.norms.")]),
    }


CHROMA = Architecture(
    name="chroma",
    title="Chroma",
    model_class="ChromaTransformer2DModel",
    pipeline_class="ChromaPipeline",
    component="transformer",
    base_repo="lodestones/Chroma1-HD",
    licence="apache-2.0",
    # `img_in` tells it from Chroma Radiance, which works on pixels.
    signature=(
        "distilled_guidance_layer.in_proj.weight",
        "double_blocks.0.img_attn.norm.query_norm.scale",
        "single_blocks.0.linear1.weight",
        "img_in.weight",
    ),
    config=_chroma_config,
    never_quantized={},
    sensitive=(r"embed", r"distilled_guidance_layer", r"^proj_out$"),
    keep_ratio=0.10,
    # https://huggingface.co/lodestones/Chroma1-HD
    steps=40,
    guidance=3.0,
    size=1024,
    text_tokens=512,
    text_only=TEXT_STREAM,
    guessed=("axes_dims_rope",),
    civitai_base_models=("Chroma",),
)
