"""What stands beside a quantized weight, and what is refused."""

import json

import pytest
import torch

from hswq_runtime import formats, scales
from hswq_runtime.errors import FormatError
from hswq_runtime.formats import Format, Product


def mark(tensors):
    return json.loads(bytes(tensors["a.b.comfy_quant"].tolist()))


def test_v1_has_a_unit_scale_for_comfyui_and_none_of_its_own():
    beside = formats.companions("a.b.weight", 1.0, Format.V1, comfyui=True)
    assert set(beside) == {"a.b.weight_scale", "a.b.comfy_quant"}
    assert beside["a.b.weight_scale"].dtype == torch.float32 and beside["a.b.weight_scale"].shape == ()
    assert beside["a.b.weight_scale"].item() == 1.0
    assert mark(beside) == {"format": "float8_e4m3fn"}


@pytest.mark.parametrize("format", list(Format))
def test_how_to_multiply_is_said_to_comfyui(format):
    def said(product):
        beside = formats.companions("a.b.weight", 0.25 if format.scaled else 1.0, format, comfyui=True, product=product)
        return mark(beside), beside.get("a.b.input_scale")

    exact = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
    assert said(Product(exact=True)) == (exact, None)
    assert said(Product(exact=True, input_scale=0.5)) == (exact, None), "nothing would read it"
    assert said(Product()) == ({"format": "float8_e4m3fn"}, None)
    described, scale = said(Product(input_scale=0.37))
    assert described == {"format": "float8_e4m3fn"}
    assert scale.dtype == torch.float32 and scale.shape == () and scale == torch.tensor(0.37)
    assert not any(
        "input" in key
        for key in formats.companions("a.weight", 1.0, format, comfyui=False, product=Product(input_scale=0.5))
    )


def product(**stored):
    """`read_product` of a weight `a`, beside which `stored` stands."""
    tensors = {
        f"a.{name}": value if isinstance(value, torch.Tensor) else torch.tensor(value) for name, value in stored.items()
    }
    if "scaled_fp8" in stored:
        tensors["scaled_fp8"] = tensors.pop("a.scaled_fp8")
    if "comfy_quant" in stored:
        tensors["a.weight_scale"] = torch.ones(())
    dtypes = {"a.weight": "F8_E4M3", **dict.fromkeys(tensors, "F32")}
    weights, companions = formats.find_weights(dtypes, None)
    assert companions == tensors.keys()
    return formats.read_product(weights["a.weight"], 64, tensors.__getitem__)


def text(described):
    return torch.tensor(list(json.dumps(described).encode()), dtype=torch.uint8)


def test_how_to_multiply_is_read():
    exact = text({"format": "float8_e4m3fn", "full_precision_matrix_mult": True})
    fast = text({"format": "float8_e4m3fn", "full_precision_matrix_mult": False})
    assert product() == Product(), "without marks: in FP8"
    assert product(comfy_quant=exact) == Product(exact=True)
    assert product(comfy_quant=exact, input_scale=0.5) == Product(exact=True, input_scale=0.5)
    assert product(comfy_quant=fast, input_scale=[0.5]) == Product(input_scale=0.5)
    assert product(scale_input=0.5) == Product(input_scale=0.5)
    assert product(scale_input=0.5, input_scale=0.5) == Product(input_scale=0.5)
    assert product(input_scale=1.0) == Product(input_scale=1.0)
    assert product(scale_input=1.0) == Product(), "the older converters wrote it everywhere, and ComfyUI drops it"
    assert product(scaled_fp8=torch.zeros(2), scale_input=0.5) == Product(exact=True, input_scale=0.5)
    assert product(scaled_fp8=torch.zeros(0)) == Product()


@pytest.mark.parametrize("format", list(Format))
@pytest.mark.parametrize("wanted", [Product(exact=True), Product(), Product(input_scale=0.37)], ids=str)
def test_how_to_multiply_comes_back(format, wanted):
    beside = formats.companions("a.weight", 1.0, format, comfyui=True, product=wanted)
    weights, companions = formats.find_weights({"a.weight": "F8_E4M3", **dict.fromkeys(beside, "F32")}, format)
    assert companions == beside.keys()
    found = formats.read_product(weights["a.weight"], 64, beside.__getitem__)
    assert found.exact == wanted.exact
    assert found.input_scale == (wanted.input_scale and torch.tensor(wanted.input_scale).item())


@pytest.mark.parametrize("name", ["input_scale", "scale_input"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), [1.0, 2.0], []], ids=str)
def test_impossible_input_scales_are_refused(name, value):
    with pytest.raises(FormatError, match=rf"a\.{name}"):
        product(**{name: value})


def test_contradicting_or_nonsensical_words_on_multiplying_are_refused():
    with pytest.raises(FormatError, match=r"a\.scale_input is 0\.25, but a\.input_scale is 0\.5"):
        product(input_scale=0.5, scale_input=0.25)
    with pytest.raises(FormatError, match="neither true nor false"):
        product(comfy_quant=text({"format": "float8_e4m3fn", "full_precision_matrix_mult": "yes"}))
    with pytest.raises(FormatError, match="neither true nor false"):
        header = {"layers": {"a": {"format": "float8_e4m3fn", "full_precision_matrix_mult": 1}}}
        formats.check_metadata({"_quantization_metadata": json.dumps(header)})


def test_a_header_may_say_which_layers_are_exact():
    layers = {name: {"format": "float8_e4m3fn", "full_precision_matrix_mult": name == "a"} for name in "ab"}
    exact = formats.check_metadata({"_quantization_metadata": json.dumps({"layers": layers})})
    assert {name for name, said in exact.items() if said.exact} == {"a"} and formats.check_metadata({}) == {}
    found = [formats.read_product(formats.StoredWeight(f"{name}.weight"), 64, {}.__getitem__, exact) for name in "ab"]
    assert found == [Product(exact=True), Product()]


