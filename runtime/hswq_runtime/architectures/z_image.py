"""Z-Image."""

from ..errors import FormatError
from .row import Architecture, Config, Fold, Shapes, count


def _z_image_config(shapes: Shapes) -> Config:
    if "siglip_embedder.1.weight" in shapes:
        raise FormatError(
            "a Z-Image Omni, which reads pictures with an encoder that has not been published; this release knows "
            "Z-Image and Z-Image Turbo"
        )
    dim, patch_values = shapes["x_embedder.weight"]
    head_dim = shapes["layers.0.attention.q_norm.weight"][0]
    patch = 2  # the only patch size that the diffusers converter names
    return {
        "in_channels": patch_values // patch**2,
        "dim": dim,
        "n_layers": count(shapes, "layers"),
        "n_refiner_layers": count(shapes, "noise_refiner"),
        "n_heads": dim // head_dim,
        "n_kv_heads": dim // head_dim,
        "cap_feat_dim": shapes["cap_embedder.1.weight"][1],
        # Rotary axes (index, row, column) share a head as 32:48:48 of 128 in the published models.
        "axes_dims": [head_dim // 4, head_dim * 3 // 8, head_dim * 3 // 8],
        "axes_lens": [1024, 512, 512],
    }


Z_IMAGE = Architecture(
    name="z-image",
    title="Z-Image",
    model_class="ZImageTransformer2DModel",
    pipeline_class="ZImagePipeline",
    component="transformer",
    base_repo="Tongyi-MAI/Z-Image-Turbo",
    licence="apache-2.0",
    # `cap_pad_token` tells it from Lumina 2, whose layers have the same names.
    signature=(
        "x_embedder.weight",
        "cap_pad_token",
        "layers.0.attention.qkv.weight",
        "noise_refiner.0.attention.qkv.weight",
    ),
    config=_z_image_config,
    never_quantized={
        r"^t_embedder\.": "its forward casts the timestep to the weight's dtype, which must not be FP8",
    },
    sensitive=(r"embedder", r"adaLN_modulation", r"final_layer"),
    keep_ratio=0.10,
    steps=9,
    guidance=0.0,
    size=1024,
    text_tokens=64,
    text_only=r"^context_refiner\.",
    picture_only=r"^noise_refiner\.",
    token_multiple=32,
    guided_above=0.0,
    guessed=("axes_dims", "axes_lens"),
    # The modulation between norm and layers only multiplies. Queries and keys are normed, so nothing is moved on.
    folds=(
        Fold(
            "attention_norm1",
            readers=("attention.to_q", "attention.to_k", "attention.to_v"),
            through="attention.to_v",
            after="attention.to_out.0",
        ),
        Fold(
            "ffn_norm1",
            readers=("feed_forward.w1", "feed_forward.w3"),
            through="feed_forward.w3",
            after="feed_forward.w2",
        ),
        Fold("cap_embedder.0", readers=("cap_embedder.1",)),
    ),
    unread=(r"^norm_final\.weight$",),
    civitai_base_models=("ZImageTurbo",),
    # https://github.com/Tongyi-MAI/Z-Image, "Z-Image"
    variants={
        "Tongyi-MAI/Z-Image": {
            "title": "Z-Image Base",
            "steps": 50,
            "guidance": 4.0,
            "civitai_base_models": ("ZImageBase",),
        }
    },
)
