"""A quantized model behaves as diffusers users expect: offloading, compiling, copying, moving, multiplying in FP8."""

import copy
import pickle

import pytest
import safetensors.torch
import torch
from accelerate import cpu_offload, dispatch_model
from diffusers import FluxTransformer2DModel, ZImageTransformer2DModel
from diffusers.hooks import apply_group_offloading
from safetensors.torch import save_file
from support import loras, tiny
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter

from hswq_runtime import HSWQConfig, HSWQLinear, HSWQPipeline, load_model, set_quantized_matmul, weight_bytes
from hswq_runtime.errors import DeviceError
from hswq_runtime.formats import Number
from hswq_runtime.layers.numbers import NUMBERS
from hswq_runtime.quantizer import HSWQQuantizer

STYLES = pytest.mark.parametrize("style", ["v1", "v2", "v2-rows", "int8"])


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=["v2", "int8"])
def model(tmp_path, request):
    return load_model(tiny.quantized(tmp_path, request.param), torch.float32)


def fp8_layers(model):
    return [layer for layer in model.modules() if isinstance(layer, HSWQLinear)]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_are_the_same_model(model, copied):
    """accelerate pickles models to start processes for several GPUs."""
    other = copied(model)
    assert tiny.same_bytes(other.state_dict(), model.state_dict())
    assert torch.equal(tiny.run(other), tiny.run(model))
    assert isinstance(other.hf_quantizer, HSWQQuantizer)
    other.dequantize()
    assert fp8_layers(model) and not fp8_layers(other)


