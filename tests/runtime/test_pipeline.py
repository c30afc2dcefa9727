"""Bases that are broken, hostile or incomplete are refused by name; strangers' files choose nothing on this machine."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny

from hswq_hub.sources.find import resolve
from hswq_runtime import Checkpoint, HSWQPipeline, load_model
from hswq_runtime.architectures.z_image import Z_IMAGE
from hswq_runtime.checkpoints.base import find_base
from hswq_runtime.errors import ComponentError, FormatError

DEMO = resolve("demo")


@pytest.fixture
def base(tmp_path) -> Path:
    return Path(shutil.copytree(DEMO.base, tmp_path / "base"))


def open_with(base, **arguments):
    return HSWQPipeline.from_pretrained(DEMO.path, base=base, dtype=torch.float32, **arguments)


def change_index(base, change):
    index = json.loads((base / "model_index.json").read_text())
    change(index)
    (base / "model_index.json").write_text(json.dumps(index))


def empty_vocabulary(base):
    for path in (base / "tokenizer").iterdir():
        if path.name != "tokenizer_config.json":
            path.unlink()


def cut_weights(base):
    path = base / "text_encoder/model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def pickle_weights(base):
    path = base / "vae/diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda base: shutil.rmtree(base / "vae"), "lacks vae"),
        (lambda base: change_index(base, lambda index: index.pop("vae")), "lacks vae"),
        (lambda base: change_index(base, lambda index: index.update(text_encoder=[None, None])), "lacks text_encoder"),
        (lambda base: (base / "model_index.json").write_text("[]"), "not a diffusers model index"),
        (lambda base: (base / "model_index.json").write_text("{"), "not JSON"),
        (lambda base: (base / "model_index.json").unlink(), "has no model_index.json"),
        (empty_vocabulary, "tokenizer|vocab"),
        (cut_weights, "cannot be loaded"),
        (pickle_weights, "cannot be loaded"),
    ],
    ids=["no-folder", "not-listed", "null", "list", "cut-json", "no-index", "no-vocabulary", "cut-weights", "pickle"],
)
def test_a_base_that_lacks_something_is_refused(base, spoil, sentence):
    spoil(base)
    with pytest.raises(ComponentError, match=sentence):
        open_with(base)


def test_a_component_that_is_given_need_not_be_in_the_base(base):
    vae = open_with(base).vae
    shutil.rmtree(base / "vae")
    assert open_with(base, vae=vae).vae is vae


@pytest.mark.parametrize("named", ["../secrets", "/etc", "C:\\secrets", "owner/repo/../../x"])
def test_a_header_cannot_name_a_folder_of_this_machine(tmp_path, named):
    path = tmp_path / "stranger.safetensors"
    save_file(load_file(DEMO.path), path, metadata={"hswq_base": named})
    with pytest.raises(FormatError, match="no Hub repo"):
        HSWQPipeline.from_pretrained(path)


def test_a_lora_in_the_folder_is_not_taken_for_a_model(base):
    shutil.copyfile(DEMO.path, base / "model.safetensors")
    save_file({"lora_A.weight": torch.zeros(2, 2)}, base / "style.safetensors")
    assert HSWQPipeline.from_pretrained(base, dtype=torch.float32).transformer.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_plain_file_in_any_dtype_is_a_pipeline_in_it(tmp_path, dtype):
    path = tmp_path / "plain.safetensors"
    save_file({key: tensor.to(dtype) for key, tensor in load_file(DEMO.path).items()}, path)
    pipe = HSWQPipeline.from_pretrained(path, base=DEMO.base)
    assert {pipe.dtype, *(part.dtype for part in (pipe.transformer, pipe.vae, pipe.text_encoder))} == {dtype}
    assert tiny.same_bytes(pipe.transformer.state_dict(), load_model(DEMO.path, dtype).state_dict())
    small = {"height": 32, "width": 32, "num_inference_steps": 1, "guidance_scale": 0.0, "output_type": "np"}
    assert pipe("a ring", **small).images.any()
    other = HSWQPipeline.from_pretrained(path, base=DEMO.base, dtype=torch.bfloat16)
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in pipe.transformer.state_dict().items()}
    assert tiny.same_bytes(other.transformer.state_dict(), expected)


def test_pad_tokens_are_read_with_and_without_a_leading_dimension(tmp_path):
    tensors = load_file(DEMO.path)
    key = "model.diffusion_model.x_pad_token"
    tensors[key] = tensors[key].flatten()
    save_file(tensors, tmp_path / "flat.safetensors")
    loaded = load_model(tmp_path / "flat.safetensors")
    assert torch.equal(loaded.x_pad_token, load_model(DEMO.path).x_pad_token)


def test_other_components_come_from_what_is_said_or_the_folder_or_the_header_or_the_architecture(tmp_path):
    path = tiny.checkpoint(tmp_path)
    assert find_base(Checkpoint(path)) == Z_IMAGE.base_repo
    path = tiny.checkpoint(tmp_path, metadata={"hswq_base": "alice/base"})
    assert find_base(Checkpoint(path)) == "alice/base"
    (tmp_path / "model_index.json").write_text("{}")
    assert find_base(Checkpoint(path)) == str(tmp_path)
    assert find_base(Checkpoint(path), "bob/base") == "bob/base"
