"""What `runtime.py` compares: how each library loads the model, and what its FP8 weights stand for."""

from pathlib import Path

import torch

LEFT_OUT = ["t_embedder", "cap_embedder", "all_x_embedder", "all_final_layer", "adaLN_modulation"]
"""The modules around all other linear layers, spelled in full, because each library matches names in its own way."""


def load(name: str, folder: Path, dtype: torch.dtype):
    """The model as a user of that library would load it."""
    import diffusers

    import hswq_runtime

    model_class = diffusers.ZImageTransformer2DModel
    plain = folder / "plain"
    if name == "plain":
        return model_class.from_pretrained(plain, torch_dtype=dtype)
    if name.startswith("HSWQ"):
        model = model_class.from_pretrained(folder / "hswq", torch_dtype=dtype)
        hswq_runtime.set_quantized_matmul(model, "quantized_matmul" in name)
        return model
    if name == "layerwise casting":
        model = model_class.from_pretrained(plain, torch_dtype=dtype)
        model.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn,
            compute_dtype=dtype,
            skip_modules_pattern=[*LEFT_OUT, "norm", "pad_token"],
        )
        return model
    if name == "diffusers BFL fp8r":
        quantization = diffusers.BFLQuantizationConfig(compute_dtype=dtype)
        return model_class.from_single_file(
            str(folder / "bfl.safetensors"),
            config=str(folder / "config"),
            quantization_config=quantization,
            torch_dtype=dtype,
        )
    if name == "torchao":
        from torchao.quantization import Float8WeightOnlyConfig

        quantization = diffusers.TorchAoConfig(Float8WeightOnlyConfig(), modules_to_not_convert=[*LEFT_OUT])
    elif name == "SDNQ":
        import sdnq

        quantization = sdnq.SDNQConfig(weights_dtype="float8_e4m3fn", modules_to_not_convert=[*LEFT_OUT])
    else:  # diffusers' own way to it goes by the last part of a name alone, which to_out.0 and adaLN_modulation.0 share
        from optimum.quanto import qfloat8

        left_out = [f"*{part}*" for part in LEFT_OUT]
        model = model_class.from_pretrained(plain, torch_dtype=dtype)
        return quanto_class().quantize(model, weights=qfloat8, exclude=left_out)
    return model_class.from_pretrained(plain, torch_dtype=dtype, quantization_config=quantization)


def quanto_class():
    """Z-Image as optimum-quanto saves it and opens it again."""
    import diffusers
    from optimum.quanto import QuantizedDiffusersModel

    return type("QuantizedZImage", (QuantizedDiffusersModel,), {"base_class": diffusers.ZImageTransformer2DModel})


CANDIDATES = {
    "plain": None,
    "HSWQ": None,
    "HSWQ quantized_matmul": None,
    "layerwise casting": None,
    "diffusers BFL fp8r": None,
    "torchao": "torchao",
    "SDNQ": "sdnq",
    "optimum-quanto": "optimum.quanto",
}
"""What is compared, and the package that it needs."""


def dequantized(name: str, model, folder: Path, dtype: torch.dtype):
    """A plain model whose weights are what the candidate's FP8 weights mean."""
    import diffusers

    from hswq_runtime.layers.modules import HSWQLayer

    reference = diffusers.ZImageTransformer2DModel.from_pretrained(folder / "plain", torch_dtype=dtype)
    reference.requires_grad_(False)
    for path, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        if weight is None or not isinstance(weight, torch.Tensor) or layer is model:
            continue
        if isinstance(layer, HSWQLayer):
            expanded = layer.dequantized_weight(dtype)
        elif name == "diffusers BFL fp8r" and hasattr(layer, "weight_scale"):
            expanded = (weight.float() * layer.weight_scale.reshape(-1, 1)).to(dtype)
        elif hasattr(layer, "sdnq_dequantizer"):
            expanded = layer.sdnq_dequantizer(weight, layer.scale, layer.zero_point, layer.svd_up, layer.svd_down)
        elif hasattr(weight, "__tensor_flatten__"):  # a wrapper subclass
            expanded = weight.dequantize()
        else:
            expanded = weight
        shape = reference.get_submodule(path).weight.shape
        expanded = expanded.detach().to(dtype).reshape(shape).clone()
        reference.get_submodule(path).weight = torch.nn.Parameter(expanded, requires_grad=False)
    return reference
