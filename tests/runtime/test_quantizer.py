"""HSWQ files as diffusers' own classes open them, save them and open them again."""

import importlib
import json
import sys
import threading

import peft.tuners.lora.model
import pytest
import torch
from diffusers import PipelineQuantizationConfig, ZImagePipeline, ZImageTransformer2DModel
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models import modeling_utils
from diffusers.quantizers import auto
from safetensors.torch import load_file, save_file
from support import tiny

from hswq_runtime import HSWQConfig, HSWQLinear, HSWQPipeline, HSWQQuantizer, load_model
from hswq_runtime.errors import FormatError
from hswq_runtime.quantizer import QUANTIZATION_CONFIG

STYLES = pytest.mark.parametrize("style", ["v1", "v2", "v2-rows", "int8"])


def single_file(path, config, **arguments):
    """The way of people who know diffusers and not us."""
    arguments = {QUANTIZATION_CONFIG: HSWQConfig(), "torch_dtype": torch.float32, **arguments}
    return ZImageTransformer2DModel.from_single_file(str(path), config=str(config), **arguments)


@pytest.fixture
def config(tmp_path):
    tiny.model().save_config(tmp_path / "config")
    return tmp_path / "config"


NOT_BESIDE = ("int8-one-scale", "int8-header")
"""Styles of which only the header may say whether inputs are rotated."""


@pytest.mark.parametrize("style", NOT_BESIDE)
def test_from_single_file_does_not_guess_whether_inputs_are_rotated(tmp_path, config, style):
    with pytest.raises(FormatError, match="is INT8, and only the file's header"):
        single_file(tiny.quantized(tmp_path, style), config)


@pytest.mark.parametrize("style", [style for style in tiny.STYLES if style not in NOT_BESIDE])
def test_from_single_file_gives_what_our_own_loader_gives(tmp_path, config, style):
    path = tiny.quantized(tmp_path, style)
    theirs, ours = single_file(path, config), load_model(path, torch.float32)
    assert tiny.same_bytes(theirs.state_dict(), ours.state_dict())
    assert torch.equal(tiny.run(theirs), tiny.run(ours))


@pytest.mark.parametrize("shards", ["10GB", "200KB"], ids=["whole", "sharded"])
@STYLES
def test_saving_and_opening_again_changes_no_byte(tmp_path, style, shards):
    model = load_model(tiny.quantized(tmp_path, style), torch.float32)
    model.save_pretrained(tmp_path / "saved", max_shard_size=shards)
    assert (len(list((tmp_path / "saved").glob("*.safetensors"))) > 1) == (shards == "200KB")
    again = ZImageTransformer2DModel.from_pretrained(tmp_path / "saved", torch_dtype=torch.float32)
    assert tiny.same_bytes(again.state_dict(), model.state_dict())
    assert torch.equal(tiny.run(again), tiny.run(model))
    again.save_pretrained(tmp_path / "twice", max_shard_size=shards)
    for path in (tmp_path / "saved").iterdir():
        if path.suffix == ".safetensors":
            assert path.read_bytes() == (tmp_path / "twice" / path.name).read_bytes()


