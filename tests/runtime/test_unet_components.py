"""A full checkpoint's own components, and what its base has to add."""

import json
import shutil

import diffusers
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from support import tiny_unet

from hswq_runtime import Checkpoint, HSWQPipeline
from hswq_runtime.checkpoints.base import fetch_base
from hswq_runtime.errors import ComponentError


def test_components_come_from_the_file(full):
    path, base = full("sdxl")
    pipe = HSWQPipeline.from_pretrained(path, base=base, dtype=torch.float32)
    stored = load_file(path)
    wanted = {
        "conditioner.embedders.0.transformer.text_model.encoder.layers.1.mlp.fc1.weight": (
            pipe.text_encoder.encoder.layers[1].mlp.fc1.weight
        ),
        "conditioner.embedders.1.model.transformer.resblocks.1.mlp.c_fc.weight": (
            pipe.text_encoder_2.text_model.encoder.layers[1].mlp.fc1.weight
        ),
        "first_stage_model.decoder.conv_in.weight": pipe.vae.decoder.conv_in.weight,
    }
    assert all(torch.equal(stored[key].float(), parameter) for key, parameter in wanted.items())
    fused = stored["conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"].float()
    attention = pipe.text_encoder_2.text_model.encoder.layers[0].self_attn
    assert torch.equal(fused, torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]))
    given = diffusers.AutoencoderKL.from_config(pipe.vae.config)
    assert HSWQPipeline.from_pretrained(path, base=base, dtype=torch.float32, vae=given).vae is given


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", "text_encoder .*lacks final_layer"),
        ("conditioner.embedders.1.model.positional_embedding", "text_encoder"),
        ("first_stage_model.decoder.conv_in.weight", "vae .*lacks some of its tensors"),
    ],
)
def test_a_component_with_a_hole_is_refused(full, tmp_path, lost, sentence):
    path, base = full("sdxl")
    stored = load_file(path)
    del stored[lost]
    save_file(stored, tmp_path / "hole.safetensors")
    with pytest.raises(ComponentError, match=sentence):
        HSWQPipeline.from_pretrained(tmp_path / "hole.safetensors", base=base)


def test_a_base_cannot_name_a_class_of_its_own(full, tmp_path):
    path, base = full("sd-1.5")
    shutil.copytree(base, tmp_path / "base")
    index = json.loads((base / "model_index.json").read_text())
    (tmp_path / "base/model_index.json").write_text(json.dumps(index | {"vae": ["os", "system"]}))
    with pytest.raises(ComponentError, match="no class of diffusers or transformers"):
        HSWQPipeline.from_pretrained(path, base=tmp_path / "base")


def test_of_what_the_file_holds_only_the_configuration_is_fetched(full, tmp_path, monkeypatch):
    path, base = full("sd-1.5")
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda repo, allow_patterns, **_: asked.extend(allow_patterns) or tmp_path
    )
    fetch_base(Checkpoint(path), "alice/base")
    needed = {str(p.relative_to(base)) for p in base.rglob("*") if p.is_file()}
    others = {"vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "safety_checker/config.json"}
    assert set(filter_repo_objects(needed | others | {"unet/config.json"}, allow_patterns=asked)) == needed


def test_a_scheduler_that_cannot_do_it_is_refused(tmp_path):
    def mark(tensors):
        tensors |= {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}

    path, base = tiny_unet.full("sd-1.5", tmp_path, change=mark)
    with pytest.raises(ComponentError, match=r"rescale_betas_zero_snr.*PNDMScheduler"):
        HSWQPipeline.from_pretrained(path, base=base, dtype=torch.float32)
