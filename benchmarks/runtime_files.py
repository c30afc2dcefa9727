"""The checkpoints that `runtime.py` measures: a Z-Image transformer with the published layer shapes, random weights."""

import json
from pathlib import Path

import torch

TARGETS = r"(attention\.to_(q|k|v)|attention\.to_out\.0|feed_forward\.w[123])$"
"""The large layers of a block: what every candidate quantizes."""
PUBLISHED_WIDTH = 3840
LARGE_BLOCKS = 12


def config(width: int, blocks: int) -> dict:
    """The published shapes, at the published width; `blocks` main blocks and one refiner of each kind."""
    heads = width // 128
    return {"dim": width, "n_heads": heads, "n_kv_heads": heads, "n_layers": blocks, "n_refiner_layers": 1}


def products(width: int) -> list[tuple[int, int]]:
    """Inputs and outputs of the large layers: attention, and the feed-forward's two ways."""
    hidden = int(width / 3 * 8)
    return [(width, width), (width, hidden), (hidden, width)]


def write_files(folder: Path, width: int, blocks: int) -> None:
    """`plain/` (bf16), `hswq/` (V2, saved by our quantizer), `hswq.safetensors` (the same in one file) and
    `bfl.safetensors` (a scale a row)."""
    import re

    import diffusers
    from safetensors.torch import save_file

    from hswq_runtime.layers import fp8
    from hswq_runtime.layers.modules import quantized_twin
    from hswq_runtime.quantizer import mark_quantized

    torch.manual_seed(0)
    model = diffusers.ZImageTransformer2DModel(**config(width, blocks)).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(std=0.02 if "embedder" not in name else 0.05)
    model.save_pretrained(folder / "plain", max_shard_size="100GB")
    names = [name for name, module in model.named_modules() if re.search(TARGETS, name)]
    bfl = dict(model.state_dict())
    for name in names:
        layer = model.get_submodule(name)
        rows = fp8.fresh_scale(layer.weight, len(layer.weight))
        bfl[f"{name}.weight"] = fp8.quantize(layer.weight, rows)
        bfl[f"{name}.weight_scale"] = rows
        twin = quantized_twin(layer, scales=1, compute_dtype=torch.bfloat16)
        scale = fp8.fresh_scale(layer.weight, 1)
        twin.load_state_dict({"weight": fp8.quantize(layer.weight, scale), "scale": scale}, assign=True)
        model.set_submodule(name, twin)
    save_file({key: tensor.contiguous() for key, tensor in bfl.items()}, folder / "bfl.safetensors")
    mark_quantized(model, torch.bfloat16)
    model.save_pretrained(folder / "hswq", max_shard_size="100GB")
    write_single(folder / "hswq.safetensors", model, model.state_dict())
    model.save_config(folder / "config")


def write_single(path: Path, model, state: dict) -> None:
    """`state` of `model` in one V2 file with diffusers' names."""
    from safetensors.torch import save_file

    from hswq_runtime.formats import Metadata
    from hswq_runtime.quantizer import QUANTIZATION_CONFIG

    plain = {name: value for name, value in json.loads(model.to_json_string()).items() if name != QUANTIZATION_CONFIG}
    described = {Metadata.FORMAT.value: "v2", Metadata.CONFIG.value: json.dumps(plain)}
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata=described)


def write_large(path: Path, width: int) -> None:
    """A file that is only loaded, never run: `LARGE_BLOCKS` blocks of one value."""
    import re

    import accelerate
    import diffusers

    from hswq_runtime.layers.modules import SCALE_BUFFER

    with accelerate.init_empty_weights():
        model = diffusers.ZImageTransformer2DModel(**config(width, LARGE_BLOCKS))
    state = {}
    for key, tensor in model.state_dict().items():
        layer = key.removesuffix(".weight")
        quantized = re.search(TARGETS, layer)
        state[key] = torch.full(tensor.shape, 0.5, dtype=torch.float8_e4m3fn if quantized else torch.bfloat16)
        if quantized:
            state[f"{layer}.{SCALE_BUFFER}"] = torch.ones(1)
    write_single(path, model, state)
