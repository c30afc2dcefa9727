"""What a UNet's file is recognised as, from its keys and shapes alone."""

import json

import accelerate
import diffusers
import pytest
import torch
from safetensors.torch import save_file
from support import tiny_unet
from support.unet_files import KINDS, PREFIX

from hswq_runtime import Checkpoint, load_model
from hswq_runtime.architectures import ARCHITECTURES, architecture_of, recognise
from hswq_runtime.checkpoints.mapping import trace
from hswq_runtime.errors import FormatError, UnknownArchitectureError


@pytest.mark.parametrize("kind", KINDS)
def test_the_configuration_of_the_real_model_follows_from_its_shapes(kind):
    with accelerate.init_empty_weights():
        model = diffusers.UNet2DConditionModel(**tiny_unet.FULL_SIZE[kind])
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = tiny_unet.original_unet(wanted)
    row, prefix = recognise([*stored, "first_stage_model.decoder.conv_in.weight"])
    assert (row.name, prefix) == (kind, PREFIX)
    shapes = {key.removeprefix(prefix): shape for key, shape in stored.items()}
    config = row.config(shapes)
    with accelerate.init_empty_weights():
        rebuilt = diffusers.UNet2DConditionModel(**config)
    assert {name: tuple(tensor.shape) for name, tensor in rebuilt.state_dict().items()} == wanted
    assert sum(parameter.numel() for parameter in rebuilt.parameters()) == tiny_unet.PARAMETERS[kind]
    heads = [[getattr(module, "heads", None) for module in m.modules()] for m in (model, rebuilt)]
    assert heads[0] == heads[1], "the number of heads is in no shape"
    assert architecture_of(rebuilt) is row
    found = trace(shapes, row.model_class, config, row.converter_prefix)
    assert {name: pieces[0].key for name, pieces in found.items()} == {
        name: key.removeprefix(PREFIX) for key, name in tiny_unet.original_unet({n: n for n in wanted}).items()
    }


def shapes_of(kind, change=lambda config: None):
    """Keys and shapes of a tiny UNet whose configuration is altered."""
    config = dict(tiny_unet.CONFIGS[kind])
    change(config)
    with accelerate.init_empty_weights():
        model = diffusers.UNet2DConditionModel(**config)
    return tiny_unet.original_unet({name: tuple(t.shape) for name, t in model.state_dict().items()}, prefix="")


def as_refiner(config):
    config |= {
        "block_out_channels": (32,) * 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": 1,
        "attention_head_dim": 1,
    }


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        ("sdxl", as_refiner, "refiner"),
        ("sdxl", lambda config: config.update(in_channels=9), "9 channels and gives 4.*inpainting"),
        ("sd-1.5", lambda config: config.update(in_channels=8), "8 channels and gives 4.*editing"),
        ("sd-1.5", lambda config: config.update(use_linear_projection=True), "Stable Diffusion 2"),
        (
            "sdxl",
            lambda config: config.update(
                transformer_layers_per_block=(1, 2), reverse_transformer_layers_per_block=((2, 1, 1), 1)
            ),
            "SSD-1B",
        ),
    ],
    ids=["refiner", "inpainting", "editing", "sd-2", "distilled"],
)
def test_relatives_that_cannot_be_quantized_are_refused_by_name(kind, change, sentence):
    shapes = shapes_of(kind, change)
    row, prefix = recognise(shapes)
    assert (row.name, prefix) == (kind, "")
    with pytest.raises(UnknownArchitectureError, match=sentence):
        row.config(shapes)


def test_hostile_block_numbers_cost_nothing(tmp_path):
    stored = tiny_unet.original_unet(tiny_unet.unet("sdxl").state_dict())
    stored[f"{PREFIX}input_blocks.999999999.0.op.weight"] = torch.zeros(1)
    save_file(stored, tmp_path / "hostile.safetensors")
    with pytest.raises(FormatError, match="input blocks are missing"):
        load_model(tmp_path / "hostile.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_one_class_is_two_architectures_by_its_configuration(kind, tmp_path):
    config = dict(tiny_unet.unet(kind).config)
    assert [row.name for row in ARCHITECTURES.values() if row.model_class == "UNet2DConditionModel"] == KINDS
    assert [row.name for row in ARCHITECTURES.values() if row.component == "unet" and row.fits(config)] == [kind]
    described = json.dumps({"_class_name": "UNet2DConditionModel", **config})
    save_file(tiny_unet.unet(kind).state_dict(), tmp_path / "unet.safetensors", metadata={"hswq_config": described})
    checkpoint = Checkpoint(tmp_path / "unet.safetensors")
    assert checkpoint.architecture.name == kind and not checkpoint.bundled
    model = load_model(checkpoint, torch.float32)
    assert torch.equal(tiny_unet.run(model, kind), tiny_unet.run(tiny_unet.unet(kind).float(), kind))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_file_with_nothing_but_the_unet(tmp_path, prefix):
    stored = tiny_unet.original_unet(tiny_unet.unet("sdxl").state_dict(), prefix)
    save_file(stored | {"v_pred": torch.zeros(0)}, tmp_path / "unet.safetensors")
    checkpoint = Checkpoint(tmp_path / "unet.safetensors")
    assert (checkpoint.prefix, checkpoint.bundled) == (prefix, set())
    assert checkpoint.scheduler == {"prediction_type": "v_prediction"}
    model = load_model(checkpoint, torch.float32)
    assert torch.equal(tiny_unet.run(model, "sdxl"), tiny_unet.run(tiny_unet.unet("sdxl").float(), "sdxl"))
    save_file(stored | {f"{prefix}nobody.weight": torch.zeros(2)}, tmp_path / "more.safetensors")
    with pytest.raises(FormatError, match=r"unexpected .*nobody\.weight"):
        load_model(tmp_path / "more.safetensors")


@pytest.mark.parametrize(
    ("keys", "metadata", "expected"),
    [
        ([], {}, {}),
        ([], {"modelspec.prediction_type": "epsilon"}, {"prediction_type": "epsilon"}),
        ([], {"modelspec.prediction_type": "v"}, {"prediction_type": "v_prediction"}),
        ([], {"modelspec.predict_key": "v"}, {"prediction_type": "v_prediction"}),
        (["v_pred"], {}, {"prediction_type": "v_prediction"}),
        (["v_pred", "ztsnr"], {}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
        (["v_pred"], {"modelspec.prediction_type": "epsilon"}, {"prediction_type": "v_prediction"}),
    ],
)
def test_velocity_is_told_from_noise(keys, metadata, expected):
    assert ARCHITECTURES["sdxl"].scheduler(keys, metadata) == expected
