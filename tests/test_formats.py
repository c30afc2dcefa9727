"""What stands beside a quantized weight, and what is refused."""

import json

import pytest
import torch

from hswq_runtime import formats
from hswq_runtime.errors import FormatError
from hswq_runtime.formats import Format


def mark(tensors):
    return json.loads(bytes(tensors["a.b.comfy_quant"].tolist()))


def test_v1_has_a_unit_scale_for_comfyui_and_none_of_its_own():
    beside = formats.companions("a.b.weight", 1.0, Format.V1, comfyui=True)
    assert set(beside) == {"a.b.weight_scale", "a.b.comfy_quant"}
    assert beside["a.b.weight_scale"].dtype == torch.float32 and beside["a.b.weight_scale"].shape == ()
    assert beside["a.b.weight_scale"].item() == 1.0
    assert mark(beside) == {"format": "float8_e4m3fn"}


def test_v2_has_the_scale_twice_for_two_kinds_of_loaders():
    beside = formats.companions("a.b.weight", 0.25, Format.V2, comfyui=True)
    assert set(beside) == {"a.b.scale", "a.b.weight_scale", "a.b.comfy_quant"}
    assert beside["a.b.scale"].dtype == torch.float32 and beside["a.b.scale"].shape == (1,)
    assert beside["a.b.scale"].item() == beside["a.b.weight_scale"].item() == 0.25
    assert mark(beside) == {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}


@pytest.mark.parametrize(("version", "names"), [(Format.V1, set()), (Format.V2, {"a.b.scale"})])
def test_convolutions_have_nothing_that_comfyui_would_not_read(version, names):
    assert set(formats.companions("a.b.weight", 1.0, version, comfyui=False)) == names


@pytest.mark.parametrize("version", list(Format))
def test_what_is_written_is_read_back(version):
    beside = formats.companions("a.weight", 0.5, version, comfyui=True)
    dtypes = {"a.weight": "F8_E4M3", "a.bias": "BF16", **dict.fromkeys(beside, "F32")}
    weights, companions = formats.find_weights(dtypes, version)
    assert companions == set(beside)
    scale_key = "a.scale" if version.scaled else None
    assert weights == {"a.weight": formats.StoredWeight("a.weight", scale_key, "a.weight_scale")}


def test_a_file_without_metadata_is_read_by_its_keys():
    plain = {"a.weight": "F8_E4M3"}
    assert formats.find_weights(plain, None)[0]["a.weight"].scale_key is None
    assert formats.find_weights({**plain, "a.scale": "F32"}, None)[0]["a.weight"].scale_key == "a.scale"
    assert formats.find_weights({**plain, "a.weight_scale": "F32"}, None)[0]["a.weight"].scale_key == "a.weight_scale"


def test_v2_weight_without_scale_is_refused():
    with pytest.raises(FormatError, match=r"a\.weight has no scale"):
        formats.find_weights({"a.weight": "F8_E4M3", "a.weight_scale": "F32"}, Format.V2)


def test_scale_beside_a_plain_weight_is_refused():
    with pytest.raises(FormatError, match=r"a\.scale belongs to a\.weight, which is not FP8"):
        formats.find_weights({"a.weight": "BF16", "a.scale": "F32"}, None)


@pytest.mark.parametrize("values", [[0.0], [-1.0], [float("nan")], [float("inf")], [1.0, 1.0]])
def test_impossible_scales_are_refused(values):
    with pytest.raises(FormatError, match=r"a\.scale"):
        formats.check_scale("a.scale", torch.tensor(values))


def test_unknown_version_is_refused():
    with pytest.raises(FormatError, match="v9"):
        formats.version_of({"hswq_format": "v9"})
