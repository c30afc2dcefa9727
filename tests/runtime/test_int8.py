"""INT8 layers: the same bits as ComfyUI's own library, exact and in INT8; what a rotation is; what is refused."""

import json

import pytest
import torch
import torch.nn.functional as F
from comfy_kitchen.backends.eager import quantization as eager
from comfy_kitchen.tensor.int8_utils import _build_hadamard
from support import tiny
from support.kitchen import Theirs, inputs, theirs_in

from hswq_runtime import FormatError, HSWQLinear, Reader, load_model, set_quantized_matmul
from hswq_runtime.formats import Number, Product
from hswq_runtime.layers import int8
from hswq_runtime.layers.numbers import quantize

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
READERS = pytest.mark.parametrize("reader", list(Reader))


def layer(k, n, dtype=torch.float32, group=None, scales=None, exact=False, bias=True):
    torch.manual_seed(k * n)
    product = Product(exact, number=Number.INT8, group=group)
    scales = n if scales is None else scales
    made = HSWQLinear(k, n, bias, scales=scales, compute_dtype=dtype, product=product, device="cpu")
    codes, scale = quantize(torch.randn(n, k) * torch.rand(n, 1), Number.INT8, scales, group)
    made.weight.data.copy_(codes)
    made.scale.copy_(scale)
    if bias:
        made.bias = torch.nn.Parameter(torch.randn(n).to(dtype), requires_grad=False)
    return made


@READERS
@DTYPES
@pytest.mark.parametrize("exact", [False, True], ids=["int8", "exact"])
@pytest.mark.parametrize(
    ("size", "group"),
    [((64, 48), 16), ((96, 64), None), ((512, 96), 256), ((1040, 32), 16), ((2304, 16), 256), ((20, 7), 4)],
    ids=str,
)
def test_a_layer_is_theirs_to_the_bit(dtype, exact, size, group, reader):
    for bias in (True, False):
        for scales in (size[1], 1):
            ours = layer(*size, dtype, group, scales, exact, bias)
            if reader is Reader.COMFYUI or not exact:
                ours.quantized_matmul, ours.reader = not exact, reader
            for shape in ((7,), (1,), (2, 3), (2, 3, 2)):
                x = inputs(size[0], shape, largest=3e4).to(dtype)  # of which float16 holds the rotated ones
                found, expected = ours(x), Theirs(ours)(x)
                assert found.dtype == dtype and torch.equal(found, expected)


@DTYPES
def test_a_whole_model_is_theirs_to_the_bit(tmp_path, dtype):
    path = tiny.quantized(tmp_path, "int8")
    arguments = tiny.inputs()
    arguments["x"], arguments["cap_feats"] = ([t.to(dtype) for t in arguments[name]] for name in ("x", "cap_feats"))
    ours = load_model(path, dtype)
    with torch.no_grad():
        exact = ours(**arguments)[0][0]
        assert set_quantized_matmul(ours, reader=Reader.COMFYUI) > 0
        rounded, theirs = (model(**arguments)[0][0] for model in (ours, theirs_in(load_model(path, dtype))))
    assert torch.equal(rounded, theirs) and rounded.isfinite().all()
    assert not torch.equal(rounded, exact)


@pytest.mark.parametrize("group", [4, 16, 64, 256])
def test_a_rotation_is_a_regular_hadamard_matrix_and_its_own_inverse(group):
    matrix = int8.rotation(group, torch.float64, torch.device("cpu"))
    assert torch.equal(matrix, _build_hadamard(group, dtype=torch.float64))
    assert torch.equal(matrix @ matrix, torch.eye(group, dtype=torch.float64))
    assert (matrix.sum(0) == 1).all(), "no column is constant"
    values = torch.randn(3, 2 * group, dtype=torch.float64)
    assert torch.allclose(int8.rotate(int8.rotate(values, group), group), values, atol=1e-12)
    assert int8.rotate(values, None) is values


def test_groups_are_the_largest_power_of_4_up_to_256_that_divides():
    found = {columns: int8.group_of(columns) for columns in (3840, 2432, 1024, 96, 36, 18, 7)}
    assert found == {3840: 256, 2432: 64, 1024: 256, 96: 16, 36: 4, 18: None, 7: None}


@pytest.mark.parametrize("columns", [64, 1024, 1025, 5000])
def test_sums_are_exact_whatever_the_codes(columns):
    torch.manual_seed(0)
    a = torch.randint(-128, 128, (5, columns), dtype=torch.int8)
    b = torch.randint(-127, 128, (6, columns), dtype=torch.int8)
    a[0], b[0] = -128, 127
    assert torch.equal(int8._sums(a, b).long(), a.long() @ b.long().T)


