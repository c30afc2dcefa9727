"""Stable Diffusion XL and 1.5: UNets in the layout of the original (LDM) code, alone or with everything around them.

Pony, Illustrious, NoobAI and many others are SDXL with other weights: same keys, same shapes. They differ in what the
UNet predicts, noise (epsilon) or velocity (v). A file's keys or metadata say which, see :func:`_scheduler`.
"""

from collections.abc import Collection, Mapping
from typing import Any

from ..errors import UnknownArchitectureError
from .row import Architecture, Config, Shapes

_TEXT_ENCODER, _VAE = "text_encoder", "vae"
_SENSITIVE = (r"^conv_in$", r"^conv_out$", r"^time_embedding\.", r"^add_embedding\.", r"time_emb_proj$")
_SD_15_HEADS = 8
_SDXL_HEAD_DIM = 64
_SDXL_TIME_DIM = 256
"""Embedding size of each of the six numbers (size, crop, target size) that SDXL is conditioned on."""


def _common_config(shapes: Shapes) -> Config:
    """The part of the configuration that both families share.

    A level (one resolution) is a number of residual blocks, each followed by `depth` transformer layers; a downsampler
    stands between two levels. The LDM layout numbers them all consecutively, after the first convolution.
    """
    numbers = {int(key.split(".")[1]) for key in shapes if key.startswith("input_blocks.")}
    blocks = len(numbers)
    if numbers != set(range(blocks)):
        raise ValueError(f"input blocks are missing among {sorted(numbers)}")
    levels = 1 + sum(key.startswith("input_blocks.") and key.endswith(".0.op.weight") for key in shapes)
    per_level = (blocks - levels) // levels

    def first_block(level: int) -> int:
        return 1 + level * (per_level + 1)

    depths = [_depth(shapes, f"input_blocks.{first_block(level)}.1.") for level in range(levels)]
    for level, depth in enumerate(depths):
        down = [f"input_blocks.{first_block(level) + i}.1." for i in range(per_level)]
        up = [f"output_blocks.{(levels - 1 - level) * (per_level + 1) + i}.1." for i in range(per_level + 1)]
        if any(_depth(shapes, block) != depth for block in down + up):
            raise UnknownArchitectureError(
                "its blocks have different numbers of transformer layers at one resolution, as distilled UNets "
                "(SSD-1B, Vega) have; only the full UNet is supported"
            )
    taken, given = shapes["input_blocks.0.0.weight"][1], shapes["out.2.weight"][0]
    if taken != given:
        raise UnknownArchitectureError(
            f"it takes {taken} channels and gives {given}, as UNets for inpainting and editing do; they make no "
            "picture from a prompt alone, so there is nothing to calibrate them with"
        )
    widths = [shapes[f"input_blocks.{first_block(level)}.0.out_layers.3.weight"][0] for level in range(levels)]
    return {
        "in_channels": taken,
        "out_channels": given,
        "layers_per_block": per_level,
        "block_out_channels": widths,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        # The middle block has as many transformer layers as the last level, or one.
        "transformer_layers_per_block": [max(depth, 1) for depth in depths],
        "cross_attention_dim": shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
    }


def _depth(shapes: Shapes, block: str) -> int:
    """The number of transformer layers in `block`."""
    start = f"{block}transformer_blocks."
    return len({key[len(start) :].split(".")[0] for key in shapes if key.startswith(start)})


