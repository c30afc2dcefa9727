"""Opening checkpoints: what is found in them, and what is said of those that cannot be opened."""

import os

import accelerate
import diffusers
import pytest
import torch
from safetensors.torch import save_file
from support import originals, tiny

from hswq_hub.sources.find import resolve
from hswq_runtime import Checkpoint, load_model
from hswq_runtime.architectures import PREFIXES
from hswq_runtime.architectures.z_image import Z_IMAGE
from hswq_runtime.checkpoints.mapped import MappedFile
from hswq_runtime.errors import AlreadyQuantizedError, FormatError, UnknownArchitectureError


@pytest.mark.parametrize("prefix", PREFIXES, ids=lambda prefix: prefix or "none")
def test_full_precision_file_is_the_model_it_was_made_from(tmp_path, prefix):
    path = tiny.checkpoint(tmp_path, prefix)
    checkpoint = Checkpoint(path)
    assert (checkpoint.architecture, checkpoint.prefix) == (Z_IMAGE, prefix)
    assert checkpoint.config == tiny.CONFIG
    loaded, expected = load_model(checkpoint).state_dict(), tiny.model().state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_one_checkpoint_can_be_loaded_twice(tmp_path):
    checkpoint = Checkpoint(tiny.quantized(tmp_path, "v2"))
    one, other = load_model(checkpoint), load_model(checkpoint)
    assert tiny.same_bytes(one.state_dict(), other.state_dict())
    assert not {id(module) for module in one.modules()} & {id(module) for module in other.modules()}


def test_fused_tensor_is_traced_to_its_three_modules(tmp_path):
    checkpoint = Checkpoint(tiny.checkpoint(tmp_path))
    fused = f"{tiny.PREFIX}layers.0.attention.qkv.weight"
    assert checkpoint.modules[fused] == [f"layers.0.attention.to_{part}.weight" for part in "qkv"]
    (piece,) = checkpoint.parameters["layers.0.attention.to_k.weight"]
    assert (piece.key, piece.start, piece.stop) == (fused, 96, 192)


def test_configuration_of_the_published_model_follows_from_its_shapes():
    with accelerate.init_empty_weights():
        full = diffusers.ZImageTransformer2DModel()
    shapes = {name: tuple(t.shape) for name, t in tiny.original_layout(full.state_dict(), prefix="").items()}
    found = Z_IMAGE.config(shapes)
    assert found == {name: full.config[name] for name in found}


def test_only_linear_and_convolution_weights_are_layers(tmp_path):
    checkpoint = Checkpoint(tiny.checkpoint(tmp_path))
    names = {checkpoint.layer(key) for key in checkpoint.layers}
    linear = {name for name, module in tiny.model().named_modules() if isinstance(module, torch.nn.Linear)}
    assert len(names) == len(linear) - 2 * 3, "each of the three fused attentions is one layer, not three"
    assert not any("norm" in name for name in names)
    forbidden = {checkpoint.layer(key) for key in checkpoint.layers if checkpoint.why_never_quantized(key)}
    assert forbidden == {"t_embedder.mlp.0", "t_embedder.mlp.2"}


def test_not_a_safetensors_file(tmp_path):
    path = tmp_path / "notes.safetensors"
    path.write_text("hello " * 100)
    with pytest.raises(FormatError, match="not a complete safetensors file"):
        Checkpoint(path)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_truncated_file(tmp_path, share):
    path = tiny.checkpoint(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(FormatError, match="not a complete safetensors file"):
        Checkpoint(path)


def test_unknown_architecture_shows_what_the_keys_look_like(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"double_blocks.0.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(UnknownArchitectureError, match=r"1 tensors: double_blocks x 1.*Z-Image"):
        Checkpoint(path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_quantized_source_is_refused(tmp_path, dtype):
    def quantize(tensors):
        key = f"{tiny.PREFIX}layers.0.feed_forward.w1.weight"
        tensors[key] = tensors[key].to(dtype)

    with pytest.raises(AlreadyQuantizedError, match="quantized already"):
        resolve(str(tiny.checkpoint(tmp_path, change=quantize)))


def test_every_key_that_does_not_fit_is_named(tmp_path):
    def spoil(tensors):
        del tensors[f"{tiny.PREFIX}x_pad_token"]
        tensors[f"{tiny.PREFIX}stranger"] = torch.zeros(1)
        tensors[f"{tiny.PREFIX}cap_embedder.0.weight"] = torch.zeros(7)

    with pytest.raises(FormatError) as error:
        load_model(tiny.checkpoint(tmp_path, change=spoil))
    message = str(error.value)
    assert "missing x_pad_token" in message
    assert "unexpected stranger" in message
    assert "cap_embedder.0.weight has shape [7] instead of [32]" in message


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("layers.0.attention.q_norm.weight", ()),
        ("layers.0.attention.q_norm.weight", (50,)),
        ("layers.0.attention.q_norm.weight", (7,)),
        ("cap_embedder.1.weight", (32,)),
        ("x_embedder.weight", (96,)),
        ("x_pad_token", (0,)),
        ("norm_final.weight", (1 << 50, 0)),
        ("layers.0.attention.q_norm.weight", (0,)),
    ],
    ids=str,
)
def test_impossible_shapes_are_refused_in_a_sentence(tmp_path, key, shape):
    def misshape(tensors):
        tensors[tiny.PREFIX + key] = torch.zeros(shape, dtype=torch.bfloat16)

    with pytest.raises(FormatError, match=r"tiny\.safetensors"):
        load_model(tiny.checkpoint(tmp_path, change=misshape))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_integers_are_not_taken_for_weights(tmp_path, dtype):
    key = f"{tiny.PREFIX}layers.0.feed_forward.w1.weight"
    path = tiny.checkpoint(tmp_path, change=lambda tensors: tensors.update({key: tensors[key].to(dtype)}))
    with pytest.raises(FormatError, match=r"feed_forward\.w1\.weight is"):
        load_model(path)


def test_other_components_in_an_unprefixed_file_are_left_alone(tmp_path):
    path = tiny.checkpoint(
        tmp_path, prefix="", change=lambda tensors: tensors.update({"vae.x.weight": torch.zeros(2, 2)})
    )
    assert torch.equal(tiny.run(load_model(path, torch.float32)), tiny.run(tiny.model().float()))


def test_a_header_is_read_of_a_file_that_is_larger_than_this_machine(tmp_path):
    """What a dry run needs of 40 GB is their header: nothing is mapped as memory."""
    shapes = originals.ORIGINALS["qwen-image"].shapes(originals.ORIGINALS["qwen-image"].published)
    shapes = {key: (100 * rows, *rest) if len(rest) else (rows, *rest) for key, (rows, *rest) in shapes.items()}
    hole, path = originals.hole(shapes), tmp_path / "large.safetensors"
    path.write_bytes(hole.header)
    os.truncate(path, len(hole))
    assert len(hole) > 4e12
    file = MappedFile(path)
    assert file.tensors["img_in.bias"].shape == (3072,)