def test_v2_has_the_scale_twice_for_two_kinds_of_loaders():
    beside = formats.companions("a.b.weight", 0.25, Format.V2, comfyui=True)
    assert set(beside) == {"a.b.scale", "a.b.weight_scale", "a.b.comfy_quant"}
    assert beside["a.b.scale"].dtype == torch.float32 and beside["a.b.scale"].shape == (1,)
    assert beside["a.b.scale"].item() == beside["a.b.weight_scale"].item() == 0.25
    assert mark(beside) == {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}


@pytest.mark.parametrize(("format", "names"), [(Format.V1, set()), (Format.V2, {"a.b.scale"})])
def test_convolutions_have_nothing_that_comfyui_would_not_read(format, names):
    assert set(formats.companions("a.b.weight", 1.0, format, comfyui=False)) == names


@pytest.mark.parametrize("format", list(Format))
def test_what_is_written_is_read_back(format):
    beside = formats.companions("a.weight", 0.5, format, comfyui=True)
    dtypes = {"a.weight": "F8_E4M3", "a.bias": "BF16", **dict.fromkeys(beside, "F32")}
    weights, companions = formats.find_weights(dtypes, format)
    assert companions == set(beside)
    scale_keys = ("a.scale", "a.weight_scale") if format.scaled else ("a.weight_scale",)
    assert weights == {"a.weight": formats.StoredWeight("a.weight", scale_keys, "a.comfy_quant", format)}
    scale = formats.read_scale(weights["a.weight"], 3, {**beside}.__getitem__) if format.scaled else None
    assert scale is None or scale.tolist() == [0.5]


def read(format, **stored):
    """`read_scale` of a weight `a` with 3 rows, beside which `stored` stands."""
    tensors = {f"a.{name.replace('__', '.')}": torch.tensor(value) for name, value in stored.items()}
    weights, _ = formats.find_weights({"a.weight": "F8_E4M3", **dict.fromkeys(tensors, "F32")}, format)
    return formats.read_scale(weights["a.weight"], 3, tensors.__getitem__)


@pytest.mark.parametrize("name", ["scale", "weight__scale", "weight_scale", "scale_weight"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.5, [0.5]), ([0.5], [0.5]), ([1.0, 2.0, 4.0], [1.0, 2.0, 4.0]), ([[1.0], [2.0], [4.0]], [1.0, 2.0, 4.0])],
    ids=["scalar", "one", "rows", "column"],
)
def test_scales_are_read_by_their_keys(name, value, expected):
    scale = read(None, **{name: value})
    assert scale.dtype == torch.float32 and scale.tolist() == expected


def test_a_weight_without_scale_or_with_scale_one_is_its_values():
    assert read(None) is None
    assert read(None, weight_scale=1.0) is None
    assert read(Format.V1, weight_scale=1.0) is None
    assert read(Format.V2, scale=[1.0]).tolist() == [1.0], "what a V2 file has, a saved one has again"


def test_contradictions_are_refused():
    with pytest.raises(FormatError, match=r"a\.weight_scale is 0\.25, but a\.scale is 0\.5"):
        read(Format.V2, scale=[0.5], weight_scale=0.25)
    with pytest.raises(FormatError, match=r"a\.weight_scale is 0\.5, but the file says that it is V1"):
        read(Format.V1, weight_scale=0.5)


@pytest.mark.parametrize(
    "described", [b'{"format": "int8_tensorwise"}', b"{", b"[]", b"\xff\xfe", b"{}", b"[" * 100_000]
)
def test_a_mark_that_names_another_format_or_none_is_refused(described):
    mark = torch.tensor(list(described), dtype=torch.uint8)
    weight = formats.StoredWeight("a.weight", mark_key="a.comfy_quant")
    with pytest.raises(FormatError, match=r"a\.comfy_quant"):
        formats.read_scale(weight, 3, {"a.comfy_quant": mark}.__getitem__)


@pytest.mark.parametrize("entry", ['{"layers": {"a": {"format": "nvfp4"}}}', "{", "[]", '{"layers": 3}', "[" * 100_000])
def test_a_header_that_describes_another_format_or_nothing_is_refused(entry):
    formats.check_metadata({"_quantization_metadata": '{"layers": {"a": {"format": "float8_e4m3fn"}}}'})
    with pytest.raises(FormatError, match=r"nvfp4|_quantization_metadata"):
        formats.check_metadata({"_quantization_metadata": entry})


def test_v2_weight_without_scale_is_refused():
    with pytest.raises(FormatError, match=r"a\.weight has no scale"):
        formats.find_weights({"a.weight": "F8_E4M3", "a.weight_scale": "F32"}, Format.V2)


def test_scale_beside_a_plain_weight_is_refused():
    with pytest.raises(FormatError, match=r"a\.scale belongs to a\.weight, which is not quantized"):
        formats.find_weights({"a.weight": "BF16", "a.scale": "F32"}, None)


@pytest.mark.parametrize(
    "values", [[0.0], [-1.0], [float("nan")], [float("inf")], [1.0, 1.0], [[1.0, 1.0, 1.0]], [1.0, -1.0, 1.0]], ids=str
)
def test_impossible_scales_are_refused(values):
    with pytest.raises(FormatError, match=r"a\.scale"):
        scales.check_scale("a.scale", torch.tensor(values), rows=3)


def test_unknown_format_is_refused():
    with pytest.raises(FormatError, match="v9"):
        formats.format_of({"hswq_format": "v9"})
