"""The command line: each step on files, and one sentence for everything that cannot be done."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from support import tiny

from hswq_hub.cli.main import main
from hswq_hub.evaluation.results import Evaluation
from hswq_hub.sources.find import resolve

DEMO_FILE = str(resolve("demo").path)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_each_step_alone(run, tmp_path):
    result = run("calibrate", "demo", "--samples", 1, "--steps", 2, "-o", "statistics.safetensors")
    assert result.exit_code == 0 and (tmp_path / "statistics.json").is_file(), result.output
    assert (tmp_path / "statistics-sensitivity.png").is_file()
    result = run("quantize", "demo", "--calibration", "statistics.safetensors", "-o", "out", "--keep-ratio", 0.25,
                 "--keep-by", "variance")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "within the keep ratio 0.25" in result.output
    assert re.match(r"time: .*, an estimate from a short trial\nmemory: .* MB, on a machine with", result.stderr)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert {p.name for p in (tmp_path / "out").iterdir()} - {f.name for f in files} == {
        f"demo-hswq-{v}-{drawing}.png" for v in ("v1", "v2") for drawing in ("sensitivity", "weights")
    }
    assert [file.name for file in files] == ["demo-hswq-v1.safetensors", "demo-hswq-v2.safetensors"]
    result = run("evaluate", "demo", *files, "--pairs", 1, "--steps", 2, "-o", "metrics.json")
    assert result.exit_code == 0, result.output
    evaluation = Evaluation.load(tmp_path / "metrics.json")
    assert [v.label for v in evaluation.variants] == ["original", "demo-hswq-v1", "demo-hswq-v2"]
    assert f"{evaluation.variants[1].ssim_mean:.4f}" in result.output
    result = run("inspect", files[1])
    assert result.exit_code == 0 and "Z-Image, V2" in result.output


def write_text(path):
    path.write_text("no tensors here")


def write_truncated(path):
    path.write_bytes(resolve("demo").path.read_bytes()[:100_000])


def write_unknown(path):
    save_file({"mystery.weight": torch.zeros(4, 4)}, path)


def write_quantized(path):
    tensors = tiny.original_layout(tiny.model().state_dict())
    key = f"{tiny.PREFIX}layers.0.feed_forward.w1.weight"
    save_file(tensors | {key: tensors[key].to(torch.float8_e4m3fn)}, path)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (write_text, "is not a complete safetensors file"),
        (write_truncated, "is not a complete safetensors file"),
        (write_unknown, "unknown architecture"),
        (write_quantized, "is quantized already"),
    ],
    ids=["text", "truncated", "unknown", "quantized"],
)
def test_bad_files(run, tmp_path, write, sentence):
    write(tmp_path / "bad.safetensors")
    refused(run("publish", "bad.safetensors", "--base", resolve("demo").base), sentence)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


def refused(result, sentence):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert sentence in result.stderr
    assert result.stderr.startswith("Error: ") and len(result.stderr.strip().splitlines()) == 1


def test_unknown_reference(run):
    refused(run("publish", "nowhere.safetensors"), "neither a file here nor a known reference")


def test_statistics_never_replace_a_checkpoint(run, tmp_path):
    shutil.copyfile(resolve("demo").path, "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    refused(run("calibrate", "demo", "-o", "model.safetensors"), "not ours to replace")
    refused(run("calibrate", "demo", "-o", "statistics.json"), "must end in .safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_files_of_one_name_are_told_apart(run, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copyfile(resolve("demo").path, tmp_path / folder / "x.safetensors")
    shutil.copyfile(resolve("demo").path, "original.safetensors")
    result = run("evaluate", "demo", "a/x.safetensors", "b/x.safetensors", "original.safetensors", "--pairs", 1,
                 "--steps", 1, "-o", "metrics.json")  # fmt: skip
    assert result.exit_code == 0, result.output
    labels = [variant.label for variant in Evaluation.load(tmp_path / "metrics.json").variants]
    assert labels == ["original", "a/x.safetensors", "b/x.safetensors", "original.safetensors"]


def test_no_path_of_this_machine_is_published(run, tmp_path):
    (tmp_path / "alice").mkdir()
    shutil.copyfile(resolve("demo").path, tmp_path / "alice/model.safetensors")
    shutil.copytree(resolve("demo").base, tmp_path / "alice/base")
    result = run("publish", tmp_path / "alice/model.safetensors", "--base", tmp_path / "alice/base", "--folder",
                 tmp_path / "alice/out", "--recipe", "hswq", "--samples", 1, "--steps", 1, "--pairs", 1,
                 "--picture-steps", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    published = b"".join(path.read_bytes() for path in (tmp_path / "alice/out").rglob("*") if path.is_file())
    for trace in (str(tmp_path), "alice", str(Path.home()), os.environ["HSWQ_HOME"]):
        assert trace.encode() not in published
    assert b"hswq-hub publish model.safetensors --base base --recipe hswq --samples 1 --steps 1" in published
    assert b"1 pair decides nothing" in published


def test_missing_text_encoder(run, tmp_path):
    shutil.copytree(resolve("demo").base, "base")
    shutil.rmtree("base/text_encoder")
    shutil.copyfile(resolve("demo").path, "model.safetensors")
    refused(run("publish", "model.safetensors", "--base", "base"), "lacks text_encoder")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "model.safetensors"}


def test_base_that_is_nowhere(run, tmp_path):
    """No network here: a Hub repo that is not cached cannot be read."""
    shutil.copyfile(resolve("demo").path, "model.safetensors")
    refused(run("publish", "model.safetensors", "--base", "nobody/nothing", "--samples", 1), "nobody/nothing")
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors"}


def test_target_that_holds_something_else(run, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_bytes(b"meow")
    refused(run("publish", "demo", "--folder", "photos"), "did not make")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.png"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    "command", [("publish",), ("calibrate", "-o", "x.safetensors"), ("evaluate", DEMO_FILE)], ids=lambda c: c[0]
)
def test_cuda_that_is_not_there_is_never_replaced_by_the_cpu(run, tmp_path, command):
    name, *rest = command
    refused(run(name, "demo", *rest, "--device", "cuda"), "CUDA was asked for")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [("--keep-ratio", "1.5"), ("--samples", "0"), ("--format", "v3"), ("--device", "tpu"), ("--seed", "9" * 20)],
    ids=lambda o: o[0],
)
def test_impossible_options(run, options):
    result = run("publish", "demo", *options)
    assert result.exit_code == 2 and "Invalid value" in result.stderr


def test_statistics_of_another_model(run, tmp_path):
    run("calibrate", "demo", "--samples", 1, "--steps", 1, "-o", "statistics.safetensors")
    path = tiny.checkpoint(tmp_path)
    result = run("quantize", path, "--calibration", "statistics.safetensors", "-o", "out")
    refused(result, "made from another file than tiny.safetensors")
    assert not (tmp_path / "out").exists()
