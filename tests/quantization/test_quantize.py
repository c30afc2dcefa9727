"""Plan and writer: what is kept, what is written, and that reading it back gives just that."""

import json
import sys
from dataclasses import replace

import accelerate
import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import tiny

from hswq_hub.calibration.calibrate import Calibration, LayerStatistics, monitor
from hswq_hub.common.hardware import PeakMemory
from hswq_hub.quantization.choices.keep import keep
from hswq_hub.quantization.plan import Plan, plan_everything, plan_naive
from hswq_hub.quantization.writer import write_quantized
from hswq_hub.settings import DEFAULT_FORMATS, recipe
from hswq_runtime import Checkpoint, Format, dequantize_, load_model, weight_bytes
from hswq_runtime.errors import FormatError
from hswq_runtime.formats import layer_of
from hswq_runtime.layers.fp8 import FP8, quantize

HEADER = {"modelspec.title": "tiny", "modelspec.hash_sha256": "0xabc", "ss_dataset_dirs": "/home/alice/pictures"}
QKV = f"{tiny.PREFIX}layers.0.attention.qkv.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Checkpoint:
    return Checkpoint(tiny.checkpoint(tmp_path_factory.mktemp("source"), metadata=HEADER))


@pytest.fixture(scope="module")
def calibration(source) -> Calibration:
    model = load_model(source, torch.float32)
    with monitor(model) as layers:
        tiny.run(model)
    return Calibration(layers)


def published(source, calibration, format, keep_ratio=None) -> Plan:
    """The plan of the method as published."""
    how = recipe("hswq", keep_ratio=keep_ratio)
    return keep(plan_everything(source, calibration, [format], how)[format], source, how)


def written(source, plan, folder, name="out.safetensors", **arguments):
    path = folder / name
    write_quantized(source, plan, path, source_sha256="0" * 64, **arguments)
    return path


@pytest.mark.parametrize(("ratio", "kept"), [(0, 0), (0.1, 2), (0.25, 5), (1, 21)])
def test_the_most_sensitive_share_of_the_layers_is_kept(source, calibration, ratio, kept):
    plan = published(source, calibration, Format.V1, ratio)
    ranked = [d for d in plan.decisions if not d.reason.startswith("never")]
    chosen = [d.sensitivity for d in ranked if not d.quantized]
    assert len(ranked) == 21 and len(chosen) == kept
    assert sorted(chosen, reverse=True) == sorted((d.sensitivity for d in ranked), reverse=True)[:kept]


def test_forbidden_layers_are_kept_and_the_plan_says_why(source, calibration):
    plan = published(source, calibration, Format.V2, 0)
    assert {d.layer for d in plan.kept} == {"t_embedder.mlp.0", "t_embedder.mlp.2"}
    assert all("casts the timestep" in d.reason for d in plan.kept)


def test_sensitivity_of_a_fused_layer_is_the_variance_over_all_its_outputs(source, calibration):
    """One module's variance is about its own mean; that of all three together is about the common one."""
    parts = [calibration.layers[f"layers.0.attention.to_{p}"] for p in "qkv"]
    mean = sum(p.output_mean for p in parts) / 3
    expected = sum(p.output_square for p in parts) / 3 - mean**2
    plan = published(source, calibration, Format.V1)
    assert next(d.sensitivity for d in plan.decisions if d.key == QKV) == pytest.approx(expected)


def test_calibration_of_another_model_is_refused(source, calibration):
    with pytest.raises(FormatError, match="made from another model"):
        published(source, Calibration({}), Format.V1)


@pytest.mark.parametrize("format", DEFAULT_FORMATS)
def test_keys_dtypes_and_shapes_of_the_file(source, calibration, tmp_path, format):
    plan = published(source, calibration, format)
    with safe_open(written(source, plan, tmp_path, base="owner/base"), framework="pt") as file:
        found = {k: (file.get_slice(k).get_dtype(), tuple(file.get_slice(k).get_shape())) for k in file.offset_keys()}
        metadata = file.metadata()
    expected = {key: (info.dtype, info.shape) for key, info in source.tensors.items()}
    for decision in (d for d in plan.decisions if d.quantized):
        layer = decision.key.removesuffix(".weight")
        expected[decision.key] = ("F8_E4M3", source.tensors[decision.key].shape)
        expected[f"{layer}.weight_scale"] = ("F32", ())
        expected[f"{layer}.comfy_quant"] = ("U8", found[f"{layer}.comfy_quant"][1])
        if format is Format.V2:
            expected[f"{layer}.scale"] = ("F32", (1,))
    assert found == expected
    assert metadata["hswq_format"] == format.value
    assert metadata["hswq_base"] == "owner/base"
    assert metadata["modelspec.title"] == "tiny"
    assert not {"modelspec.hash_sha256", "ss_dataset_dirs"} & metadata.keys(), "no longer true, and nobody's business"


