"""What published single files look like, as data: the key lists of each architecture, with the sizes of the published
models and of tiny ones.

A line `name: rows columns` is a layer's weight, with a `+` also its bias; `name = shape` is a tensor alone. Letters are
sizes, products and sums are written out; `{d}` stands for the number of a block.
"""

import json
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file

Z_IMAGE = """
x_embedder: w 4*c +
final_layer.linear: 4*c w +
final_layer.adaLN_modulation.1: w a +
cap_embedder.0.weight = t
cap_embedder.1: w t +
t_embedder.mlp.0: 1024 256 +
t_embedder.mlp.2: a 1024 +
x_pad_token = 1 w
cap_pad_token = 1 w
{refined}.attention.qkv: 3*w w
{refined}.attention.out: w w
{refined}.attention.q_norm.weight = h
{refined}.attention.k_norm.weight = h
{refined}.feed_forward.w1: f w
{refined}.feed_forward.w2: w f
{refined}.feed_forward.w3: f w
{refined}.attention_norm1.weight = w
{refined}.attention_norm2.weight = w
{refined}.ffn_norm1.weight = w
{refined}.ffn_norm2.weight = w
{modulated}.adaLN_modulation.0: 4*w a +
"""

_FLUX_STREAM = """
double_blocks.{d}.%s_attn.qkv: 3*w w +
double_blocks.{d}.%s_attn.proj: w w +
double_blocks.{d}.%s_attn.norm.query_norm.scale = h
double_blocks.{d}.%s_attn.norm.key_norm.scale = h
double_blocks.{d}.%s_mlp.0: 4*w w +
double_blocks.{d}.%s_mlp.2: w 4*w +
"""
_FLUX_BLOCKS = f"""
img_in: w c +
txt_in: w t +
{_FLUX_STREAM.replace("%s", "img")}
{_FLUX_STREAM.replace("%s", "txt")}
single_blocks.{{s}}.linear1: 7*w w +
single_blocks.{{s}}.linear2: w 5*w +
single_blocks.{{s}}.norm.query_norm.scale = h
single_blocks.{{s}}.norm.key_norm.scale = h
final_layer.linear: o w +
"""
FLUX_SCHNELL = f"""
{_FLUX_BLOCKS}
time_in.in_layer: w 256 +
time_in.out_layer: w w +
vector_in.in_layer: w p +
vector_in.out_layer: w w +
double_blocks.{{d}}.img_mod.lin: 6*w w +
double_blocks.{{d}}.txt_mod.lin: 6*w w +
single_blocks.{{s}}.modulation.lin: 3*w w +
final_layer.adaLN_modulation.1: 2*w w +
"""
FLUX_DEV = f"""
{FLUX_SCHNELL}
guidance_in.in_layer: w 256 +
guidance_in.out_layer: w w +
"""
CHROMA = f"""
{_FLUX_BLOCKS}
distilled_guidance_layer.in_proj: a 64 +
distilled_guidance_layer.layers.{{n}}.in_layer: a a +
distilled_guidance_layer.layers.{{n}}.out_layer: a a +
distilled_guidance_layer.norms.{{n}}.scale = a
distilled_guidance_layer.out_proj: w a +
"""
_FLUX2_STREAM = re.sub(r" \+$", "", _FLUX_STREAM, flags=re.MULTILINE).replace("4*w w", "6*w w").replace("4*w", "3*w")
FLUX2_KLEIN = f"""
img_in: w c
txt_in: w t
time_in.in_layer: w 256
time_in.out_layer: w w
double_stream_modulation_img.lin: 6*w w
double_stream_modulation_txt.lin: 6*w w
single_stream_modulation.lin: 3*w w
{_FLUX2_STREAM.replace("%s", "img")}
{_FLUX2_STREAM.replace("%s", "txt")}
single_blocks.{{s}}.linear1: 9*w w
single_blocks.{{s}}.linear2: w 4*w
single_blocks.{{s}}.norm.query_norm.scale = h
single_blocks.{{s}}.norm.key_norm.scale = h
final_layer.linear: c w
final_layer.adaLN_modulation.1: 2*w w
"""