def test_pickled_after_loading_by_diffusers(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    again = ZImageTransformer2DModel.from_pretrained(tmp_path / "saved", torch_dtype=torch.float32)
    assert torch.equal(tiny.run(pickle.loads(pickle.dumps(again))), tiny.run(model))


def test_moving_it_changes_nothing(model):
    expected = tiny.run(model)
    assert model.to("cpu") is model
    assert torch.equal(tiny.run(model), expected)
    with pytest.raises(ValueError, match="unsupported"):
        model.to(torch.float16)


# --- Offloading ---------------------------------------------------------------------------------------


def test_sequential_offloading(model):
    """What `enable_sequential_cpu_offload` does to a component, with the CPU in the place of the GPU."""
    expected = tiny.run(model)
    cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
    layer = fp8_layers(model)[0]
    assert layer.weight.device.type == "meta", "nothing stays on the device"
    assert torch.equal(tiny.run(model), expected)
    assert layer.weight.device.type == "meta"


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
@pytest.mark.parametrize("disk", [False, True], ids=["memory", "disk"])
def test_group_offloading(model, tmp_path, kind, disk, monkeypatch):
    """With the CPU in the place of the GPU, which gets copies of what is on the disk, in memory of its own."""
    read = safetensors.torch.load_file
    monkeypatch.setattr(
        safetensors.torch, "load_file", lambda *file, **how: {k: v.clone() for k, v in read(*file, **how).items()}
    )
    expected, before = tiny.run(model), {k: v.clone() for k, v in model.state_dict().items()}
    arguments = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    if disk:
        arguments["offload_to_disk_path"] = str(tmp_path)
    apply_group_offloading(
        model, torch.device("cpu"), offload_device=torch.device("cpu"), offload_type=kind, **arguments
    )
    for _ in range(2):
        assert torch.equal(tiny.run(model), expected)
    if not disk:
        assert tiny.same_bytes(model.state_dict(), before)
    else:
        assert any(path.suffix == ".safetensors" for path in tmp_path.rglob("group_*"))


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offloading_with_streams(model, offload_with_streams, kind):
    """Copies of weights and scales stay on the CPU, held by the identity of the tensors, and are put back each time."""
    expected, before = tiny.run(model), {k: v.clone() for k, v in model.state_dict().items()}
    layers = fp8_layers(model.layers)
    given = [layer.weight.data_ptr() for layer in layers]
    offload_with_streams(model, kind)
    copies = [layer.weight.data_ptr() for layer in layers]
    assert not {*given} & {*copies}
    for _ in range(3):
        assert torch.equal(tiny.run(model), expected)
        assert [layer.weight.data_ptr() for layer in layers] == copies
    assert tiny.same_bytes(model.state_dict(), before)


@pytest.mark.cuda
@CUDA
@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offloading_with_streams_on_cuda(model, kind):
    inputs = {name: to_cuda(value) for name, value in tiny.inputs().items()}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        expected = copy.deepcopy(model).to("cuda")(**inputs)[0][0]
        arguments = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        apply_group_offloading(model, torch.device("cuda"), offload_type=kind, use_stream=True, **arguments)
        for _ in range(2):
            assert torch.equal(model(**inputs)[0][0], expected)
    assert all(parameter.device.type == "cpu" for parameter in fp8_layers(model)[0].parameters())
    assert tiny.same_bytes(model.state_dict(), before)


def to_cuda(value):
    if isinstance(value, list):
        return [to_cuda(one) for one in value]
    return value.cuda() if isinstance(value, torch.Tensor) else value


def test_dispatching_by_a_device_map(model, tmp_path):
    expected = tiny.run(model)
    model.save_pretrained(tmp_path / "saved")
    for device_map in ("cpu", {"": "cpu"}, "auto"):
        again = ZImageTransformer2DModel.from_pretrained(
            tmp_path / "saved", torch_dtype=torch.float32, device_map=device_map
        )
        assert tiny.same_bytes(again.state_dict(), model.state_dict())
        assert torch.equal(tiny.run(again), expected)
    names = {name: "cpu" for name, _ in model.named_children()} | {"x_pad_token": "cpu", "cap_pad_token": "cpu"}
    assert torch.equal(tiny.run(dispatch_model(model, names, force_hooks=True)), expected)


def test_a_device_map_onto_the_disk_is_refused_before_it_writes_nonsense(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(Exception, match="cannot put quantized weights on the disk"):
        ZImageTransformer2DModel.from_pretrained(
            tmp_path / "saved", torch_dtype=torch.float32, device_map={"": "disk"}, offload_folder=str(tmp_path / "off")
        )


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return tiny.published_demo(tmp_path_factory.mktemp("published"))


def picture(pipe):
    assert fp8_layers(pipe.transformer)
    arguments = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 0.0, "output_type": "np"}
    return pipe("a ring", generator=torch.Generator().manual_seed(0), **arguments).images


@pytest.mark.parametrize("device_map", ["cpu", "balanced"])
def test_a_pipeline_with_a_device_map(published, device_map):
    if device_map == "balanced" and not torch.cuda.is_available():
        pytest.skip("balancing needs an accelerator")
    pipe = HSWQPipeline.from_pretrained(published, dtype=torch.float32, device_map=device_map)
    expected = picture(HSWQPipeline.from_pretrained(published, dtype=torch.float32))
    assert abs(picture(pipe) - expected).max() < 1e-3


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, CUDA])])
def test_moving_and_offloading_a_pipeline(published, device):
    """On the CPU every hook does what it does beside a GPU, but for the copying."""
    pipe = HSWQPipeline.from_pretrained(published, dtype=torch.float32)
    expected = picture(pipe)
    assert abs(picture(pipe.to(device)) - expected).max() < 1e-3
    pipe.to("cpu")
    pipe.enable_model_cpu_offload(device=device)
    assert abs(picture(pipe) - expected).max() < 1e-3
    if device == "cuda":  # from the CPU to the CPU accelerate does it for a model, not for diffusers' pipelines
        pipe.enable_sequential_cpu_offload(device=device)
        assert abs(picture(pipe) - expected).max() < 1e-3
        assert fp8_layers(pipe.transformer)[0].weight.is_meta, "nothing stays on the device"


# --- Dtypes -------------------------------------------------------------------------------------------


def test_autocast_does_what_it_does_to_the_plain_model(tmp_path):
    path = tiny.quantized(tmp_path, "v2-rows")
    ours, plain = load_model(path, torch.float32), load_model(path, torch.float32, dequantize=True)
    exact, layer = tiny.run(ours), ours.layers[0].feed_forward.w1
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = tiny.run(ours), tiny.run(plain)
        assert layer(torch.ones(2, 96)).dtype == torch.bfloat16
    assert found.dtype == expected.dtype and torch.equal(found, expected)
    assert 0 < (found - exact).norm() < 0.05 * exact.norm()


def test_training_under_autocast_gives_gradients_in_the_dtype_of_the_inputs(tmp_path):
    path, gradients = tiny.quantized(tmp_path, "v2"), []
    for dequantize in (False, True):
        layer = load_model(path, torch.float32, dequantize=dequantize).layers[0].feed_forward.w1
        inputs = torch.linspace(-1, 1, 3 * 96).reshape(3, 96).requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16):
            layer(inputs).square().sum().backward()
        gradients.append(inputs.grad)
    ours, plain = gradients
    assert ours.dtype == plain.dtype == torch.float32
    assert torch.allclose(ours, plain, rtol=0.02, atol=0.02 * plain.abs().max())