def test_shards_that_are_read_at_the_same_time_change_nothing(tmp_path, monkeypatch):
    """What `HF_ENABLE_PARALLEL_LOADING` turns on; diffusers reads it when it is imported."""
    model = load_model(tiny.quantized(tmp_path, "v2-rows"), torch.float32)
    model.save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    readers, take = [], HSWQQuantizer.maybe_update_state_dict
    monkeypatch.setattr(modeling_utils, "HF_ENABLE_PARALLEL_LOADING", True)
    monkeypatch.setattr(
        HSWQQuantizer,
        "maybe_update_state_dict",
        lambda quantizer, shard: readers.append(threading.current_thread()) or take(quantizer, shard),
    )
    again = ZImageTransformer2DModel.from_pretrained(tmp_path / "saved", torch_dtype=torch.float32)
    assert len(readers) > 3 and threading.main_thread() not in readers
    assert tiny.same_bytes(again.state_dict(), model.state_dict())
    assert torch.equal(tiny.run(again), tiny.run(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scales_stay_float32_in_every_dtype(tmp_path, config, dtype):
    path = tiny.quantized(tmp_path, "v2")
    model = single_file(path, config, torch_dtype=dtype)
    assert model.dtype == dtype == model.layers[0].feed_forward.w1.compute_dtype
    model.save_pretrained(tmp_path / "saved")
    again = ZImageTransformer2DModel.from_pretrained(tmp_path / "saved", torch_dtype=dtype)
    stored = load_file(path)[f"{tiny.PREFIX}layers.0.feed_forward.w1.scale"]
    for one in (model, again):
        assert one.layers[0].feed_forward.w1.scale.dtype == torch.float32
        assert torch.equal(one.layers[0].feed_forward.w1.scale, stored)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_without_a_dtype_a_single_file_computes_in_that_of_the_configuration(tmp_path, config, dtype):
    path, arguments = tiny.quantized(tmp_path, "v2"), {} if dtype == torch.bfloat16 else {"compute_dtype": dtype}
    model = single_file(path, config, torch_dtype=None, quantization_config=HSWQConfig(**arguments))
    assert model.dtype == model.layers[0].feed_forward.w1.compute_dtype == dtype
    assert tiny.same_bytes(model.state_dict(), load_model(path, dtype).state_dict())


def test_without_a_dtype_a_saved_model_computes_in_what_it_computed_in(tmp_path):
    load_model(tiny.quantized(tmp_path, "v2"), torch.float16).save_pretrained(tmp_path / "saved")
    assert ZImageTransformer2DModel.from_pretrained(tmp_path / "saved").dtype == torch.float16
    described = json.loads((tmp_path / "saved/config.json").read_text())[QUANTIZATION_CONFIG]
    assert described == {"quant_method": "hswq", "compute_dtype": "float16"}


@STYLES
def test_dequantize_gives_the_plain_model_back(tmp_path, style, monkeypatch):
    model = load_model(tiny.quantized(tmp_path, style), torch.float32)
    expected = tiny.run(model)
    model.dequantize()
    assert not any(isinstance(module, HSWQLinear) for module in model.modules())
    assert not model.is_quantized
    assert torch.equal(tiny.run(model), expected)
    model.save_pretrained(tmp_path / "plain")
    assert QUANTIZATION_CONFIG not in json.loads((tmp_path / "plain/config.json").read_text())
    forget_the_package(monkeypatch)
    again = ZImageTransformer2DModel.from_pretrained(tmp_path / "plain")
    assert tiny.same_bytes(again.state_dict(), model.state_dict())


def forget_the_package(monkeypatch):
    """As for a person who has diffusers, but not this package; until the test ends."""
    for name in [name for name in sys.modules if name.split(".")[0] == "hswq_runtime"]:
        monkeypatch.delitem(sys.modules, name)
    for registry in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
        monkeypatch.delitem(registry, "hswq")


def saved(tmp_path, change=lambda tensors: None):
    """A saved V2 model whose tensors were tampered with."""
    load_model(tiny.quantized(tmp_path, "v2")).save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return tmp_path / "saved"


def expand(tensors):
    for key in [key for key, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn]:
        tensors[key] = tensors[key].float() * tensors.pop(key.removesuffix("weight") + "scale")


W1 = "layers.0.feed_forward.w1"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop(f"{W1}.weight"), f"missing {W1}.weight"),
        (lambda t: t.update(stranger=torch.zeros(1)), "unexpected stranger"),
        (lambda t: t.update({"cap_embedder.0.weight": torch.zeros(7)}), "has shape .7. instead of .32."),
        (lambda t: t.update({f"{W1}.scale": torch.tensor([float("nan")])}), "w1.scale is nan"),
        (lambda t: t.update({f"{W1}.weight": t[f"{W1}.weight"].float()}), "which is not quantized"),
        (expand, "has no quantized weights"),
        (lambda t: t.pop(f"{W1}.scale"), f"{W1}.weight has no scale"),
    ],
    ids=["missing", "unexpected", "shape", "scale", "not-fp8", "plain", "no-scale"],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, change, sentence):
    with pytest.raises(FormatError, match=sentence):
        ZImageTransformer2DModel.from_pretrained(saved(tmp_path, change))