_SD3_ATTENTION = """
joint_blocks.%s.qkv: 3*w w +
joint_blocks.%s.ln_q.weight = h
joint_blocks.%s.ln_k.weight = h
"""
SD35_LARGE = f"""
pos_embed = 1 m*m w
x_embedder.proj: w c 2 2 +
context_embedder: w t +
t_embedder.mlp.0: w 256 +
t_embedder.mlp.2: w w +
y_embedder.mlp.0: w p +
y_embedder.mlp.2: w w +
{_SD3_ATTENTION.replace("%s", "{all}.x_block.attn")}
{_SD3_ATTENTION.replace("%s", "{all}.context_block.attn")}
joint_blocks.{{all}}.x_block.attn.proj: w w +
joint_blocks.{{all}}.x_block.mlp.fc1: 4*w w +
joint_blocks.{{all}}.x_block.mlp.fc2: w 4*w +
joint_blocks.{{single}}.x_block.adaLN_modulation.1: 6*w w +
joint_blocks.{{first}}.context_block.attn.proj: w w +
joint_blocks.{{first}}.context_block.mlp.fc1: 4*w w +
joint_blocks.{{first}}.context_block.mlp.fc2: w 4*w +
joint_blocks.{{first}}.context_block.adaLN_modulation.1: 6*w w +
joint_blocks.{{last}}.context_block.adaLN_modulation.1: 2*w w +
final_layer.linear: 4*c w +
final_layer.adaLN_modulation.1: 2*w w +
"""
SD35_MEDIUM = f"""
{SD35_LARGE}
{_SD3_ATTENTION.replace("%s", "{dual}.x_block.attn2")}
joint_blocks.{{dual}}.x_block.attn2.proj: w w +
joint_blocks.{{dual}}.x_block.adaLN_modulation.1: 9*w w +
"""

QWEN_IMAGE = """
img_in: w c +
txt_in: w t +
txt_norm.weight = t
time_text_embed.timestep_embedder.linear_1: w 256 +
time_text_embed.timestep_embedder.linear_2: w w +
transformer_blocks.{d}.{stream}_mod.1: 6*w w +
transformer_blocks.{d}.{stream}_mlp.net.0.proj: 4*w w +
transformer_blocks.{d}.{stream}_mlp.net.2: w 4*w +
transformer_blocks.{d}.attn.{projection}: w w +
transformer_blocks.{d}.attn.{norm}.weight = h
norm_out.linear: 2*w w +
proj_out: c w +
"""

AURA_FLOW = """
positional_encoding = 1 m w
register_tokens = 1 8 w
init_x_linear: w 4*c +
t_embedder.mlp.0: w 256 +
t_embedder.mlp.2: w w +
cond_seq_linear: w t
double_layers.{d}.attn.{projection}: w w
double_layers.{d}.mod{stream}.1: 6*w w
double_layers.{d}.mlp{stream}.c_fc1: f w
double_layers.{d}.mlp{stream}.c_fc2: f w
double_layers.{d}.mlp{stream}.c_proj: w f
single_layers.{s}.attn.{context}: w w
single_layers.{s}.modCX.1: 6*w w
single_layers.{s}.mlp.c_fc1: f w
single_layers.{s}.mlp.c_fc2: f w
single_layers.{s}.mlp.c_proj: w f
modF.1: 2*w w
final_linear: 4*c w
"""


def numbers(count: int, first: int = 0) -> list[str]:
    return [str(number) for number in range(first, count)]


def z_image_sizes(blocks: int, refiners: int, **sizes) -> dict:
    noise, context = ([f"{kind}_refiner.{number}" for number in numbers(refiners)] for kind in ("noise", "context"))
    layers = [f"layers.{number}" for number in numbers(blocks)]
    return {"refined": layers + noise + context, "modulated": layers + noise, **sizes}


def sd3_sizes(blocks: int, dual: int, **sizes) -> dict:
    every = numbers(blocks)
    return {
        "all": every,
        "dual": every[:dual],
        "single": every[dual:],
        "first": every[:-1],
        "last": every[-1:],
        **sizes,
    }


def qwen_sizes(blocks: int, **sizes) -> dict:
    return {
        "d": numbers(blocks),
        "stream": ["img", "txt"],
        "projection": ["to_q", "to_k", "to_v", "to_out.0", "to_add_out", "add_q_proj", "add_k_proj", "add_v_proj"],
        "norm": ["norm_q", "norm_k", "norm_added_q", "norm_added_k"],
        **sizes,
    }


