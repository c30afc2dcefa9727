"""Qwen-Image. Single files have diffusers' own names."""

from .flux import rotary_axes
from .row import Architecture, Config, Shapes, count


def _qwen_image_config(shapes: Shapes) -> Config:
    width, channels = shapes["img_in.weight"]
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    patch = 2  # diffusers' pipelines pack 2 x 2 latent pixels whatever the configuration says
    return {
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // patch**2,
        "num_layers": count(shapes, "transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "axes_dims_rope": rotary_axes(head),
    }


# https://github.com/QwenLM/Qwen-Image
QWEN_IMAGE = Architecture(
    name="qwen-image",
    title="Qwen-Image",
    model_class="QwenImageTransformer2DModel",
    pipeline_class="QwenImagePipeline",
    component="transformer",
    base_repo="Qwen/Qwen-Image",
    licence="apache-2.0",
    signature=(
        "transformer_blocks.0.img_mod.1.weight",
        "transformer_blocks.0.txt_mlp.net.0.proj.weight",
        "txt_norm.weight",
        "img_in.weight",
    ),
    config=_qwen_image_config,
    never_quantized={},
    sensitive=(r"embed", r"^img_in$", r"^txt_in$", r"_mod\.1$", r"norm_out", r"^proj_out$"),
    keep_ratio=0.10,
    steps=50,
    guidance=4.0,
    size=1328,
    text_tokens=64,
    text_only=r"\.add_[qkv]_proj$|\.to_add_out$|\.txt_mlp\.",
    guessed=("patch_size", "axes_dims_rope"),
    guidance_argument="true_cfg_scale",
    negative_prompt=" ",
    civitai_base_models=("Qwen",),
    variants={"Qwen/Qwen-Image-2512": {"title": "Qwen-Image-2512"}},
)