def test_a_plain_file_is_not_quantized_behind_the_users_back(tmp_path, config):
    with pytest.raises(FormatError, match="no quantized weights: load it without HSWQConfig, or quantize it"):
        single_file(tiny.checkpoint(tmp_path), config)


@pytest.mark.parametrize(("style", "gone"), [("v2", "scale"), ("early", "weight.scale"), ("comfyui", "weight_scale")])
def test_a_single_file_that_lost_a_scale_is_no_image_of_noise(tmp_path, config, style, gone):
    path = tiny.quantized(tmp_path, style, change=lambda tensors: tensors.pop(f"{tiny.PREFIX}{W1}.{gone}"))
    for load in (lambda: single_file(path, config), lambda: load_model(path)):
        with pytest.raises(FormatError, match=r"w1\.weight has no scale"):
            load()


def test_a_pad_token_without_its_leading_dimension_is_read(tmp_path, config):
    def flatten(tensors):
        tensors[f"{tiny.PREFIX}x_pad_token"] = tensors[f"{tiny.PREFIX}x_pad_token"].flatten()

    flat = single_file(tiny.quantized(tmp_path, "v2", change=flatten), config)
    assert tiny.same_bytes(flat.state_dict(), load_model(tiny.quantized(tmp_path, "v2"), torch.float32).state_dict())


def test_a_configuration_can_be_used_again(tmp_path, config):
    ours = HSWQConfig()
    path = tiny.quantized(tmp_path, "v2")
    single_file(path, config, quantization_config=ours, torch_dtype=torch.float16)
    assert ours.compute_dtype == torch.bfloat16


def test_memory_for_a_device_map_counts_what_is_not_fp8_in_full(tmp_path):
    model = load_model(tiny.quantized(tmp_path, "v2"))
    special = model.hf_quantizer.get_special_dtypes_update(model, torch.bfloat16)
    assert "x_pad_token" in special and f"{W1}.weight" not in special
    assert model.hf_quantizer.adjust_max_memory({0: 100})[0] < 100


def test_a_class_of_ones_own_is_still_a_z_image(tmp_path, config):
    class Mine(ZImageTransformer2DModel):
        pass

    path = tiny.quantized(tmp_path, "cast")
    mine = Mine.from_single_file(
        str(path), config=str(config), quantization_config=HSWQConfig(), torch_dtype=torch.float32
    )
    assert mine.t_embedder.mlp[0].weight.dtype == torch.float32
    assert torch.equal(tiny.run(mine), tiny.run(load_model(path, torch.float32)))


def test_pickles_are_not_opened(tmp_path):
    folder = saved(tmp_path)
    weights = folder / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), folder / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(FormatError, match="not a safetensors file"):
        ZImageTransformer2DModel.from_pretrained(folder, use_safetensors=False)


def test_importing_the_package_after_diffusers_makes_diffusers_and_peft_know_it(monkeypatch):
    """The other order: `test_hub_loading.py`."""
    forget_the_package(monkeypatch)
    exchanged = [(peft.tuners.lora.model, "dispatch_default"), (LoraBaseMixin, "unfuse_lora")]
    exchanged += [(PeftAdapterMixin, "fuse_lora"), (PeftAdapterMixin, "unfuse_lora")]
    before = [getattr(owner, name) for owner, name in exchanged]
    for (owner, name), known in zip(exchanged, before, strict=True):
        monkeypatch.setattr(owner, name, known)  # is put back when the test ends
    importlib.import_module("hswq_runtime")
    assert auto.AUTO_QUANTIZER_MAPPING["hswq"].__name__ == "HSWQQuantizer"
    assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING["hswq"].__name__ == "HSWQConfig"
    for (owner, name), known in zip(exchanged, before, strict=True):
        assert getattr(owner, name) is not known


