"""The tiny components that make a pipeline of a denoiser of `originals.py`."""

from pathlib import Path

import diffusers
import torch
import transformers

from hswq_hub.sources.find import resolve


def _clip(kind, tokenizer) -> torch.nn.Module:
    return kind(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, projection_dim=32, num_hidden_layers=2,
            num_attention_heads=2, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def _t5(width: int, tokenizer) -> torch.nn.Module:
    size = len(tokenizer)
    config = transformers.T5Config(vocab_size=size, d_model=width, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config)


def _vae(kind=diffusers.AutoencoderKL, **options) -> torch.nn.Module:
    blocks = {
        f"{way}_block_types": [f"{way.title()}{kinds}Block2D"] * 2
        for way, kinds in [("down", "Encoder"), ("up", "Decoder")]
    }
    return kind(**blocks, block_out_channels=[8, 8], norm_num_groups=2, latent_channels=4, sample_size=32, **options)


def write_base(folder: Path, name: str) -> Path:
    """A diffusers folder with all components of a tiny pipeline but the denoiser: random weights, real classes."""
    demo = Path(resolve("demo").base)
    if name == "z_image":
        return demo
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo / "tokenizer")
    short = transformers.AutoTokenizer.from_pretrained(demo / "tokenizer", model_max_length=77)
    size, scheduler = len(tokenizer), diffusers.FlowMatchEulerDiscreteScheduler()
    shifted = {"scaling_factor": 1.0, "shift_factor": 0.0}
    if name == "flux":
        clip = _clip(transformers.CLIPTextModel, short)
        found = {
            "text_encoder": clip,
            "tokenizer": short,
            "text_encoder_2": _t5(32, tokenizer),
            "tokenizer_2": tokenizer,
        }
        pipeline, vae = diffusers.FluxPipeline, _vae(**shifted)
    elif name == "sd3":
        clips = [_clip(transformers.CLIPTextModelWithProjection, short) for _ in range(2)]
        found = {
            "text_encoder": clips[0],
            "tokenizer": short,
            "text_encoder_2": clips[1],
            "tokenizer_2": short,
            "text_encoder_3": _t5(64, tokenizer),
            "tokenizer_3": tokenizer,
        }
        pipeline, vae = diffusers.StableDiffusion3Pipeline, _vae(**shifted)
    elif name == "chroma":
        pipeline, vae, found = (
            diffusers.ChromaPipeline,
            _vae(**shifted),
            {"text_encoder": _t5(32, tokenizer), "tokenizer": tokenizer},
        )
    elif name == "aura_flow":
        config = transformers.UMT5Config(vocab_size=size, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
        found = {"text_encoder": transformers.UMT5EncoderModel(config), "tokenizer": tokenizer}
        pipeline, vae = diffusers.AuraFlowPipeline, _vae(**shifted)
    elif name == "flux2":
        config = transformers.Qwen3Config(
            vocab_size=size, hidden_size=16, intermediate_size=16, num_hidden_layers=28, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8,
        )  # fmt: skip
        found = {"text_encoder": transformers.Qwen3ForCausalLM(config), "tokenizer": tokenizer, "is_distilled": True}
        pipeline, vae = diffusers.Flux2KleinPipeline, _vae(diffusers.AutoencoderKLFlux2)
    elif name == "qwen_image":
        text = {"vocab_size": size, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
        vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 64, "intermediate_size": 16}
        rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
        config = transformers.Qwen2_5_VLConfig(
            text_config=text | {"rope_parameters": rope}, vision_config=vision, image_token_id=1, video_token_id=2,
            vision_start_token_id=3, vision_end_token_id=4,
        )  # fmt: skip
        encoder = transformers.Qwen2_5_VLForConditionalGeneration(config)
        found, pipeline = {"text_encoder": encoder, "tokenizer": tokenizer}, diffusers.QwenImagePipeline
        vae = diffusers.AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
            latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        )  # fmt: skip
    pipeline(scheduler=scheduler, vae=vae, transformer=None, **found).save_pretrained(folder)
    return folder
