"""A linear layer as ComfyUI computes it on a GPU with FP8 and INT8 arithmetic, by comfy-kitchen's eager backend."""

import json

import torch
import torch.nn.functional as F
from comfy_kitchen import tensor as kitchen
from comfy_kitchen.backends.eager import quantization as eager

from hswq_runtime import HSWQLinear
from hswq_runtime.formats import Number


class Theirs(torch.nn.Module):
    """A linear layer as ComfyUI has it, with the tensors of one of ours."""

    def __init__(self, layer: HSWQLinear):
        super().__init__()
        self.layer, self.dtype = layer, layer.compute_dtype
        one = torch.tensor(1.0)
        self.is_int8 = layer.number is Number.INT8
        if self.is_int8:
            scale = layer.scale.reshape(()) if layer.scale.numel() == 1 else layer.scale.reshape(-1, 1)
            rotated = {} if layer.group is None else {"convrot": True, "convrot_groupsize": layer.group}
            layout, shapes = kitchen.TensorWiseINT8Layout, {"orig_dtype": self.dtype, "orig_shape": layer.weight.shape}
            params = layout.Params(scale=scale, **shapes, **rotated)
            self.quantized = kitchen.QuantizedTensor(layer.weight.data, layout.__name__, params)
            return
        scale = one if layer.scale is None else layer.scale.reshape(())
        kind = "TensorCoreFP8Layout"
        params = kitchen.TensorCoreFP8Layout.Params(scale=scale, orig_dtype=self.dtype, orig_shape=layer.weight.shape)
        self.quantized = kitchen.QuantizedTensor(layer.weight.data, kind, params)
        self.input_scale = one if layer.input_scale is None else layer.input_scale.reshape(())

    @torch.inference_mode()  # as ComfyUI runs; otherwise torch takes the product apart before it is theirs
    def forward(self, input):
        weight, bias = self.quantized, self.layer.bias
        if self.layer.exact:
            return F.linear(input, weight.dequantize(), bias)
        if self.is_int8:  # it rounds the input itself
            return F.linear(input, weight, bias)
        flat = input.reshape(-1, input.shape[-1])
        rounded = kitchen.QuantizedTensor.from_float(flat, "TensorCoreFP8Layout", scale=self.input_scale)
        return F.linear(rounded, weight, bias).reshape(*input.shape[:-1], -1)


def theirs_in(model: torch.nn.Module) -> torch.nn.Module:
    """`model` with ComfyUI's layers in place of ours."""
    for name, layer in [*model.named_modules()]:
        if isinstance(layer, HSWQLinear):
            model.set_submodule(name, Theirs(layer))
    return model


def expanded_int8(stored: dict[str, torch.Tensor], key: str) -> torch.Tensor:
    """What the INT8 weight `key` of a file stands for, by its description: float32."""
    layer = key.removesuffix(".weight")
    said, scale = json.loads(bytes(stored[f"{layer}.comfy_quant"].tolist())), stored[f"{layer}.weight_scale"]
    if said.get("convrot"):
        return eager.dequantize_int8_convrot_weight(stored[key], scale, said["convrot_groupsize"])
    return eager.dequantize_int8_simple(stored[key], scale)


def inputs(k: int, shape: tuple[int, ...] = (7,), largest: float = 6.5e4) -> torch.Tensor:
    """Float32 [*shape, k] of all magnitudes: what 16 bits hardly hold, zeros, and a row of nothing else."""
    values = torch.randn(*shape, k) * torch.logspace(-4, 3, k)
    values.flatten()[:3] = torch.tensor([largest, -largest, 0.0])
    values[-1] = 0
    return values
