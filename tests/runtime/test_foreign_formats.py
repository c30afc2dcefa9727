"""Every way in which files hold FP8 or INT8 gives the same model; what does not fit gives an error, not noise."""

import pytest
import torch
from support import tiny

from hswq_runtime import HSWQLinear, load_model
from hswq_runtime.architectures import PREFIXES
from hswq_runtime.errors import FormatError

ATTENTION = ("to_q", "to_k", "to_v")
W1 = "layers.0.feed_forward.w1.weight"


def fused_with(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The stored tensor that a parameter is rows of."""
    if name.split(".")[-2] not in ATTENTION:
        return tensor
    block = name.rsplit(".", 2)[0]
    return torch.cat([tiny.model().state_dict()[f"{block}.{part}.weight"].float() for part in ATTENTION])


def expanded_int8(name: str, tensor: torch.Tensor, style: str) -> torch.Tensor:
    if style not in ("int8", "int8-header"):
        fused = fused_with(name, tensor)
        amax = fused.abs().max() if style == "int8-one-scale" else tensor.abs().amax(1, keepdim=True)
        return (tensor / (amax / 127)).round() * (amax / 127)
    turned, _ = tiny.rotated(tensor)
    scale = turned.abs().amax(1, keepdim=True) / 127
    return tiny.rotated((turned / scale).round() * scale)[0]


def reference(style: str) -> dict[str, torch.Tensor]:
    """What the model's parameters are, computed from the unquantized model without any of our code."""
    state = {}
    for name, tensor in tiny.model().state_dict().items():
        tensor = tensor.float()
        if style == "cast":
            state[name] = tensor.to(torch.float8_e4m3fn).float()
            continue
        if tensor.ndim < 2 or not name.endswith("weight") or "t_embedder" in name:
            state[name] = tensor
            continue
        if style.startswith("int8"):
            state[name] = expanded_int8(name, tensor, style)
            continue
        fused = fused_with(name, tensor)
        if style.startswith("v1"):
            scale = torch.ones(())
        elif "rows" in style:
            scale = tensor.abs().amax(1, keepdim=True) / 448
        else:
            scale = fused.abs().max() / 448
        state[name] = (tensor / scale).to(torch.float8_e4m3fn).float() * scale
    return state


@pytest.mark.parametrize("style", tiny.STYLES)
def test_every_format_gives_the_values_that_it_means(tmp_path, style):
    loaded = load_model(tiny.quantized(tmp_path, style), torch.float32)
    w1 = loaded.get_submodule(W1.removesuffix(".weight"))
    stored = torch.int8 if style.startswith("int8") else torch.float8_e4m3fn
    assert isinstance(w1, HSWQLinear) and w1.weight.dtype == stored
    plain = load_model(tiny.quantized(tmp_path, style), torch.float32, dequantize=True)
    expected = reference(style)
    for name, tensor in plain.state_dict().items():
        wanted = expected[name].reshape(tensor.shape)
        if style in ("int8", "int8-header"):  # sums of a rotation may be made in another order
            assert torch.allclose(tensor, wanted, rtol=1e-5, atol=1e-7), name
        else:
            assert torch.equal(tensor, wanted), name
    assert torch.equal(tiny.run(loaded), tiny.run(plain))


@pytest.mark.parametrize("prefix", PREFIXES, ids=lambda prefix: prefix or "none")
@pytest.mark.parametrize("style", ["v2", "comfyui-old"])
def test_every_prefix(tmp_path, style, prefix):
    there = load_model(tiny.quantized(tmp_path, style, prefix), torch.float32)
    assert tiny.same_bytes(there.state_dict(), load_model(tiny.quantized(tmp_path, style), torch.float32).state_dict())


def test_full_precision_has_no_fp8_layers_and_is_not_quantized(tmp_path):
    loaded = load_model(tiny.checkpoint(tmp_path))
    assert not any(isinstance(module, HSWQLinear) for module in loaded.modules())
    assert not getattr(loaded, "is_quantized", False)


DTYPES = [torch.float16, torch.bfloat16, torch.float32]
WHATEVER_IT_IS_IN = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def filled(dtype):
    """Values for the tiny model that need all bits of `dtype`."""
    generator = torch.Generator().manual_seed(5)
    shapes = {name: tensor.shape for name, tensor in tiny.model().state_dict().items()}
    return {name: (torch.randn(shape, generator=generator) * 0.05).to(dtype) for name, shape in shapes.items()}


@WHATEVER_IT_IS_IN
def test_full_precision_is_computed_in_its_own_dtype_or_in_the_one_asked_for(tmp_path, dtype):
    state = filled(dtype)
    path = tiny.checkpoint(tmp_path, change=lambda tensors: tensors.update(tiny.original_layout(state)))
    for asked in (None, *DTYPES):
        loaded = load_model(path, asked)
        assert loaded.dtype == (asked or dtype)
        assert tiny.same_bytes(loaded.state_dict(), {name: t.to(asked or dtype) for name, t in state.items()})


@WHATEVER_IT_IS_IN
def test_what_is_beside_fp8_may_have_any_dtype_and_gives_the_model_its_own(tmp_path, dtype):
    known, rest = load_model(tiny.quantized(tmp_path, "v2")).state_dict(), filled(dtype)

    def exchange(tensors):
        stored = tiny.original_layout(rest)
        tensors.update({key: stored[key] for key, tensor in tensors.items() if tensor.dtype == torch.bfloat16})

    (tmp_path / "other").mkdir()
    path = tiny.quantized(tmp_path / "other", "v2", change=exchange)
    for asked in (None, *DTYPES):
        loaded, into = load_model(path, asked), asked or dtype
        assert loaded.dtype == loaded.layers[0].feed_forward.w1.compute_dtype == into
        fp8 = {name: t for name, t in known.items() if t.dtype == torch.float8_e4m3fn or name.endswith(".scale")}
        assert len(fp8) > 20
        assert tiny.same_bytes(loaded.state_dict(), {name: t.to(into) for name, t in rest.items()} | fp8)


def test_of_several_dtypes_that_of_most_values_is_the_model_s(tmp_path):
    def mix(tensors):
        tensors.update({key: t.float() if t.ndim < 2 else t.half() for key, t in tensors.items()})

    assert load_model(tiny.checkpoint(tmp_path, change=mix)).dtype == torch.float16


def test_the_name_of_a_file_says_nothing(tmp_path):
    misnamed = tiny.quantized(tmp_path, "v2").rename(tmp_path / "model-v1-bf16.safetensors")
    assert load_model(misnamed, torch.float32).get_submodule(W1.removesuffix(".weight")).scale is not None


def change(key, value):
    def alter(tensors):
        if value is None:
            del tensors[tiny.PREFIX + key]
        else:
            tensors[tiny.PREFIX + key] = value

    return alter


@pytest.mark.parametrize(
    ("style", "key", "value", "sentence"),
    [
        ("v2", "layers.0.feed_forward.w1.scale", None, "w1.weight has no scale"),
        ("v2", "layers.0.feed_forward.w1.scale", torch.tensor([float("nan")]), "w1.scale is nan"),
        ("v2", "layers.0.feed_forward.w1.scale", torch.tensor([float("inf")]), "w1.scale is inf"),
        ("v2", "layers.0.feed_forward.w1.scale", torch.tensor([-0.1]), "w1.scale is -0.1"),
        ("v2", "layers.0.feed_forward.w1.scale", torch.ones(5), "w1.scale has shape .5."),
        ("v2", "layers.0.feed_forward.w1.scale", torch.ones(256, 3), "w1.scale has shape .256, 3."),
        ("v2", W1, None, "missing layers.0.feed_forward.w1.weight"),
        ("comfyui", W1, torch.zeros(256, 96, dtype=torch.bfloat16), "belongs to .*w1.weight, which is not quantized"),
        ("comfyui", "nowhere.weight_scale", torch.ones(()), "unexpected nowhere.weight_scale"),
        ("comfyui", W1, torch.zeros(256, 96, dtype=torch.float8_e5m2), "which is not quantized"),
        ("cast", W1, torch.zeros(256, 96, dtype=torch.float8_e5m2), "w1.weight is F8_E5M2"),
        ("comfyui-old", "layers.0.feed_forward.w1.scale_weight", torch.zeros(()), "w1.scale_weight is 0"),
        ("early", "layers.0.feed_forward.w1.weight.scale", torch.tensor([-1.0]), "w1.weight.scale is -1"),
    ],
    ids=lambda value: None if isinstance(value, torch.Tensor) else str(value),
)
def test_what_does_not_fit_is_named(tmp_path, style, key, value, sentence):
    with pytest.raises(FormatError, match=sentence):
        load_model(tiny.quantized(tmp_path, style, change=change(key, value)), torch.float32)


def test_nobody_computes_in_fp8(tmp_path):
    with pytest.raises(FormatError, match="cannot compute in"):
        load_model(tiny.quantized(tmp_path, "v2"), torch.float8_e4m3fn)
