"""What states a denoiser's configuration is the authority; shapes are checked against it, and a guess is said."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import originals, tiny, tiny_unet
from support.originals import ORIGINALS
from support.references import exchange_width, reference

from hswq_hub.generation.generate import GenerationSettings, generate, open_pipeline
from hswq_hub.quantization.naive import write_naive
from hswq_hub.sources.find import resolve
from hswq_hub.sources.source import Source
from hswq_runtime import Checkpoint, HSWQPipeline, load_model
from hswq_runtime.architectures import ARCHITECTURES
from hswq_runtime.errors import FormatError

UNUSUAL = {
    "z-image": {"axes_dims": [8, 12, 12], "rope_theta": 20.0, "norm_eps": 0.01, "t_scale": 500.0},
    "flux-1-dev": {"axes_dims_rope": [8, 12, 12]},
    "flux-1-schnell": {"axes_dims_rope": [8, 12, 12]},
    "flux-2-klein-4b": {"axes_dims_rope": [16, 8, 4, 4], "rope_theta": 100},
    "flux-2-klein-9b": {"axes_dims_rope": [2, 2, 2, 2], "eps": 0.1},
    "sd-3.5-medium": {"sample_size": 64},
    "sd-3.5-large": {"sample_size": 64},
    "chroma": {"axes_dims_rope": [8, 12, 12]},
    "qwen-image": {"axes_dims_rope": [8, 12, 12]},
    "aura-flow": {"attention_head_dim": 64, "num_attention_heads": 4},
    "sdxl": {"attention_head_dim": [2, 2], "norm_eps": 0.1},
    "sd-1.5": {"attention_head_dim": 4, "flip_sin_to_cos": False},
}
"""Entries that the tensors of the tiny models do not tell."""
NO_EFFECT = {"sd-3.5-medium", "sd-3.5-large"}
"""Models that compute the same with every value of their entries that tensors do not tell."""


def with_config(base, component: str, entries: dict, to):
    """A copy of the folder `base` whose denoiser has this configuration."""
    shutil.copytree(base, to)
    (to / component).mkdir(exist_ok=True)
    (to / component / "config.json").write_text(json.dumps(entries))
    return to


def latents(checkpoint: Checkpoint, denoiser, base) -> torch.Tensor:
    pipeline = open_pipeline(checkpoint, denoiser, str(base), torch.device("cpu"))
    return picture(checkpoint, pipeline)


def picture(checkpoint: Checkpoint, pipeline) -> torch.Tensor:
    settings = GenerationSettings.of(checkpoint.architecture, pipeline.vae.config, steps=1, size=32)
    return generate(pipeline, "a red ring", 0, settings).latents


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_base_s_configuration_is_that_of_every_picture(name, tmp_path, monkeypatch, bases):
    """Through the original, and through the quantized file, which needs no base for it, as through plain diffusers."""
    row, original = ARCHITECTURES[name], ORIGINALS[name]
    if original.inner_width:
        exchange_width(monkeypatch, row.model_class, original.tiny["w"])
    plain_base, path = bases(original.base), originals.write_tiny(tmp_path, original)
    guessed = resolve(str(path), base=str(plain_base)).checkpoint
    assert "nothing states the configuration of tiny.safetensors" in guessed.guess
    unusual = guessed.config | UNUSUAL[name]
    base = with_config(plain_base, row.component, {"_class_name": row.model_class, **unusual}, tmp_path / "base")

    source = resolve(str(path), base=str(base))
    assert source.checkpoint.guess is None and source.checkpoint.config == unusual
    assert Source.from_dict(source.as_dict()).checkpoint.config == unusual
    of_the_original = latents(source.checkpoint, load_model(source.checkpoint, torch.float32), base)
    expected = latents(source.checkpoint, reference(row, unusual, path, original), base)
    assert torch.equal(of_the_original, expected)
    by_guess = latents(guessed, load_model(guessed, torch.float32), plain_base)
    assert torch.equal(by_guess, expected) == (name in NO_EFFECT)

    file = tmp_path / "naive.safetensors"
    write_naive(source.checkpoint, file, source_sha256="0" * 64)
    stored = Checkpoint(file)
    assert not stored.has_diffusers_layout and stored.config.items() >= tiny_lists(unusual).items()
    pipeline = HSWQPipeline.from_pretrained(file, base=plain_base, dtype=torch.float32)
    plain = reference(row, unusual, file, original)
    assert torch.equal(picture(stored, pipeline), latents(source.checkpoint, plain, base))


def tiny_lists(config: dict) -> dict:
    return json.loads(json.dumps(config))


@pytest.mark.parametrize("kind", ["sdxl", "sd-1.5"])
def test_a_unet_s_as_well(kind, full, tmp_path):
    path, plain_base = full(kind)
    guessed = Checkpoint(path)
    unusual = guessed.config | UNUSUAL[kind]
    base = with_config(plain_base, "unet", unusual, tmp_path / "base")
    source = resolve(str(path), base=str(base))
    model = load_model(source.checkpoint, torch.float32)
    expected = tiny_unet_reference(path, unusual)
    assert torch.equal(latents(source.checkpoint, model, base), latents(source.checkpoint, expected, base))
    ours = HSWQPipeline.from_pretrained(path, base=base, dtype=torch.float32)
    assert ours.unet.config.attention_head_dim == unusual["attention_head_dim"]
    by_guess = latents(guessed, load_model(guessed, torch.float32), plain_base)
    assert not torch.equal(by_guess, latents(source.checkpoint, model, base))


def tiny_unet_reference(path, config):
    import diffusers
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    model = diffusers.UNet2DConditionModel(**config)
    stored = {k: v.float() for k, v in load_file(path).items() if k.startswith(tiny_unet.PREFIX)}
    model.load_state_dict(convert_ldm_unet_checkpoint(stored, dict(model.config)), strict=True)
    return model.eval().requires_grad_(False)


@pytest.fixture
def model(tmp_path):
    return tiny.checkpoint(tmp_path)


def test_a_configuration_that_the_tensors_contradict_names_both(model, tmp_path, bases):
    config = Checkpoint(model).config
    base = with_config(bases("z_image"), "transformer", config | {"n_layers": 3}, tmp_path / "base")
    with pytest.raises(FormatError) as refused:
        resolve(str(model), base=str(base))
    said = str(refused.value)
    assert model.name in said and "base/transformer/config.json" in said and len(said) <= 300
    assert "n_layers is 3 there and 1 by the tensors" in said and "missing layers.1" in said
    assert said.endswith("pass a base whose transformer/config.json is this model's")
    with pytest.raises(FormatError, match="n_layers is 3 there and 1 by the tensors"):
        HSWQPipeline.from_pretrained(model, base=base)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (
            {"_class_name": "FluxTransformer2DModel"},
            "is a ZImageTransformer2DModel by its tensors, .* is of a Flux",
        ),
        ({"axes_dims": [12, 18, 20]}, "no ZImageTransformer2DModel can have it"),
        ({"n_heads": "two"}, "no ZImageTransformer2DModel can have it"),
        ([], "is no configuration of a model"),
    ],
)
def test_what_is_no_configuration_of_the_model_is_refused(model, tmp_path, bases, entries, said):
    whole = Checkpoint(model).config | entries if isinstance(entries, dict) else entries
    base = with_config(bases("z_image"), "transformer", whole, tmp_path / "base")
    with pytest.raises(FormatError, match=said):
        resolve(str(model), base=str(base))


def test_the_file_s_own_configuration_comes_first(model, tmp_path, bases):
    own = Checkpoint(model).config | {"rope_theta": 20.0}
    stating = tmp_path / "stating.safetensors"
    save_file(load_file(model), stating, metadata={"hswq_config": json.dumps(own)})
    base = with_config(bases("z_image"), "transformer", own | {"rope_theta": 30.0}, tmp_path / "base")
    source = resolve(str(stating), base=str(base))
    assert not source.checkpoint.has_diffusers_layout and source.checkpoint.config == own


def test_a_guess_is_said_in_one_line_and_never_written(model, tmp_path, bases):
    base = bases("z_image")
    with pytest.warns(UserWarning, match="nothing states the configuration of tiny.safetensors") as said:
        pipeline = HSWQPipeline.from_pretrained(model, base=base)
    (line,) = (str(one.message) for one in said if "nothing states" in str(one.message))
    assert "axes_dims [12, 18, 18]" in line and "\n" not in line
    assert pipeline.transformer.config.axes_dims == [12, 18, 18]
    file = tmp_path / "naive.safetensors"
    write_naive(Checkpoint(model), file, source_sha256="0" * 64)
    assert Checkpoint(file).guess is not None


def test_entries_that_diffusers_does_not_know_are_ignored_as_diffusers_does(model, tmp_path, bases):
    """Qwen-Image's own config.json has one."""
    config = Checkpoint(model).config | {"pooled_projection_dim": 768, "_diffusers_version": "0.99"}
    base = with_config(bases("z_image"), "transformer", config, tmp_path / "base")
    file = tmp_path / "naive.safetensors"
    write_naive(resolve(str(model), base=str(base)).checkpoint, file, source_sha256="0" * 64)
    stored = json.loads(Checkpoint(file).metadata["hswq_config"])
    assert "pooled_projection_dim" not in stored and stored["axes_dims"] == [12, 18, 18]
    assert stored["_class_name"] == "ZImageTransformer2DModel" and stored["rope_theta"] == 256.0
