"""A one-block Z-Image with random weights, in the layout in which checkpoints are distributed."""

import json
import shutil
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file

from hswq_hub.calibration.calibrate import Calibration, monitor
from hswq_hub.generation.recording import record_calls
from hswq_hub.sources.find import resolve
from hswq_runtime import Checkpoint, load_model

PREFIX = "model.diffusion_model."
CONFIG = {
    "in_channels": 4,
    "dim": 96,
    "n_layers": 1,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 32,
    "axes_dims": [12, 18, 18],
    "axes_lens": [1024, 512, 512],
}
FITS_DEMO = {"in_channels": 16, "cap_feat_dim": 128}
"""What goes with the demo model's other components."""


def model(seed: int = 0, **changes) -> diffusers.ZImageTransformer2DModel:
    torch.manual_seed(seed)
    tiny = diffusers.ZImageTransformer2DModel(**CONFIG | changes)
    for parameter in tiny.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return tiny.to(torch.bfloat16).eval()


def original_layout(state: dict[str, torch.Tensor], prefix: str = PREFIX) -> dict[str, torch.Tensor]:
    """The inverse of diffusers' converter, written out independently of it."""
    renames = {
        "all_final_layer.2-1.": "final_layer.",
        "all_x_embedder.2-1.": "x_embedder.",
        ".attention.to_out.0.": ".attention.out.",
        ".attention.norm_q.": ".attention.q_norm.",
        ".attention.norm_k.": ".attention.k_norm.",
    }
    stored = {}
    for name, tensor in state.items():
        for new, old in renames.items():
            name = name.replace(new, old)
        stored[name] = tensor
    for name in [n for n in stored if n.endswith(".to_q.weight")]:
        rows = [stored.pop(name.replace("to_q", part)) for part in ("to_q", "to_k", "to_v")]
        stored[name.replace("to_q", "qkv")] = torch.cat(rows)
    return {prefix + name: tensor.contiguous() for name, tensor in stored.items()}


def checkpoint(folder: Path, prefix: str = PREFIX, metadata=None, change=None) -> Path:
    """Write the tiny model to `folder`/tiny.safetensors; `change` may alter the tensors first."""
    tensors = original_layout(model().state_dict(), prefix)
    if change is not None:
        change(tensors)
    path = folder / "tiny.safetensors"
    save_file(tensors, path, metadata=metadata)
    return path