def _sdxl_config(shapes: Shapes) -> Config:
    config = _common_config(shapes)
    channels = config["block_out_channels"]
    if len(channels) > 3:
        raise UnknownArchitectureError(
            "it is the SDXL refiner, which finishes another model's pictures; quantize the base model"
        )
    return config | {
        "attention_head_dim": [max(width // _SDXL_HEAD_DIM, 1) for width in channels],  # diffusers means their number
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": _SDXL_TIME_DIM,
        "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
        "sample_size": 128,
    }


def _sd_15_config(shapes: Shapes) -> Config:
    config = _common_config(shapes)
    if len(shapes["middle_block.1.proj_in.weight"]) == 2:
        raise UnknownArchitectureError("it is Stable Diffusion 2, which is not supported")
    return config | {"attention_head_dim": _SD_15_HEADS, "sample_size": 64}  # diffusers means their number


def _is_sdxl(config: Mapping[str, Any]) -> bool:
    channels = config.get("block_out_channels") or ()
    return config.get("addition_embed_type") == "text_time" and len(channels) < 4 and _makes_pictures(config)


def _is_sd_15(config: Mapping[str, Any]) -> bool:
    other = config.get("addition_embed_type") or config.get("use_linear_projection") or config.get("class_embed_type")
    return not other and _makes_pictures(config)


def _makes_pictures(config: Mapping[str, Any]) -> bool:
    return bool(config.get("in_channels", 4) == config.get("out_channels", 4))


def _scheduler(keys: Collection[str], metadata: Mapping[str, str]) -> Config:
    """The prediction type that a file states, as entries of a diffusers scheduler's configuration; {} if none.

    ComfyUI and NoobAI's own files state it with the empty tensors `v_pred` and `ztsnr`. The SAI model specification
    states it in the metadata, "v" or "epsilon"; ComfyUI has another key for that.
    """
    if "edm_mean" in keys or "edm_vpred.sigma_max" in keys:
        raise UnknownArchitectureError(
            "it was trained with the EDM noise schedule (Playground 2.5, CosXL), which is not supported"
        )
    said = metadata.get("modelspec.prediction_type") or metadata.get("modelspec.predict_key")
    if "v_pred" in keys or said == "v":
        zero_snr = {"rescale_betas_zero_snr": True} if "ztsnr" in keys else {}
        return {"prediction_type": "v_prediction"} | zero_snr
    return {"prediction_type": "epsilon"} if said == "epsilon" else {}


SDXL = Architecture(
    name="sdxl",
    title="Stable Diffusion XL",
    model_class="UNet2DConditionModel",
    pipeline_class="StableDiffusionXLPipeline",
    component="unet",
    base_repo="stabilityai/stable-diffusion-xl-base-1.0",
    licence="openrail++",
    # `label_emb` tells it from 1.5; attention begins at the second resolution, in 1.5 at the first.
    signature=(
        "input_blocks.0.0.weight",
        "label_emb.0.0.weight",
        "input_blocks.4.1.proj_in.weight",
        "middle_block.1.proj_in.weight",
    ),
    config=_sdxl_config,
    never_quantized={},  # but the first convolution, as in every architecture
    sensitive=_SENSITIVE,
    keep_ratio=0.20,
    steps=28,
    guidance=5.0,
    size=1024,
    guessed=("attention_head_dim", "addition_time_embed_dim", "sample_size"),
    fits=_is_sdxl,
    converter_prefix="model.diffusion_model.",
    bundled={
        _TEXT_ENCODER: "conditioner.embedders.0.",
        "text_encoder_2": "conditioner.embedders.1.",
        _VAE: "first_stage_model.",
    },
    scheduler=_scheduler,
    prompt_styles={"illustrious": "tags", "noobai": "tags", "pony": "pony"},
)

SD_15 = Architecture(
    name="sd-1.5",
    title="Stable Diffusion 1.5",
    model_class="UNet2DConditionModel",
    pipeline_class="StableDiffusionPipeline",
    component="unet",
    base_repo="stable-diffusion-v1-5/stable-diffusion-v1-5",
    licence="creativeml-openrail-m",
    signature=(
        "input_blocks.0.0.weight",
        "input_blocks.1.1.proj_in.weight",
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "middle_block.1.proj_in.weight",
    ),
    config=_sd_15_config,
    never_quantized={},
    sensitive=_SENSITIVE,
    keep_ratio=0.20,
    steps=25,
    guidance=7.5,
    size=512,
    guessed=("attention_head_dim", "sample_size"),
    fits=_is_sd_15,
    converter_prefix="model.diffusion_model.",
    bundled={_TEXT_ENCODER: "cond_stage_model.", _VAE: "first_stage_model."},
    # It blackens pictures that it takes for obscene; that would count as an error of the quantization.
    left_out=("safety_checker", "feature_extractor"),
    scheduler=_scheduler,
)
