"""Other quantizers that `fidelity.py` compares: weight -> the values that it stands for, and the bytes it takes."""

from collections.abc import Callable

import torch

REFERENCE = "INT8, a scale a row, nearest"
LEARNED_STEPS = 500
"""Of its own default of 4000."""


def int8_row(weight: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Symmetric INT8 with a float32 scale for each row."""
    rows = weight.flatten(1)
    scale = rows.abs().amax(dim=1, keepdim=True) / 127
    codes = (rows / scale.clamp(min=torch.finfo(torch.float32).tiny)).round().clamp(-127, 127)
    return (codes * scale).reshape(weight.shape), weight.numel() + 4 * len(weight)


def peers():
    """Label and quantizer of the other tools that are installed: what weights come to, and their bytes."""
    for label, make in (
        ("torchao float8, one scale", lambda: _torchao("PerTensor")),
        ("torchao float8, a scale a row", lambda: _torchao("PerRow")),
        ("SDNQ float8", lambda: _through_a_layer(_sdnq())),
        ("optimum-quanto qfloat8", lambda: _through_a_layer(_quanto())),
        (f"convert_to_quant, learned rounding, {LEARNED_STEPS} steps", _learned),
    ):
        try:
            change = make()
        except ImportError as error:
            print(f"{label} is left out: {error}")
            continue
        yield label, change


def _through_a_layer(change: Callable[[torch.nn.Module], torch.nn.Module]):
    """What a tool makes of a weight is what the layer that it quantized does to the identity. Linear layers only."""

    @torch.no_grad()
    def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, int]:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
        model = change(torch.nn.Sequential(layer))
        values = model(torch.eye(weight.shape[1])).T
        if torch.equal(values, weight):
            raise RuntimeError("the tool left the weight as it was")
        return values, weight.numel() + 4 * len(weight)

    return quantize


def _torchao(granularity: str):
    from torchao import quantization

    def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, int]:
        found = quantization.Float8Tensor.from_hp(weight, granularity=getattr(quantization, granularity)())
        return found.dequantize().float(), weight.numel() + 4 * found.scale.numel()

    return quantize


def _learned():
    from convert_to_quant.converters.learned_rounding import LearnedRoundingConverter

    converter = LearnedRoundingConverter(num_iter=LEARNED_STEPS, device="cpu")

    def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, int]:
        torch.manual_seed(0)
        codes, scale, *_ = converter.convert(weight)
        return codes.float() * scale.float(), weight.numel() + 4

    return quantize


def _sdnq():
    from sdnq import sdnq_post_load_quant

    return lambda model: sdnq_post_load_quant(
        model,
        weights_dtype="float8_e4m3fn",
        torch_dtype=torch.float32,
        add_skip_keys=False,
        minimum_allowed_numel=0,
        minimum_allowed_channel_size=0,
    )


def _quanto():
    from optimum.quanto import freeze, qfloat8, quantize

    def change(model):
        quantize(model, weights=qfloat8)
        freeze(model)
        return model

    return change
