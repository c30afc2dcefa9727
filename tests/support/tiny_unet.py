"""Small UNets with random weights, text encoders and a VAE around them, in the layout of the original (LDM) code.

The layouts are spelled out here a second time, as the inverse of diffusers' converters and independently of them.
"""

import json
import re
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

PREFIX = "model.diffusion_model."
LAYERS = 2
WIDTH, WIDTH_2, TOKENS = 32, 48, 77

CONFIGS = {
    "sdxl": {
        "block_out_channels": (32, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1),
        "attention_head_dim": (1, 1),
        "cross_attention_dim": WIDTH + WIDTH_2,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 6 * 256 + WIDTH_2,
        "sample_size": 128,
    },
    "sd-1.5": {
        "block_out_channels": (32, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 8,
        "cross_attention_dim": WIDTH,
        "sample_size": 64,
    },
}

FULL_SIZE = {
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
    },
    "sd-1.5": {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
}
"""What the config.json of the published base models says, as far as it differs from the class's defaults."""
PARAMETERS = {"sdxl": 2_567_463_684, "sd-1.5": 859_520_964}


def unet(kind: str, seed: int = 0) -> diffusers.UNet2DConditionModel:
    torch.manual_seed(seed)
    tiny = diffusers.UNet2DConditionModel(**CONFIGS[kind])
    for name, parameter in tiny.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.7 / parameter[0].numel() ** 0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
    return tiny.to(torch.bfloat16).eval()


_TOP = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}
_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.")


def original_unet(state: dict, prefix: str = PREFIX, layers: int = LAYERS) -> dict:
    """A UNet's state (tensors or anything else) under the names of the LDM code."""
    with_attention = {name.split(".")[1] for name in state if re.match(r"up_blocks\.\d+\.attentions", name)}
    stored = {}
    for name, value in state.items():
        old = next((new + name.removeprefix(ours) for ours, new in _TOP.items() if name.startswith(ours)), name)
        if match := _BLOCK.match(name):
            side, block, kind, number = match[1], int(match[2]), match[3], int(match[4])
            row = block * (layers + 1) + (layers if kind.endswith("samplers") else number) + (side == "down")
            place = {"resnets": "0", "attentions": "1", "downsamplers": "0"}.get(kind)
            place = place or ("2" if match[2] in with_attention else "1")
            rest = name[match.end() :].replace("conv.", "op.") if kind == "downsamplers" else name[match.end() :]
            old = f"{'input' if side == 'down' else 'output'}_blocks.{row}.{place}.{rest}"
        if ".resnets." in name:
            head, tail = re.match(r"(.*?_blocks?\.(?:\d+\.)?\d+\.)(.*)", old).groups()
            if "_blocks." not in old:
                head, tail = re.match(r"(middle_block\.\d\.)(.*)", old).groups()
            for ours, theirs in _RESNET.items():
                if tail.startswith(ours):
                    tail = theirs + tail.removeprefix(ours)
                    break
            old = head + tail
        stored[prefix + old] = value
    return stored


def original_vae(state: dict, levels: int) -> dict:
    """A VAE's state under the names of the LDM code; attention's matrices are convolutions there."""
    stored = {}
    for name, tensor in state.items():
        old = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block.", name)
        old = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample.", old)
        old = re.sub(
            r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers\.0)\.",
            lambda m: f"decoder.up.{levels - 1 - int(m[1])}.{'block' if m[2] == 'resnets' else 'upsample'}.",
            old,
        )
        old = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", old)
        old = old.replace("conv_norm_out.", "norm_out.").replace("conv_shortcut.", "nin_shortcut.")
        if "mid_block.attentions.0." in old:
            for ours, theirs in {"group_norm.": "norm.", "to_out.0.": "proj_out.", "to_": ""}.items():
                old = old.replace(ours, theirs)
            old = old.replace("mid_block.attentions.0.", "mid.attn_1.")
            if tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
        stored[f"first_stage_model.{old}"] = tensor
    return stored


def original_clip(state: dict, prefix: str) -> dict:
    """OpenAI's CLIP is stored as transformers had it before it dropped the wrapper."""
    return {f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}