# --- Pipelines ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return tiny.published_demo(tmp_path_factory.mktemp("published"))


def picture(pipe):
    generator = torch.Generator().manual_seed(3)
    return pipe("a red ring", height=32, width=32, num_inference_steps=2, guidance_scale=0.0, generator=generator,
                output_type="np").images  # fmt: skip


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_three_ways_to_open_a_published_folder_make_the_same_picture(published, tmp_path, variant):
    pipe = HSWQPipeline.from_pretrained(published, variant=variant, dtype=torch.float32)
    expected = picture(pipe)
    pipe.save_pretrained(tmp_path / "saved")
    pipe.transformer.save_config(tmp_path / "config")
    transformer = single_file(published / f"demo-hswq-{variant}.safetensors", tmp_path / "config")
    by_hand = ZImagePipeline.from_pretrained(published, transformer=transformer, torch_dtype=torch.float32)
    ours = HSWQPipeline.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    theirs = ZImagePipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.float32)
    for other in (by_hand, ours, theirs):
        assert isinstance(other.transformer.layers[0].feed_forward.w1, HSWQLinear)
        assert tiny.same_bytes(other.transformer.state_dict(), pipe.transformer.state_dict())
        assert (picture(other) == expected).all()


def test_a_pipeline_quantization_config_reaches_the_transformer(published, tmp_path):
    transformer = load_model(published / "demo-hswq-v2.safetensors", torch.float32)
    pipe = HSWQPipeline.from_pretrained(published, variant="v2", dtype=torch.float32)
    pipe.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved/transformer/config.json"
    described = json.loads(path.read_text())
    del described[QUANTIZATION_CONFIG]
    path.write_text(json.dumps(described))
    mapping = PipelineQuantizationConfig(quant_mapping={"transformer": HSWQConfig(compute_dtype=torch.float32)})
    pipe = ZImagePipeline.from_pretrained(tmp_path / "saved", quantization_config=mapping, torch_dtype=torch.float32)
    assert tiny.same_bytes(pipe.transformer.state_dict(), transformer.state_dict())


def test_pipelines_and_models_say_what_they_compute_in(published):
    pipe = HSWQPipeline.from_pretrained(published, dtype=torch.float16)
    assert pipe.dtype == pipe.transformer.dtype == torch.float16


def test_a_saved_pipeline_that_is_not_one_of_ours_is_refused_in_a_sentence(published, tmp_path):
    HSWQPipeline.from_pretrained(published, variant="v2", dtype=torch.float32).save_pretrained(tmp_path / "saved")
    with pytest.raises(FormatError, match="no variants and takes no base"):
        HSWQPipeline.from_pretrained(tmp_path / "saved", variant="v1")
    path = tmp_path / "saved/transformer/config.json"
    described = json.loads(path.read_text())
    assert HSWQPipeline.from_pretrained(tmp_path / "saved").dtype == torch.float32, "what it was saved in"
    encoder = tmp_path / "saved/text_encoder/config.json"
    encoder.write_text(json.dumps(json.loads(encoder.read_text()) | {QUANTIZATION_CONFIG: None}))
    assert HSWQPipeline.from_pretrained(tmp_path / "saved").transformer.is_quantized
    described[QUANTIZATION_CONFIG]["of_the_future"] = 1
    path.write_text(json.dumps(described))
    with pytest.raises(FormatError, match=r"transformer/config\.json is not a configuration"):
        HSWQPipeline.from_pretrained(tmp_path / "saved")
    del described[QUANTIZATION_CONFIG]
    path.write_text(json.dumps(described))
    with pytest.raises(FormatError, match="no component saved with HSWQ"):
        HSWQPipeline.from_pretrained(tmp_path / "saved")