@pytest.mark.parametrize("format", DEFAULT_FORMATS)
def test_values_of_the_file(source, calibration, tmp_path, format):
    plan = published(source, calibration, format)
    original, stored = load_file(source.path), load_file(written(source, plan, tmp_path))
    quantized = {d.key: d for d in plan.decisions if d.quantized}
    for key, tensor in original.items():
        if key not in quantized:
            assert torch.equal(stored[key], tensor), f"{key} was to be kept as it is"
            continue
        scale = stored[key.removesuffix(".weight") + ".weight_scale"]
        clipped = tensor.float().clamp(-quantized[key].amax, quantized[key].amax)
        expected = quantize(clipped, scale if format.scaled else None)
        assert torch.equal(stored[key].view(torch.uint8), expected.view(torch.uint8))
        if format.scaled:
            assert scale.item() == pytest.approx(quantized[key].amax / 448, rel=1e-6)
            assert torch.equal(stored[key.removesuffix(".weight") + ".scale"], scale.reshape(1))
            assert stored[key].float().abs().max() == 448, "the range is used to its end"


@pytest.mark.parametrize("format", DEFAULT_FORMATS)
def test_loaded_model_equals_the_dequantized_one_bit_for_bit(source, calibration, tmp_path, format):
    path = written(source, published(source, calibration, format), tmp_path)
    loaded = load_model(path, torch.float32)
    assert sum(p.dtype == FP8 for p in loaded.parameters()) > 20
    stored, reference = load_file(path), tiny.model().float()
    state = reference.state_dict()
    checkpoint = Checkpoint(path)
    for name, pieces in checkpoint.parameters.items():  # W·S, put together without the loader
        rows = torch.cat([stored[p.key][p.start : p.stop].float() for p in pieces])
        scale = stored.get(pieces[0].key.removesuffix(".weight") + ".scale") if format.scaled else None
        state[name] = rows if scale is None else rows * scale
    reference.load_state_dict(state)
    expected = tiny.run(reference)
    assert torch.equal(tiny.run(loaded), expected)
    assert not torch.equal(expected, tiny.run(tiny.model().float())), "quantizing must have changed something"
    assert torch.equal(tiny.run(dequantize_(loaded)), expected)
    assert torch.equal(tiny.run(load_model(path, torch.float32, dequantize=True)), expected)