def aura_flow_sizes(double: int, single: int, **sizes) -> dict:
    context, image = ([f"w{side}{part}" for part in "qkvo"] for side in (1, 2))
    blocks = {"d": numbers(double), "s": numbers(single)}
    return blocks | {"projection": context + image, "context": context, "stream": ["X", "C"], **sizes}


@dataclass(frozen=True)
class Original:
    """One architecture's files. published, tiny: sizes. config: facts of the published configuration. billions: of
    parameters, as its makers round them. base: makes the other components of a tiny pipeline. inner_width: whether
    diffusers' converter has the published width written into it, so that it takes a tiny model only with that constant
    exchanged. others: keys of other components in the same file. rounding: nearest where compensation takes long, or
    has been seen with another model of the class."""

    keys: str
    published: dict
    tiny: dict
    config: dict
    billions: float
    base: str
    inner_width: bool = False
    prefix: str = "model.diffusion_model."
    others: tuple[str, ...] = ("vae.decoder.conv_in.weight",)
    rounding: str = "kfac"

    def shapes(self, sizes: dict) -> dict[str, tuple[int, ...]]:
        """The tensors of a file of these sizes, without prefix."""
        found = {}
        for line in filter(None, self.keys.splitlines()):
            name, layer, shape = re.fullmatch(r"(\S+?)(:| =) (.*)", line).groups()
            shape, bias = shape.removesuffix(" +"), shape.endswith("+")
            dimensions = tuple(eval(size, {}, sizes) for size in shape.split())
            for key in _expanded(name, sizes):
                if layer == ":":
                    found |= {f"{key}.weight": dimensions, **({f"{key}.bias": dimensions[:1]} if bias else {})}
                else:
                    found[key] = dimensions
        return found


def _expanded(name: str, sizes: dict) -> list[str]:
    match = re.search(r"\{(\w+)\}", name)
    if match is None:
        return [name]
    return [key for value in sizes[match[1]] for key in _expanded(name.replace(match[0], value), sizes)]


_FLUX_TINY = {"w": 64, "h": 32, "c": 16, "o": 16, "t": 32, "d": numbers(1), "s": numbers(2)}
_FLUX_PUBLISHED = {"w": 3072, "h": 128, "c": 64, "o": 64, "t": 4096, "d": numbers(19), "s": numbers(38)}
_FLUX_CONFIG = {"num_layers": 19, "num_single_layers": 38, "axes_dims_rope": [16, 56, 56]}
_KLEIN_TINY = {"w": 64, "h": 32, "c": 16, "t": 48, "d": numbers(1), "s": numbers(2)}