def original_open_clip(state: dict, prefix: str) -> dict:
    """OpenCLIP fuses queries, keys and values, and multiplies with the projection from the other side."""
    renames = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.": "ln_final.",
        "text_model.encoder.layers.": "transformer.resblocks.",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.": "attn.",
    }
    stored = {f"{prefix}logit_scale": torch.tensor(4.6)}
    for name, tensor in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            tensor = torch.cat([state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            name = name.replace("q_proj.", "in_proj_")
        if name == "text_projection.weight":
            name, tensor = "text_projection", tensor.T.contiguous()
        for ours, theirs in renames.items():
            name = name.replace(ours, theirs)
        stored[prefix + name] = tensor
    return stored


def text_config(width: int, vocabulary: int = 514) -> CLIPTextConfig:
    """Of a text encoder whose last two tokens begin and end a caption."""
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def _tokenizer() -> CLIPTokenizer:
    """One token a byte."""
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(code) for code in letters] + [chr(256 + i) for i in range(256 - len(letters))]
    names = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=TOKENS)


def full(kind: str, folder: Path, change=None, metadata=None, **vae_arguments) -> tuple[Path, Path]:
    """A full checkpoint in `folder`, and a base without weights: what is in the file must come from the file.

    `change` may alter the tensors before they are written.
    """
    torch.manual_seed(1)
    base = folder / "base"
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        sample_size=32,
        norm_num_groups=8,
        **vae_arguments,
    )
    tensors = original_unet(unet(kind).state_dict()) | original_vae(vae.to(torch.bfloat16).state_dict(), levels=2)
    index = {"text_encoder": CLIPTextModel(text_config(WIDTH)).to(torch.bfloat16)}
    if kind == "sdxl":
        index["text_encoder_2"] = CLIPTextModelWithProjection(text_config(WIDTH_2)).to(torch.bfloat16)
        tensors |= original_clip(index["text_encoder"].state_dict(), "conditioner.embedders.0.transformer.")
        tensors |= original_open_clip(index["text_encoder_2"].state_dict(), "conditioner.embedders.1.model.")
        scheduler = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1)
    else:
        tensors |= original_clip(index["text_encoder"].state_dict(), "cond_stage_model.transformer.")
        scheduler = diffusers.PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1)
    tensors["alphas_cumprod"] = torch.rand(1000, dtype=torch.float64)
    tensors["conditioner.position_ids"] = torch.arange(TOKENS)
    if change is not None:
        change(tensors)
    path = folder / f"{kind}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata=metadata)
    write_base(base, kind, vae, index, scheduler, _tokenizer())
    return path, base


def write_base(base: Path, kind: str, vae, encoders: dict, scheduler, tokenizer) -> None:
    """A diffusers folder without weights."""
    vae.save_config(base / "vae")
    scheduler.save_config(base / "scheduler")
    for name, encoder in encoders.items():
        encoder.config.save_pretrained(base / name)
        tokenizer.save_pretrained(base / name.replace("text_encoder", "tokenizer"))
    index = {
        "_class_name": "StableDiffusionXLPipeline" if kind == "sdxl" else "StableDiffusionPipeline",
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for name, encoder in encoders.items():
        index[name] = ["transformers", type(encoder).__name__]
        index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    if kind == "sd-1.5":
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (base / "model_index.json").write_text(json.dumps(index))


def inputs(kind: str, seed: int = 1) -> dict:
    """One call's arguments, float32."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    arguments = {
        "sample": draw(1, 4, 8, 8),
        "timestep": torch.tensor(400),
        "encoder_hidden_states": draw(1, 5, CONFIGS[kind]["cross_attention_dim"]),
    }
    if kind == "sdxl":
        sizes = torch.tensor([[32.0, 32, 0, 0, 32, 32]])
        arguments["added_cond_kwargs"] = {"text_embeds": draw(1, WIDTH_2), "time_ids": sizes}
    return arguments


@torch.no_grad()
def run(model, kind: str) -> torch.Tensor:
    return model(**inputs(kind)).sample