@pytest.mark.parametrize("format", DEFAULT_FORMATS)
def test_memory_shrinks_as_the_header_promises(source, calibration, tmp_path, format):
    path = written(source, published(source, calibration, format, 0), tmp_path)
    held = weight_bytes(load_model(path))
    assert held == Checkpoint(path).weight_bytes
    assert weight_bytes(load_model(source)) == source.weight_bytes
    forbidden = sum(torch.Size(source.tensors[d.key].shape).numel() for d in plan_naive(source).kept)
    assert held < 0.5 * source.weight_bytes + forbidden + 0.02 * source.weight_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_quantizing_takes_the_memory_of_a_few_tensors(tmp_path):
    """Pages of the source that were read count, until their mapping goes: with them a 12 GB file would fill it."""
    path, dim = tmp_path / "large.safetensors", 1008
    config = tiny.CONFIG | {"dim": dim, "n_heads": dim // 48, "n_kv_heads": dim // 48, "n_layers": 6}
    with accelerate.init_empty_weights():
        empty = diffusers.ZImageTransformer2DModel(**config).state_dict()
    state = {name: torch.full(tensor.shape, 0.02, dtype=torch.bfloat16) for name, tensor in empty.items()}
    save_file(tiny.original_layout(state), path)
    del state
    large = Checkpoint(path, mapped_bytes=4 << 20)
    layers = {
        layer_of(name): LayerStatistics(torch.ones(large.tensors[key].shape[1]).double(), 0.0, 1.0, 1)
        for key in large.layers
        for name in large.modules[key]
    }
    with PeakMemory(torch.device("cpu")) as before:
        pass
    with PeakMemory(torch.device("cpu")) as peak:
        written(large, published(large, Calibration(layers), Format.V2, 0), tmp_path)
    largest = max(tensor.nbytes for tensor in large.tensors.values())
    assert peak.bytes - before.bytes < 8 * largest < path.stat().st_size / 4


def test_same_input_same_bytes(source, calibration, tmp_path):
    plan = published(source, calibration, Format.V2)
    one, two = written(source, plan, tmp_path, "one"), written(source, plan, tmp_path, "two")
    assert one.read_bytes() == two.read_bytes()


def test_naive_plan_is_a_plain_cast_of_all_that_can_be_fp8(source, tmp_path):
    plan = plan_naive(source)
    assert len(plan.kept) == 2
    stored, original = load_file(written(source, plan, tmp_path)), load_file(source.path)
    assert torch.equal(stored[QKV].view(torch.uint8), original[QKV].to(FP8).view(torch.uint8))


def test_a_foreign_cast_of_everything_is_loaded_as_far_as_it_can_be(source, tmp_path):
    """Scripts that cast all tensors exist: norms, biases and the timestep embedder cannot compute in FP8."""

    def cast_all(tensors):
        for key, tensor in tensors.items():
            tensors[key] = tensor.to(FP8)

    path = tiny.checkpoint(tmp_path, change=cast_all)
    model = load_model(path, torch.float32)
    held = {name for name, parameter in model.named_parameters() if parameter.dtype == FP8}
    assert "layers.0.attention.to_q.weight" in held
    assert not any("norm" in name or "bias" in name or "t_embedder" in name for name in held)
    expected = tiny.model()
    expected.load_state_dict(
        {name: value.to(FP8).float() for name, value in expected.state_dict().items()}, assign=True
    )
    assert torch.equal(tiny.run(model), tiny.run(expected))
    with pytest.raises(FormatError, match="nothing in full precision"):
        load_model(path)


def test_every_tensor_is_aligned_to_its_size(source, calibration, tmp_path):
    path = written(source, published(source, calibration, Format.V2), tmp_path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    sizes = {"F32": 4, "BF16": 2}
    assert all(e["data_offsets"][0] % sizes.get(e["dtype"], 1) == 0 for n, e in header.items() if n != "__metadata__")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_damaged_source_is_refused(calibration, tmp_path, bad):
    def damage(tensors):
        tensors[QKV][3, 5] = bad

    damaged = Checkpoint(tiny.checkpoint(tmp_path, change=damage))
    with pytest.raises(FormatError, match=r"layers\.0\.attention\.qkv\.weight .* NaN or infinity"):
        published(damaged, calibration, Format.V1, 0)
    with pytest.raises(FormatError, match="NaN or infinity"):
        plan_naive(damaged)


def test_other_components_of_the_file_are_copied_byte_for_byte(tmp_path):
    others = {
        "first_stage_model.mask": torch.tensor([True, False, True]),
        "first_stage_model.table": torch.randn(3, dtype=torch.complex64),
        "first_stage_model.ids": torch.arange(5),
        "first_stage_model.half": torch.randn(3, 3).half(),
    }
    source = Checkpoint(tiny.checkpoint(tmp_path, change=lambda tensors: tensors.update(others)))
    stored = load_file(written(source, plan_naive(source), tmp_path))
    assert all(torch.equal(stored[key], tensor) for key, tensor in others.items())


def test_a_write_that_fails_leaves_nothing(source, calibration, tmp_path):
    """It fails at the last weight, which is to be rounded in a way that nobody has."""
    plan = published(source, calibration, Format.V1)
    last = plan.quantized[-1]
    decisions = tuple(replace(d, rounding="gptq") if d is last else d for d in plan.decisions)
    with pytest.raises(FormatError, match=f"{last.key} is to be rounded by gptq"):
        written(source, replace(plan, decisions=decisions), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "suffix", "value"),
    [
        (Format.V2, ".scale", None),
        (Format.V2, ".scale", [0.0]),
        (Format.V2, ".scale", [float("nan")]),
        (Format.V2, ".scale", [7.0]),
        (Format.V1, ".weight_scale", 0.5),
    ],
    ids=["missing", "zero", "nan", "two-that-differ", "v1-with-a-scale"],
)
def test_scales_that_cannot_be_meant_are_refused(source, calibration, tmp_path, format, suffix, value):
    path = written(source, published(source, calibration, format), tmp_path)
    tensors, metadata = load_file(path), Checkpoint(path).metadata
    key = QKV.removesuffix(".weight") + suffix
    tensors.pop(key)
    if value is not None:
        tensors[key] = torch.tensor(value)
    spoiled = tmp_path / "spoiled.safetensors"
    save_file(tensors, spoiled, metadata=metadata)
    with pytest.raises(FormatError, match=r"layers\.0\.attention\.qkv.*scale"):
        load_model(spoiled)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_rounding_on_cuda_gives_the_same_file(source, calibration, tmp_path):
    plan = published(source, calibration, Format.V2)
    on_cpu = written(source, plan, tmp_path, "cpu")
    on_gpu = written(source, plan, tmp_path, "gpu", device=torch.device("cuda"))
    assert on_cpu.read_bytes() == on_gpu.read_bytes()
