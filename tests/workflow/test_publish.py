"""The main job, end to end, on the demo model; and what a stranger does with the folder afterwards."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers.utils.logging import enable_progress_bar
from safetensors.torch import load_file, save_file

from hswq_hub.cards.card import Card, write_card
from hswq_hub.cards.record import PublishedRecord
from hswq_hub.common.targets import TargetError
from hswq_hub.evaluation import plots
from hswq_hub.evaluation.digests import differences, digests_of
from hswq_hub.generation.generate import GenerationSettings, generate
from hswq_hub.settings import (
    DEFAULT_FORMATS,
    CalibrationSettings,
    ErrorSettings,
    EvaluationSettings,
    PublishSettings,
    recipe,
)
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.publish import publish
from hswq_runtime import Checkpoint, Format, HSWQPipeline, dequantize_, weight_bytes
from hswq_runtime.errors import ComponentError, FormatError, HSWQError
from hswq_runtime.layers.fp8 import FP8

pytestmark = pytest.mark.usefixtures("shared_home")
ROOT = Path(__file__).parents[2]
QUICK = PublishSettings(
    recipe=replace(recipe(), measurement=ErrorSettings(calls=4)),
    calibration=CalibrationSettings(samples=2, steps=3),
    evaluation=EvaluationSettings(pairs=3, steps=4),
)
FAST = PublishSettings(
    recipe=recipe("hswq"),
    calibration=CalibrationSettings(samples=1, steps=1),
    evaluation=EvaluationSettings(pairs=1, steps=1),
)
"""For promises that do not depend on the recipe."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, home):
    target = tmp_path_factory.mktemp("published") / "demo-hswq"
    publish(resolve("demo"), target, QUICK, command="hswq-hub publish demo --samples 2 --steps 3")
    return target


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def picture(pipeline, seed=5):
    how = GenerationSettings.of(resolve("demo").checkpoint.architecture, pipeline.vae.config, steps=3)
    return generate(pipeline, "a large red house at the left on green hills by day", seed, how)


def test_folder_holds_everything_that_would_be_uploaded(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "demo-hswq-v1.safetensors", "demo-hswq-v2.safetensors", "README.md", "metrics.json", "hswq.json", "images",
        "LICENSE", "model_index.json", "scheduler", "text_encoder", "tokenizer", "transformer", "vae",
    }  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing is left beside it"
    assert "Apache License" in (folder / "LICENSE").read_text()
    stated = json.loads((folder / "transformer/config.json").read_text())
    assert [path.name for path in (folder / "transformer").iterdir()] == ["config.json"]
    assert stated == json.loads(Checkpoint(folder / "demo-hswq-v1.safetensors").metadata["hswq_config"])


def test_record_explains_every_layer(folder):
    record = json.loads((folder / "hswq.json").read_text())
    for version in DEFAULT_FORMATS:
        checkpoint = Checkpoint(folder / record["files"][version.value]["file"])
        layers = record["layers"][version.value]
        assert {row["key"] for row in layers} == set(checkpoint.layers)
        assert {row["key"] for row in layers if row["number_format"] == "fp8_e4m3fn"} == set(checkpoint.quantized)
        assert all(row["reason"] for row in layers)
    assert record["recipe"] == json.loads(json.dumps(asdict(QUICK.recipe)))
    assert record["source"]["sha256"] == resolve("demo").sha256


def test_record_has_a_digest_of_all_that_is_in_the_files(folder):
    record = PublishedRecord.load(folder)
    for facts in record.files.values():
        assert differences(record.digests_of(facts.file), digests_of(folder / facts.file)) == []


