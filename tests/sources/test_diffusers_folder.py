"""A denoiser in diffusers' own layout, whole or in shards, as a source and through quantization."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny

from hswq_hub.cards.card import Card
from hswq_hub.cards.facts import source_facts
from hswq_hub.cli.tables import found_lines
from hswq_hub.quantization.plan import plan_naive
from hswq_hub.quantization.writer import write_quantized
from hswq_hub.settings import SourceSettings
from hswq_hub.sources.errors import UnsuitableSourceError
from hswq_hub.sources.find import find, resolve
from hswq_hub.sources.http import cache
from hswq_hub.sources.source import NOT_LISTED
from hswq_runtime import Checkpoint, load_model
from hswq_runtime.errors import FormatError, HSWQError, UnknownArchitectureError
from hswq_runtime.layers.fp8 import FP8

SHOWN = Path(__file__).parents[2] / "model_cards/demo-hswq"


@pytest.fixture(params=["whole", "sharded"])
def folder(request, tmp_path):
    size = "10GB" if request.param == "whole" else "150KB"
    tiny.model().save_pretrained(tmp_path / "model/transformer", max_shard_size=size)
    return tmp_path / "model"


@pytest.fixture
def shards(tmp_path):
    tiny.model().save_pretrained(tmp_path / "model/transformer", max_shard_size="150KB")
    return sorted((tmp_path / "model/transformer").glob("*.safetensors"))


def test_it_is_the_same_model(folder):
    source = resolve(str(folder))
    assert source.name == "model" and source.origin == "the local folder model"
    assert load_file(source.path).keys() == tiny.model().state_dict().keys()
    for name, tensor in load_model(source.checkpoint).state_dict().items():
        assert torch.equal(tensor, tiny.model().state_dict()[name]), name
    assert torch.equal(tiny.run(load_model(source.checkpoint, torch.float32)), tiny.run(tiny.model().float()))


def test_the_component_itself_can_be_named_and_bytes_are_the_same_every_time(folder, tmp_path, monkeypatch):
    first = resolve(str(folder))
    assert resolve(str(folder / "transformer")).sha256 == first.sha256
    monkeypatch.setenv("HSWQ_HOME", str(tmp_path / "other-home"))
    assert resolve(str(folder)).path.read_bytes() == first.path.read_bytes()


def test_a_look_ahead_copies_nothing(folder):
    found = find(str(folder))
    ahead = found.components()
    assert (found.listing, ahead.licence, ahead.base) == (None, None, "Tongyi-MAI/Z-Image-Turbo")
    assert "cannot be reached" in ahead.unknown and "cannot be reached" in found_lines(found)[-1]
    (folder / "model_index.json").write_text("{}")
    for reference in (folder, folder / "transformer"):
        assert find(str(reference)).components().base == str(folder)
    assert find(str(folder), SourceSettings(base="somebody/else")).components().base == "somebody/else"
    assert cache.contents() == []


def test_a_look_ahead_knows_the_digest_of_just_the_shards_that_were_joined(shards):
    reference = str(shards[0].parents[1])
    with find(reference).look() as ahead:
        assert ahead.sha256 == NOT_LISTED
    joined = resolve(reference)
    with find(reference).look() as ahead:
        assert ahead.sha256 == joined.sha256
    save_file({name: tensor + 1 for name, tensor in load_file(shards[0]).items()}, shards[0], {"format": "pt"})
    with find(reference).look() as ahead:
        assert ahead.sha256 == NOT_LISTED, "it is another model now"


def test_a_look_at_the_demo_names_its_licence():
    lines = found_lines(find("demo"))
    assert "apache-2.0" in lines[1] and "on this machine" in lines[-1]


def test_a_licence_that_is_given_is_said_by_the_look_ahead(folder, tmp_path):
    file = tiny.checkpoint(tmp_path)
    for reference in (folder, file):
        found = find(str(reference), SourceSettings(base=str(resolve("demo").base), licence="openrail++"))
        assert "openrail++" in found_lines(found)[1]
        assert "not stated" in found_lines(find(str(reference), SourceSettings(base=resolve("demo").base)))[1]


def test_one_copy_is_kept_of_what_is_there_twice(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "twin")
    assert resolve(str(tmp_path / "twin")).path == resolve(str(folder)).path
    assert resolve(str(folder)).name == "model" and len(cache.contents()) == 1
    assert resolve(str(folder), verify=True).path == resolve(str(folder)).path


def test_quantized_it_loads_like_any_other(folder, tmp_path):
    source = resolve(str(folder))
    path = tmp_path / "naive.safetensors"
    write_quantized(source.checkpoint, plan_naive(source.checkpoint), path, source_sha256=source.sha256)
    quantized = load_model(path)
    key = "layers.0.feed_forward.w1.weight"
    assert torch.equal(quantized.state_dict()[key], tiny.model().state_dict()[key].to(FP8))
    assert Checkpoint(path).why_never_quantized("t_embedder.mlp.0.weight")
    assert quantized.state_dict()["t_embedder.mlp.0.weight"].dtype == torch.bfloat16


def test_the_card_says_which_names_the_tensors_have(folder, tmp_path):
    shutil.copytree(SHOWN, tmp_path / "out")
    record = json.loads((tmp_path / "out/hswq.json").read_text())
    for source, said in ((resolve("demo"), False), (resolve(str(folder)), True)):
        (tmp_path / "out/hswq.json").write_text(json.dumps(record | {"source": source_facts(source)}))
        assert ("names of diffusers' parameters" in Card.from_folder(tmp_path / "out").render()) is said


def test_its_own_folder_is_the_base(folder):
    demo = resolve("demo")
    shutil.copytree(demo.base, folder, dirs_exist_ok=True)
    assert resolve(str(folder)).base == str(folder.resolve())
    assert resolve(str(folder), base="some/repo").base == "some/repo"


def test_no_path_of_who_saved_it_goes_along(folder):
    config = folder / "transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": "/home/alice/secret"}))
    source = resolve(str(folder))
    assert b"alice" not in source.path.read_bytes()[: 1 << 16]


def test_other_precisions_are_left_alone(folder):
    (folder / "transformer/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another precision")
    assert load_model(resolve(str(folder)).checkpoint)


@pytest.mark.parametrize(
    ("harm", "error", "sentence"),
    [
        (lambda shards: shards[1].unlink(), FormatError, "shards; get the others"),
        (lambda shards: shards[0].write_bytes(shards[0].read_bytes()[:-1]), FormatError, "not a complete safetensors"),
        (lambda shards: shutil.copy(shards[0], shards[1]), FormatError, "once more"),
        (lambda shards: (shards[0].parent / "config.json").write_text("{"), FormatError, "not JSON"),
        (lambda shards: (shards[0].parent / "config.json").write_text("[]"), FormatError, "no configuration"),
        (lambda shards: (shards[0].parent / "config.json").unlink(), UnsuitableSourceError, "no diffusers folder"),
    ],
    ids=["lost", "truncated", "twice", "no json", "no object", "no config"],
)
def test_folders_that_are_not_complete_are_refused(shards, harm, error, sentence):
    harm(shards)
    with pytest.raises(error, match=sentence):
        resolve(str(shards[0].parents[1]))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"_class_name": "LTXVideoTransformer3DModel"}, UnknownArchitectureError),
        ({"_class_name": None}, UnknownArchitectureError),
        ({"n_layers": 2}, FormatError),
        ({"n_heads": "many"}, HSWQError),
    ],
)
def test_a_configuration_that_does_not_belong_is_refused(folder, change, error):
    config = folder / "transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(error):
        resolve(str(folder))


def test_a_header_that_lies_about_its_configuration_is_refused(tmp_path):
    for text in ("{", "[]", '{"_class_name": "os.system"}', '{"_class_name": "ZImageTransformer2DModel", "dim": -1}'):
        save_file({"x.weight": torch.zeros(2, 2)}, tmp_path / "x.safetensors", metadata={"hswq_config": text})
        with pytest.raises(HSWQError):
            resolve(str(tmp_path / "x.safetensors"))