def inputs(seed: int = 1) -> dict:
    """One call's arguments, float32."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": [torch.randn(4, 1, 8, 8, generator=generator)],
        "t": torch.tensor([0.4]),
        "cap_feats": [torch.randn(20, 32, generator=generator)],
        "return_dict": False,
    }


@torch.no_grad()
def run(denoiser) -> torch.Tensor:
    return denoiser(**inputs())[0][0]


STYLES = (
    "v1",
    "v1-comfyui",
    "v2",
    "v2-scalar",
    "v2-rows",
    "v2-rows-column",
    "early",
    "comfyui",
    "comfyui-bytes",
    "comfyui-header",
    "comfyui-input-scale",
    "comfyui-old",
    "cast",
    "int8",
    "int8-plain",
    "int8-one-scale",
    "int8-header",
)
"""Ways in which files out there hold FP8 or INT8, see :func:`quantized`."""


def calibration(checkpoint: Checkpoint, arguments: dict | None = None) -> Calibration:
    """Of one call, which is recorded."""
    denoiser = load_model(checkpoint, torch.float32)
    with monitor(denoiser) as layers, record_calls(denoiser, {0}) as calls, torch.no_grad():
        denoiser(**(arguments or inputs()))
    return Calibration(layers, {"dtype": "float32"}, calls)


def quantized(folder: Path, style: str, prefix: str = PREFIX, change=None) -> Path:
    """The tiny model with its large layers in FP8 or INT8, rounded to nearest, written as `style` has it.

    Spelled out here a second time, independently of the code that reads it.
    """
    if style.startswith("int8"):
        return _int8(folder, style, prefix, change)
    unscaled = style in ("v1", "v1-comfyui", "cast")
    rows = style.startswith("v2-rows")
    tensors = original_layout(model().state_dict(), prefix)
    for key in [k for k in tensors if k.endswith(".weight") and tensors[k].ndim == 2]:
        if "t_embedder" in key and style != "cast":
            continue
        layer, weight = key.removesuffix(".weight"), tensors[key].float()
        amax = weight.abs().amax(1, keepdim=True) if rows else weight.abs().max()
        scale = torch.ones(()) if unscaled else amax / 448
        tensors[key] = (weight / scale).to(torch.float8_e4m3fn)
        shape = {"v2-scalar": (), "v2-rows": (-1,), "v2-rows-column": (-1, 1)}.get(style, (1,))
        mark = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
        if style.startswith("v2"):
            tensors[layer + ".scale"] = scale.reshape(shape)
        elif style == "early":
            tensors[layer + ".weight.scale"] = scale.reshape(1)
        elif style == "comfyui-old":
            tensors[layer + ".scale_weight"] = scale
            tensors[layer + ".scale_input"] = torch.ones(())
        elif "comfyui" in style:
            tensors[layer + ".weight_scale"] = scale
            if style != "comfyui-header":
                tensors[layer + ".comfy_quant"] = mark
            if style == "comfyui-input-scale":
                tensors[layer + ".input_scale"] = torch.tensor(0.5)
            if style == "comfyui-bytes":
                tensors[key] = tensors[key].view(torch.uint8)
    if style == "comfyui-old":
        tensors[prefix + "scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    if style == "cast":
        tensors = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in tensors.items()}
    metadata = {"v1": {"hswq_format": "v1"}, "v2": {"hswq_format": "v2"}}.get(style[:2] if style[0] == "v" else "", {})
    if style == "comfyui-header":
        layers = {k.removesuffix(".weight_scale"): {"format": "float8_e4m3fn"} for k in tensors if "_scale" in k}
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})
    if change is not None:
        change(tensors)
    path = folder / f"{style}.safetensors"
    save_file(tensors, path, metadata=metadata or None)
    return path


def rotated(weight: torch.Tensor) -> tuple[torch.Tensor, int]:
    """`weight` [N, K] in float32 times a regular Hadamard matrix for each group of columns, and the size of a group."""
    group = next(group for group in (256, 64, 16, 4) if weight.shape[1] % group == 0)
    four = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    matrix = four
    while len(matrix) < group:
        matrix = torch.kron(matrix, four)
    groups = [part @ (matrix / group**0.5) for part in weight.float().split(group, dim=1)]
    return torch.cat(groups, dim=1), group


def _int8(folder: Path, style: str, prefix: str, change=None) -> Path:
    """ComfyUI's INT8: as this project writes it; by tools that leave out what it is; with one scale and no description;
    described in the header."""
    tensors, described = original_layout(model().state_dict(), prefix), {}
    for key in [k for k in tensors if k.endswith(".weight") and tensors[k].ndim == 2 and "t_embedder" not in k]:
        layer, weight = key.removesuffix(".weight"), tensors[key].float()
        said = {"format": "int8_tensorwise"}
        if style in ("int8", "int8-header"):
            weight, group = rotated(weight)
            said |= {"convrot": True, "convrot_groupsize": group}
        amax = weight.abs().max() if style == "int8-one-scale" else weight.abs().amax(1, keepdim=True)
        tensors[key] = (weight / (amax / 127)).round().to(torch.int8)
        tensors[layer + ".weight_scale"] = amax / 127
        if style == "int8-plain":
            del said["format"]
        if style in ("int8", "int8-plain"):
            tensors[layer + ".comfy_quant"] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
        described[layer] = said
    metadata = {"hswq_format": "int8"} if style == "int8" else {}
    if style == "int8-header":
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": described})
    if change is not None:
        change(tensors)
    path = folder / f"{style}.safetensors"
    save_file(tensors, path, metadata=metadata or None)
    return path


def published_demo(folder: Path) -> Path:
    """A folder as it is published: a V1 file, a V2 file, and the other components. Nothing is calibrated here."""
    demo = resolve("demo")
    shutil.copytree(demo.base, folder, dirs_exist_ok=True)
    tensors = load_file(demo.path)
    for version in ("v1", "v2"):
        stored = dict(tensors)
        for key, tensor in tensors.items():
            if key.endswith(".weight") and tensor.ndim == 2 and ".layers." in key:
                scale = tensor.abs().max().float() / 448 if version == "v2" else torch.ones(())
                stored[key] = (tensor.float() / scale).to(torch.float8_e4m3fn)
                if version == "v2":
                    stored[key.removesuffix("weight") + "scale"] = scale.reshape(1)
        save_file(stored, folder / f"demo-hswq-{version}.safetensors", metadata={"hswq_format": version})
    return folder


def same_bytes(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two states are equal to the bit, names and dtypes included."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and torch.equal(one[name].contiguous().view(torch.uint8), other[name].contiguous().view(torch.uint8))
        for name in one
        if one[name].ndim
    )