def test_figures_are_those_of_the_files(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [variant["label"] for variant in metrics["variants"]] == ["original", "naive FP8", "V1", "V2"]
    original, *others = metrics["variants"]
    assert all((pair["ssim"], pair["latent_mse"]) == (1, 0) for pair in original["pairs"])
    for variant in others:
        assert len(variant["pairs"]) == 3
        values = [pair["ssim"] for pair in variant["pairs"]]
        assert variant["ssim_mean"] == pytest.approx(np.mean(values)) and variant["ssim_worst"] == min(values)
        assert 0 < variant["latent_mse_mean"] < 0.1
    for variant in metrics["variants"][2:]:
        assert variant["file_bytes"] == (folder / variant["file"]).stat().st_size
    prompts = {pair["prompt"] for pair in original["pairs"]}
    assert not prompts & set(resolve("demo").prompts.calibration)


def test_a_second_run_only_puts_the_folder_together(folder, tmp_path, monkeypatch):
    stages = "hswq_hub.workflow.stages"
    work = ("plan_everything", "write_compensated", "measure_errors", "write_quantized", "write_naive")
    for function in ("calibrate.calibrate", "evaluate.evaluate", *(f"quantize.{name}" for name in work)):
        monkeypatch.setattr(f"{stages}.{function}", lambda *_, **__: pytest.fail("done again"))
    publish(resolve("demo"), tmp_path / folder.name, QUICK, command="hswq-hub publish demo --samples 2 --steps 3")
    assert contents(tmp_path / folder.name) == contents(folder)


def test_another_base_is_another_model(folder, tmp_path, monkeypatch):
    """A base of the same name but with another text encoder must not be answered from the workspace."""
    pictures = []
    for place in ("one", "two"):
        base = shutil.copytree(resolve("demo").base, tmp_path / place / "base")
        if place == "two":
            weights = base / "text_encoder/model.safetensors"
            save_file({name: torch.randn_like(t) for name, t in load_file(weights).items()}, weights, {"format": "pt"})
        shutil.copyfile(resolve("demo").path, tmp_path / place / "model.safetensors")
        monkeypatch.chdir(tmp_path / place)
        publish(resolve("model.safetensors", base="base"), tmp_path / place / "out", FAST)
        pictures.append((tmp_path / place / "out/images/compare-01.png").read_bytes())
    assert pictures[0] != pictures[1]


def test_nothing_is_fetched(tmp_path, monkeypatch):
    """Offline, whatever the environment says: no connection is even tried."""

    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HSWQ_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    publish(resolve("demo"), tmp_path / "out", FAST)
    HSWQPipeline.from_pretrained(tmp_path / "out")


def test_a_picture_that_is_not_finite_is_no_result(monkeypatch):
    pipeline = HSWQPipeline.from_pretrained(resolve("demo").path, base=resolve("demo").base, dtype=torch.float32)
    pipeline.transformer.all_final_layer["2-1"].linear.bias.data.fill_(float("nan"))
    with pytest.raises(HSWQError, match="NaN or infinity"):
        picture(pipeline)


def test_a_hostile_index_reaches_no_other_folder(tmp_path):
    base = tmp_path / "base"
    shutil.copytree(resolve("demo").base, base)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key.json").write_text("private")
    index = json.loads((base / "model_index.json").read_text())
    for name in ("../secret", str(tmp_path / "secret")):
        index[name] = [None, None]
    (base / "model_index.json").write_text(json.dumps(index))
    (base / "vae/notes.md").write_text("mine")
    (base / "vae/old.bin").write_bytes(b"pickle")
    (base / ".git").mkdir()
    shutil.copyfile(resolve("demo").path, tmp_path / "model.safetensors")
    publish(resolve(str(tmp_path / "model.safetensors"), str(base)), tmp_path / "deep/out", FAST)
    assert b"private" not in b"".join(contents(tmp_path / "deep").values())
    assert not any(name.endswith((".bin", ".md", ".git")) for name in contents(tmp_path / "deep/out") if "/" in name)


def test_one_format_alone(folder, tmp_path):
    target = tmp_path / "only-v1"
    settings = replace(FAST, formats=(Format.V1,))
    publish(resolve("demo"), target, settings)
    assert [path.name for path in target.glob("*.safetensors")] == ["demo-hswq-v1.safetensors"]
    text = (target / "README.md").read_text()
    assert "V2" not in text


def test_a_local_file_goes_the_same_way(tmp_path):
    demo = resolve("demo")
    file = tmp_path / "myModel_v3.safetensors"
    shutil.copyfile(demo.path, file)
    source = resolve(str(file), base=demo.base)
    publish(source, tmp_path / "out", FAST)
    for version in DEFAULT_FORMATS:
        ours = Checkpoint(tmp_path / "out" / f"myModel_v3-hswq-{version.value}.safetensors")
        assert ours.format is version and ours.config == demo.checkpoint.config
        assert set(demo.checkpoint.tensors) < set(ours.tensors), "what the input holds under a key, the output holds"
    card = (tmp_path / "out/README.md").read_text()
    assert "license" not in yaml.safe_load(card.split("---\n")[1]), "nobody said what the licence is"
    assert not (tmp_path / "out/LICENSE").exists() and "not stated" in card


def test_somebody_elses_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(TargetError, match="did not make"):
        publish(resolve("demo"), tmp_path, QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failure_leaves_the_old_folder_as_it_was(folder, tmp_path, monkeypatch):
    target = tmp_path / "mine"
    shutil.copytree(folder, target)
    before = contents(target)
    monkeypatch.setattr("hswq_hub.workflow.stages.folder.write_card", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        publish(resolve("demo"), target, QUICK)
    assert contents(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_loaded_pipeline_equals_the_dequantized_one_bit_for_bit(folder, variant):
    pipeline = HSWQPipeline.from_pretrained(folder, variant=variant, dtype=torch.float32)
    assert type(pipeline).__name__ == "ZImagePipeline"
    assert any(p.dtype == FP8 for p in pipeline.transformer.parameters())
    assert pipeline.transformer.dtype == pipeline.dtype == torch.float32
    pipeline.set_progress_bar_config(disable=True)
    quantized = picture(pipeline)
    dequantize_(pipeline.transformer)
    assert not any(p.dtype == FP8 for p in pipeline.transformer.parameters())
    plain = picture(pipeline)
    assert torch.equal(quantized.latents, plain.latents)
    assert np.array_equal(quantized.image, plain.image)


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_weights_take_less_than_70_percent_of_bfloat16(folder, variant, capsys):
    enable_progress_bar()
    pipeline = HSWQPipeline.from_pretrained(folder, variant=variant)
    assert pipeline.transformer.dtype == torch.bfloat16
    share = weight_bytes(pipeline.transformer) / resolve("demo").checkpoint.weight_bytes
    assert share < 0.7
    assert f"{share:.0%} of bfloat16" in capsys.readouterr().err


def test_variants_are_told_apart_by_their_headers_not_their_names(folder, tmp_path):
    target = tmp_path / "swapped"
    shutil.copytree(folder, target)
    one, two = (target / f"demo-hswq-{v}.safetensors" for v in ("v1", "v2"))
    one.rename(tmp_path / "x"), two.rename(one), (tmp_path / "x").rename(two)
    assert HSWQPipeline.from_pretrained(target, variant="v1").transformer.layers[0].feed_forward.w1.scale is None
    assert HSWQPipeline.from_pretrained(target, variant="v2").transformer.layers[0].feed_forward.w1.scale is not None
    assert HSWQPipeline.from_pretrained(target).transformer.layers[0].feed_forward.w1.scale is not None, (
        "V2 is preferred"
    )


def test_one_file_with_a_base(folder):
    file = folder / "demo-hswq-v1.safetensors"
    pipeline = HSWQPipeline.from_pretrained(file, base=resolve("demo").base, dtype=torch.float32)
    assert pipeline.transformer.layers[0].feed_forward.w1.weight.dtype == FP8


def test_what_cannot_be_loaded_is_explained(folder, tmp_path):
    with pytest.raises(FormatError, match="no variant 'v3'"):
        HSWQPipeline.from_pretrained(folder, variant="v3")
    with pytest.raises(FormatError, match="is not a v2 file"):
        HSWQPipeline.from_pretrained(folder / "demo-hswq-v1.safetensors", variant="v2")
    with pytest.raises(FormatError, match="neither a file nor a folder"):
        HSWQPipeline.from_pretrained(tmp_path / "nothing")
    several = tmp_path / "several"
    several.mkdir()
    for name in ("a", "b"):
        shutil.copyfile(folder / "demo-hswq-v1.safetensors", several / f"{name}.safetensors")
    with pytest.raises(FormatError, match=r"a\.safetensors, b\.safetensors"):
        HSWQPipeline.from_pretrained(several)
    with pytest.raises(ComponentError, match="neither a folder here nor"):
        HSWQPipeline.from_pretrained(several, weight_name="a.safetensors", base="./elsewhere")
    shutil.copytree(resolve("demo").base, tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "text_encoder")
    with pytest.raises(ComponentError, match="lacks text_encoder"):
        HSWQPipeline.from_pretrained(several, weight_name="a.safetensors", base=tmp_path / "base")


def test_card_shows_the_figures_and_nothing_made_up(folder):
    card = Card.from_folder(folder)
    text = (folder / "README.md").read_text()
    front, body = text.split("---\n", 2)[1:]
    data = yaml.safe_load(front)
    assert data["license"] == "apache-2.0" and data["library_name"] == "diffusers"
    assert "base_model" not in data, "the demo model was not made from another one"
    reported = {m["name"]: m["value"] for result in data["model-index"][0]["results"] for m in result["metrics"]}
    for label in ("V1", "V2"):
        variant = card.evaluation.variant(label)
        assert reported[f"SSIM against the original, {label}"] == round(variant.ssim_mean, 4)
        assert f"| {label} | {variant.file_bytes / 1e6:.1f} MB |" in body
        assert f"{variant.ssim_mean:.4f} | {variant.ssim_worst:.4f}" in body
    for image in {example["output"]["url"] for example in data["widget"]} | set(card.images):
        assert (folder / image).is_file() and image in text
    drawings = {f"images/{name}" for name in (plots.SENSITIVITY, plots.SIZES, plots.WEIGHTS)}
    shown = set(re.findall(r"!\[.*?\]\((.*?)\)", body))
    assert drawings < shown and all((folder / image).is_file() for image in shown)
    for decision in card.kept:
        assert decision.layer in body
    assert "hswq-hub publish demo --samples 2 --steps 3" in body
    assert not re.search(r"\{\{|\{%|\bNone\b|undefined|\bnan\b", text)


def test_card_command_renders_what_publish_wrote(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy/README.md").unlink()
    assert write_card(tmp_path / "copy").read_text() == (folder / "README.md").read_text()


def test_card_snippet_runs(folder, monkeypatch):
    snippet = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder.parent)
    names: dict = {}
    exec(snippet.replace("num_inference_steps=9", "num_inference_steps=1"), names)
    assert names["image"].size == (128, 128)
