"""AuraFlow, and Pony V7, which was trained from it."""

from .row import TEXT_STREAM, Architecture, Config, Shapes, count

_HEAD = 256
"""Channels of an attention head in the published models; no tensor's shape shows it."""


def _aura_flow_config(shapes: Shapes) -> Config:
    width, patch_values = shapes["init_x_linear.weight"]
    patch = 2  # the only patch size that there is
    return {
        "patch_size": patch,
        "in_channels": patch_values // patch**2,
        "num_mmdit_layers": count(shapes, "double_layers"),
        "num_single_dit_layers": count(shapes, "single_layers"),
        "attention_head_dim": _HEAD,
        "num_attention_heads": width // _HEAD,
        "joint_attention_dim": shapes["cond_seq_linear.weight"][1],
        "caption_projection_dim": shapes["cond_seq_linear.weight"][0],
        "out_channels": shapes["final_linear.weight"][0] // patch**2,
        "pos_embed_max_size": shapes["positional_encoding"][1],
    }


AURA_FLOW = Architecture(
    name="aura-flow",
    title="AuraFlow",
    model_class="AuraFlowTransformer2DModel",
    pipeline_class="AuraFlowPipeline",
    component="transformer",
    base_repo="fal/AuraFlow-v0.3",
    licence="apache-2.0",
    signature=("double_layers.0.attn.w2q.weight", "double_layers.0.attn.w1q.weight", "cond_seq_linear.weight"),
    config=_aura_flow_config,
    never_quantized={},
    sensitive=(r"embed", r"time_step_proj", r"norm", r"^proj_out$"),
    keep_ratio=0.10,
    # The defaults of its pipeline.
    steps=50,
    guidance=3.5,
    size=1024,
    text_tokens=264,
    text_only=TEXT_STREAM,
    guessed=("patch_size", "attention_head_dim", "num_attention_heads"),
    variants={
        "purplesmartai/pony-v7-base": {
            "title": "Pony V7",
            "licence": "other",
            "licence_name": "pony-v7",
            "licence_link": "https://purplesmart.ai/license",
            "civitai_base_models": ("Pony V7",),
        }
    },
)