@DTYPES
def test_an_outlier_costs_less_where_inputs_are_rotated(dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(64, 256), torch.randn(32, 256)
    x[:, 3] *= 100
    errors = []
    for group in (None, 256):
        codes, scale = quantize(weight, Number.INT8, 32, group)
        found = int8.multiply(x.to(dtype), codes, scale, None, dtype, group).float()
        errors.append((found - x @ weight.T).norm().item())
    assert errors[1] < errors[0] / 2


def test_rounding_to_nearest_is_theirs():
    weight = torch.randn(16, 512)
    codes, scale = quantize(weight, Number.INT8, 16, 256)
    theirs, their_scale = eager.quantize_int8_convrot_weight(weight, 256)
    assert torch.equal(codes, theirs) and torch.equal(scale, their_scale.flatten())


def test_gradients_are_those_of_the_exact_product():
    ours = layer(64, 32, group=16)
    ours.quantized_matmul = True
    x = torch.randn(5, 64, requires_grad=True)
    ours(x).square().sum().backward()
    expected = 2 * ours(x.detach()) @ ours.dequantized_weight()
    assert torch.allclose(x.grad, expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(
        ours(x), F.linear(x, ours.dequantized_weight(), ours.bias), atol=0.05 * ours(x).abs().max().item()
    )


def described(tensors, **changes):
    """Alter ComfyUI's description of one layer."""
    key = next(key for key in tensors if key.endswith("feed_forward.w1.comfy_quant"))
    said = json.loads(bytes(tensors[key].tolist())) | changes
    tensors[key] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": "float8_e4m3fn"}, "says float8_e4m3fn, but the weight is INT8"),
        ({"format": "nvfp4"}, "says 'nvfp4'; this release reads float8_e4m3fn and int8_tensorwise"),
        ({"convrot_groupsize": 64}, "has 96 inputs, which are no groups of 64"),
        ({"convrot_groupsize": 8}, "says convrot_groupsize: 8; groups of 4, 16, 64"),
        ({"convrot_groupsize": "16"}, "says convrot_groupsize: '16'"),
        ({"convrot": "yes"}, "says convrot: 'yes', which is neither true nor false"),
    ],
    ids=str,
)
def test_a_description_that_cannot_be_is_refused(tmp_path, changes, sentence):
    path = tiny.quantized(tmp_path, "int8", change=lambda tensors: described(tensors, **changes))
    with pytest.raises(FormatError) as caught:
        load_model(path)
    assert sentence in str(caught.value)


def test_parameters_of_a_description_may_stand_apart(tmp_path):
    """As ComfyUI reads them."""

    def apart(tensors):
        key = next(key for key in tensors if key.endswith("feed_forward.w1.comfy_quant"))
        said = {"format": "int8_tensorwise", "params": {"convrot": True, "convrot_groupsize": 16}}
        tensors[key] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)

    plain = tiny.run(load_model(tiny.quantized(tmp_path, "int8"), torch.float32))
    moved = load_model(tiny.quantized(tmp_path, "int8", change=apart), torch.float32)
    assert torch.equal(tiny.run(moved), plain)


def test_a_weight_without_a_scale_is_refused(tmp_path):
    def lose(tensors):
        for key in [key for key in tensors if "feed_forward.w1" in key and not key.endswith("w1.weight")]:
            del tensors[key]

    with pytest.raises(FormatError, match="is INT8 and has no scale"):
        load_model(tiny.quantized(tmp_path, "int8", change=lose))


def test_a_layer_of_pieces_that_are_rotated_otherwise_is_expanded(tmp_path):
    """Stored as diffusers has it, and fused there by nobody: but a file may say one thing of q and another of k."""
    from hswq_runtime.checkpoints.mapping import Piece, gather_product

    one, other = Product(number=Number.INT8, group=16), Product(number=Number.INT8, group=4)
    pieces = [Piece("a", 0, 2), Piece("b", 0, 2)]
    assert gather_product(pieces, {"a": one, "b": one}) == one
    assert gather_product(pieces, {"a": one, "b": other}) is None
    assert gather_product(pieces, {"a": one, "b": Product()}) is None
    assert gather_product(pieces, {"a": one}) is None
    exact = Product(exact=True, number=Number.INT8, group=16)
    assert gather_product(pieces, {"a": one, "b": exact}) == exact


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@DTYPES
@pytest.mark.parametrize(("size", "rows"), [((512, 96), 7), ((1040, 33), 64), ((2304, 17), 1)], ids=str)
def test_the_product_on_cuda_is_that_on_the_cpu(dtype, size, rows):
    ours = layer(*size, dtype, group=16)
    ours.quantized_matmul = True
    x = torch.randn(rows, size[0]).to(dtype)
    expected = ours(x)
    assert torch.allclose(ours.cuda()(x.cuda()).cpu(), expected, rtol=0.02, atol=0.02 * expected.abs().max().item())