@pytest.mark.parametrize("style", ["v2", "cast"])
def test_the_first_parameter_has_the_compute_dtype(tmp_path, style):
    """Pipelines of diffusers cast to `transformer.dtype` or to `next(transformer.parameters()).dtype`."""
    path = tiny.quantized(tmp_path, style)
    tiny.model().save_config(tmp_path / "config")
    for model in (
        load_model(path, torch.float16),
        ZImageTransformer2DModel.from_single_file(
            str(path), config=str(tmp_path / "config"), quantization_config=HSWQConfig(), torch_dtype=torch.float16
        ),
    ):
        assert fp8_layers(model)
        assert next(model.parameters()).dtype == model.dtype == torch.float16


def test_a_first_parameter_that_is_fp8_is_expanded(tmp_path):
    """In Flux it is the weight of a linear layer, which any file may hold in FP8."""
    sizes = {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 8, "axes_dims_rope": (4, 4, 8)}
    flux = FluxTransformer2DModel(
        **sizes, patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, pooled_projection_dim=8
    )
    flux.register_to_config(quantization_config=HSWQConfig())
    flux.save_config(tmp_path)
    first = next(name for name, _ in flux.named_parameters())
    state = {
        name: tensor.to(torch.float8_e4m3fn if name.endswith("weight") and tensor.ndim == 2 else torch.bfloat16)
        for name, tensor in flux.state_dict().items()
    }
    assert state[first].dtype == torch.float8_e4m3fn
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    loaded = FluxTransformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert next(loaded.parameters()).dtype == loaded.dtype == torch.bfloat16
    assert torch.equal(next(loaded.parameters()), state[first].bfloat16())
    assert sum(p.dtype == torch.float8_e4m3fn for p in loaded.parameters()) > 10


# --- Compiling ----------------------------------------------------------------------------------------


@pytest.fixture
def compiler():
    """Without what earlier tests compiled of the same code: its guards would count as recompilations."""
    torch._dynamo.reset()


@pytest.mark.parametrize("quantized_matmul", [False, True])
@STYLES
def test_a_layer_compiles_without_graph_breaks(compiler, tmp_path, style, quantized_matmul):
    layer = (
        load_model(tiny.quantized(tmp_path, style), torch.float32, quantized_matmul=quantized_matmul)
        .layers[0]
        .feed_forward.w1
    )
    inputs = torch.randn(3, 96)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(inputs), layer(inputs), rtol=1e-4, atol=1e-6)