ORIGINALS = {
    "z-image": Original(
        Z_IMAGE,
        published=z_image_sizes(30, 2, w=3840, a=256, c=16, t=2560, h=128, f=10240),
        tiny=z_image_sizes(1, 1, w=64, a=64, c=16, t=128, h=32, f=170),
        config={"dim": 3840, "n_layers": 30, "n_heads": 30, "axes_dims": [32, 48, 48]},
        billions=6,
        base="z_image",
        rounding="nearest",
    ),
    "flux-1-dev": Original(
        FLUX_DEV,
        published=_FLUX_PUBLISHED | {"p": 768},
        tiny=_FLUX_TINY | {"p": 32},
        config=_FLUX_CONFIG | {"guidance_embeds": True, "pooled_projection_dim": 768},
        billions=12,
        base="flux",
        inner_width=True,
    ),
    "flux-1-schnell": Original(
        FLUX_SCHNELL,
        published=_FLUX_PUBLISHED | {"p": 768},
        tiny=_FLUX_TINY | {"p": 32},
        config=_FLUX_CONFIG | {"guidance_embeds": False},
        billions=12,
        base="flux",
        inner_width=True,
        rounding="nearest",
    ),
    "flux-2-klein-4b": Original(
        FLUX2_KLEIN,
        published={"w": 3072, "h": 128, "c": 128, "t": 7680, "d": numbers(5), "s": numbers(20)},
        tiny=_KLEIN_TINY,
        config={"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "mlp_ratio": 3.0},
        billions=4,
        base="flux2",
        prefix="",
    ),
    "flux-2-klein-9b": Original(
        FLUX2_KLEIN,
        published={"w": 4096, "h": 128, "c": 128, "t": 12288, "d": numbers(8), "s": numbers(24)},
        tiny=_KLEIN_TINY | {"w": 256, "h": 8, "s": numbers(1)},
        config={"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288},
        billions=9,
        base="flux2",
        rounding="nearest",
    ),
    "sd-3.5-medium": Original(
        SD35_MEDIUM,
        published=sd3_sizes(24, 13, w=1536, h=64, c=16, t=4096, p=2048, m=384),
        tiny=sd3_sizes(2, 1, w=64, h=32, c=4, t=64, p=64, m=24),
        config={"num_attention_heads": 24, "dual_attention_layers": list(range(13)), "pos_embed_max_size": 384},
        billions=2.5,
        base="sd3",
    ),
    "sd-3.5-large": Original(
        SD35_LARGE,
        published=sd3_sizes(38, 0, w=2432, h=64, c=16, t=4096, p=2048, m=192),
        tiny=sd3_sizes(2, 0, w=64, h=32, c=4, t=64, p=64, m=24),
        config={"num_attention_heads": 38, "dual_attention_layers": [], "pos_embed_max_size": 192},
        billions=8,
        base="sd3",
        prefix="",
        rounding="nearest",
    ),
    "chroma": Original(
        CHROMA,
        published=_FLUX_PUBLISHED | {"a": 5120, "n": numbers(5)},
        tiny=_FLUX_TINY | {"a": 32, "n": numbers(1)},
        config=_FLUX_CONFIG | {"approximator_hidden_dim": 5120, "approximator_layers": 5},
        billions=8.9,
        base="chroma",
        inner_width=True,
        prefix="",
        rounding="nearest",
    ),
    "qwen-image": Original(
        QWEN_IMAGE,
        published=qwen_sizes(60, w=3072, h=128, c=64, t=3584),
        tiny=qwen_sizes(1, w=64, h=32, c=16, t=64),
        config={"num_layers": 60, "num_attention_heads": 24, "out_channels": 16, "axes_dims_rope": [16, 56, 56]},
        billions=20,
        base="qwen_image",
    ),
    "aura-flow": Original(
        AURA_FLOW,
        published=aura_flow_sizes(4, 32, w=3072, f=8192, c=4, t=2048, m=1024),
        tiny=aura_flow_sizes(1, 1, w=256, f=768, c=4, t=32, m=64),
        config={"num_attention_heads": 12, "attention_head_dim": 256, "pos_embed_max_size": 1024, "in_channels": 4},
        billions=6.8,
        base="aura_flow",
        prefix="model.",
        rounding="nearest",
    ),
}


@dataclass(frozen=True)
class Hole:
    """A file of gigabytes as a server holds it: a header, and zeros that take no room. Its digest is anything."""

    header: bytes
    size: int
    sha256: str = "5" * 64

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        begin, end, _ = part.indices(min(self.size, 1 << 20))  # a client that wants more than that wants too much
        return self.header[begin:end].ljust(end - begin, b"\0")


def hole(shapes: dict[str, tuple[int, ...]], prefix: str = "", dtype: str = "BF16") -> Hole:
    """A file with these tensors, of two bytes a value."""
    entries, offset = {}, 0
    for key, shape in shapes.items():
        end = offset + 2 * prod(shape)
        entries[prefix + key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return Hole(len(text).to_bytes(8, "little") + text, 8 + len(text) + offset)


def write_tiny(folder: Path, original: Original, seed: int = 0) -> Path:
    """A file with random weights, in bfloat16. Norms are around one, all else is small."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in original.shapes(original.tiny).items():
        around = 1.0 if len(shape) == 1 and not key.endswith("bias") else 0.0
        tensors[original.prefix + key] = (around + 0.1 * torch.randn(shape, generator=generator)).to(torch.bfloat16)
    tensors |= {key: torch.randn(3, 3, generator=generator) for key in original.others}
    path = folder / "tiny.safetensors"
    save_file(tensors, path)
    return path
