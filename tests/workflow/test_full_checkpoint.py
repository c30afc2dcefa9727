"""Every command on a full checkpoint: UNet, text encoders and VAE in one file."""

import json
from dataclasses import replace

import torch
from click.testing import CliRunner
from support import tiny_unet
from support.unet_files import CALIBRATION, SMALL

from hswq_hub.cards.card import write_card
from hswq_hub.cli.main import main
from hswq_hub.settings import (
    ErrorSettings,
    EvaluationSettings,
    PublishSettings,
    recipe,
)
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.publish import publish
from hswq_runtime import Format, HSWQPipeline
from hswq_runtime.architectures import ARCHITECTURES
from hswq_runtime.formats import Reader


def test_every_command_takes_a_full_file(full, tmp_path):
    kind = "sd-1.5"
    path, base = full(kind)

    def run(*words):
        result = CliRunner().invoke(main, [*map(str, words)])
        assert result.exit_code == 0, result.output
        return result.output

    described = run("inspect", path)
    assert ARCHITECTURES[kind].title in described and "model.diffusion_model." in described
    assert f"{sum(p.numel() for p in tiny_unet.unet(kind).parameters()) / 1e6:.1f} million" in described
    assert "holds too   text_encoder, vae" in described
    statistics, out = tmp_path / "statistics.safetensors", tmp_path / "out"
    run("calibrate", path, "--base", base, "--samples", 1, "--steps", 2, "-o", statistics)
    words = ["--recipe", "hswq", "--format", "v2", "--for", "comfyui"]
    run("quantize", path, "--base", base, "--calibration", statistics, *words, "-o", out)
    file = out / f"{kind}-hswq-v2.safetensors"
    assert "never 8-bit input_blocks.0.0" in run("inspect", file)
    table = run("evaluate", path, file, "--base", base, "--pairs", 1, "--steps", 2)
    assert f"{kind}-hswq-v2" in table
    refused = CliRunner().invoke(
        main, ["quantize", str(path), "--calibration", str(statistics), "--row-scales", "--for", "comfyui", "-o", "x"]
    )
    assert refused.exit_code == 2 and "exclude each other" in refused.output


def test_publish_measures_and_says_who_reads_what(full, tmp_path):
    path, base = full("sdxl")
    settings = PublishSettings(
        formats=(Format.V2,),
        recipe=replace(
            recipe(rounding="nearest", reader=Reader.COMFYUI, budget=0.6), measurement=ErrorSettings(calls=4)
        ),
        calibration=CALIBRATION,
        evaluation=EvaluationSettings(pairs=1, steps=2),
    )
    folder = publish(resolve(str(path), str(base)), tmp_path / "out", settings, command="hswq-hub publish x").folder
    record = json.loads((folder / "hswq.json").read_text())
    convolutions = [row for row in record["layers"]["v2"] if row["kind"] == "Conv2d" and row["number_format"] != "kept"]
    assert convolutions and all(row["unscaled"] and row["scale"] == 1 for row in convolutions)
    assert all("ComfyUI reads none of a convolution" in row["reason"] for row in convolutions)
    assert all(row["error"] > 0 for row in convolutions)
    card = (folder / "README.md").read_text()
    assert "convolutions are plain FP8" in card and "`models/checkpoints/`" in card
    assert "no scale of a convolution" not in card
    pipe = HSWQPipeline.from_pretrained(folder, dtype=torch.float32)
    assert pipe("a cat", **SMALL).images.std() > 0
    for row in record["layers"]["v2"]:
        row["unscaled"] = False
    record["recipe"]["reader"] = "hswq"
    (folder / "hswq.json").write_text(json.dumps(record))
    lines = write_card(folder).read_text().splitlines()
    assert "none here: it reads no scale of a convolution" in next(line for line in lines if "| ComfyUI |" in line)