def test_the_blocks_compile_without_graph_breaks(compiler, model):
    expected = tiny.run(model)
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    assert torch.allclose(tiny.run(model), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("how", ["exact", "quantized_matmul", "lora"])
def test_the_whole_model_compiles_into_one_graph(compiler, tmp_path, how):
    """But for the frequencies, which diffusers' Z-Image computes in its first call `with torch.device("cpu")`: torch
    does not compile that, be the model plain or quantized. A UNet has nothing of the kind: `test_unet_layers.py`."""
    model = load_model(tiny.quantized(tmp_path, "v2-rows"), torch.float32, quantized_matmul=how == "quantized_matmul")
    if how == "lora":
        loras.pipeline(model).load_lora_weights(loras.diffusers_layout())
    model.rope_embedder(torch.zeros(1, 3, dtype=torch.int64))
    counter = CompileCounter()
    found = tiny.run(torch.compile(model, fullgraph=True, backend=counter))
    assert counter.frame_count == 1
    assert torch.equal(found, tiny.run(model))


@pytest.mark.cuda
@CUDA
@pytest.mark.parametrize("quantized_matmul", [False, True])
def test_the_whole_model_compiles_on_cuda(compiler, tmp_path, quantized_matmul):
    if quantized_matmul and not NUMBERS[Number.FP8].can_multiply(torch.device("cuda")):
        pytest.skip("needs SM 8.9")
    model = load_model(tiny.quantized(tmp_path, "v2-rows"), torch.float32, quantized_matmul=quantized_matmul).to("cuda")
    inputs = {name: to_cuda(value) for name, value in tiny.inputs().items()}
    with torch.no_grad():
        expected = model(**inputs)[0][0]
        found = torch.compile(model, fullgraph=True)(**inputs)[0][0]
    assert (found - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("style", ["v1", "v2", "v2-rows"])
def test_compiled_the_weight_is_expanded_by_operations_that_fuse(compiler, tmp_path, style):
    """Only elementwise ones stand between the FP8 weight and the product: a compiler makes them one kernel, whose only
    intermediate is the weight of this layer."""
    layer, graphs = load_model(tiny.quantized(tmp_path, style), torch.bfloat16).layers[0].feed_forward.w1, []
    keep = aot_autograd(fw_compiler=lambda graph, _: graphs.append(graph) or graph.forward)
    with torch.no_grad():
        torch.compile(layer, fullgraph=True, backend=keep)(torch.randn(3, 96).bfloat16())
    (graph,) = graphs
    found = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    aten = torch.ops.aten
    shapes = {aten.t.default, aten.permute.default, aten.view.default, aten.reshape.default}
    elementwise = {aten._to_copy.default, aten.mul.Tensor}
    assert sum(target is aten.mm.default for target in found) == 1
    assert {*found} - {aten.mm.default} <= shapes | elementwise


def test_training_compiles_too(compiler, tmp_path):
    layer = load_model(tiny.quantized(tmp_path, "v2"), torch.float32).layers[0].feed_forward.w1
    gradients = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        inputs = torch.ones(3, 96, requires_grad=True)
        run(inputs).square().sum().backward()
        gradients.append(inputs.grad)
    assert torch.allclose(*gradients, rtol=1e-4)


# --- Multiplying in FP8 -------------------------------------------------------------------------------


@STYLES
def test_quantized_matmul_is_near_and_not_equal(tmp_path, style):
    path = tiny.quantized(tmp_path, style)
    exact, fast = load_model(path, torch.float32), load_model(path, torch.float32, quantized_matmul=True)
    assert tiny.same_bytes(exact.state_dict(), fast.state_dict()), "the same file, the same weights"
    error = (tiny.run(fast) - tiny.run(exact)).norm() / tiny.run(exact).norm()
    assert 1e-4 < error < 0.05
    assert set_quantized_matmul(fast, False) == 0
    assert torch.equal(tiny.run(fast), tiny.run(exact))


def test_sensitive_layers_and_odd_shapes_stay_exact(model):
    count = set_quantized_matmul(model)
    chosen = {name for name, layer in model.named_modules() if isinstance(layer, HSWQLinear) and layer.quantized_matmul}
    assert count == len(chosen) > 0
    assert "layers.0.attention.to_q" in chosen and "layers.0.feed_forward.w2" in chosen
    assert not any(word in name for name in chosen for word in ("embedder", "adaLN", "final"))
    assert set_quantized_matmul(torch.compile(model)) == count, "a compiled model is the same model"
    odd = torch.nn.Sequential(HSWQLinear(20, 32, scales=0, compute_dtype=torch.float32))
    assert set_quantized_matmul(odd) == 0


def test_pipelines_and_diffusers_own_classes_can_be_told_to(published, tmp_path):
    pipe = HSWQPipeline.from_pretrained(published, dtype=torch.float32, quantized_matmul=True)
    pipe.save_pretrained(tmp_path / "saved")
    told, untold = (HSWQPipeline.from_pretrained(tmp_path / "saved", quantized_matmul=told) for told in (True, False))
    single = ZImageTransformer2DModel.from_single_file(
        str(published / "demo-hswq-v1.safetensors"),
        config=str(tmp_path / "saved/transformer"),
        quantization_config=HSWQConfig(quantized_matmul=True),
    )
    models = (pipe.transformer, told.transformer, single, untold.transformer)
    counts = [sum(layer.quantized_matmul for layer in fp8_layers(model)) for model in models]
    assert counts[0] == counts[1] == counts[2] > 0
    assert counts[3] == 0, "it is not a property of the files"


def test_old_hardware_is_refused_with_a_sentence(tmp_path, monkeypatch):
    model = load_model(tiny.quantized(tmp_path, "v2"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA RTX A6000")
    with pytest.raises(DeviceError, match=r"A6000 \(SM 8.6\) has no FP8 matrix product, which needs SM 8.9"):
        set_quantized_matmul(model)
    assert set_quantized_matmul(load_model(tiny.quantized(tmp_path, "int8"))) > 0, "Turing can"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 9))
    assert set_quantized_matmul(model) > 0


# --- Memory -------------------------------------------------------------------------------------------


def test_fp8_layers_take_half_of_bfloat16_and_their_scales(tmp_path):
    path = tiny.quantized(tmp_path, "v2")
    fp8, plain = load_model(path), load_model(path, dequantize=True)
    layers = fp8_layers(fp8)
    assert weight_bytes(plain) - weight_bytes(fp8) == sum(layer.weight.numel() - layer.scale.nbytes for layer in layers)
