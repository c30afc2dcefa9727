"""A model whose configuration shapes do not tell: page, evaluation and pipeline show what diffusers shows."""

import json
import shutil

import numpy as np
import torch
from support import originals
from support.originals import ORIGINALS
from support.references import reference

from hswq_hub.evaluation.evaluate import evaluate
from hswq_hub.evaluation.results import ORIGINAL
from hswq_hub.generation.generate import GenerationSettings, generate, open_pipeline
from hswq_hub.quantization.naive import write_naive
from hswq_hub.settings import CalibrationSettings, EvaluationSettings, PublishSettings, recipe
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.publish import publish
from hswq_runtime import HSWQPipeline
from hswq_runtime.architectures import ARCHITECTURES
from hswq_runtime.formats import Format
from spaces_app.comparison.worker import VariantDone, Worker
from spaces_app.models.registry import ModelRegistry
from spaces_app.request import validated_request

CHEAP = PublishSettings(
    formats=(Format.V2,),
    recipe=recipe("hswq"),
    calibration=CalibrationSettings(samples=1, steps=1, calls=1),
    evaluation=EvaluationSettings(pairs=1, steps=2, size=64),
)


def test_every_way_shows_the_same_picture(tmp_path, bases):
    row, original = ARCHITECTURES["z-image"], ORIGINALS["z-image"]
    path = originals.write_tiny(tmp_path, original)
    base = shutil.copytree(bases("z_image"), tmp_path / "base")
    (base / "transformer").mkdir()
    guessed = resolve(str(path), base=str(base)).checkpoint.config
    unusual = guessed | {"axes_dims": [8, 12, 12], "rope_theta": 20.0}
    (base / "transformer/config.json").write_text(json.dumps(unusual))
    source = resolve(str(path), base=str(base), licence="mit")
    folder = publish(source, tmp_path / "out", CHEAP).folder
    (file,) = folder.glob("*.safetensors")
    naive = tmp_path / "naive.safetensors"
    write_naive(source.checkpoint, naive, source_sha256=source.sha256)
    prompt, seed = source.prompts.evaluation[0], CHEAP.evaluation.seed

    def shown(pipeline):
        settings = GenerationSettings.of(row, pipeline.vae.config, steps=2, size=64)
        return generate(pipeline, prompt, seed, settings).image

    def of_diffusers(at):
        denoiser = reference(row, unusual, at, original)
        return shown(open_pipeline(source.checkpoint, denoiser, str(base), torch.device("cpu")))

    plain = {ORIGINAL: of_diffusers(path), "naive FP8": of_diffusers(naive), "V2": of_diffusers(file)}
    assert not np.array_equal(plain[ORIGINAL], plain["V2"])

    evaluation = evaluate(source, {"naive FP8": naive, "V2": file}, CHEAP.evaluation)
    assert all(np.array_equal(evaluation.images[label][0], image) for label, image in plain.items())

    assert np.array_equal(shown(HSWQPipeline.from_pretrained(folder, dtype=torch.float32)), plain["V2"])

    model = ModelRegistry([str(folder)], original=path, local=True).model()
    fields = {"prompt": prompt, "negative": "", "seed": seed, "steps": 2, "guidance": row.guidance, "size": 64}
    request = validated_request(model.limits, **fields, variants=list(plain))
    pictures = {
        done.label: done.image for done in Worker("cpu", "float32").run(model, request) if isinstance(done, VariantDone)
    }
    assert pictures.keys() == plain.keys()
    assert all(np.array_equal(pictures[label], image) for label, image in plain.items())
