"""The files of the bundled model that the page shows: what `publish demo` makes, here or when the release was made."""

import json

import pytest

from hswq_hub.common.files import file_sha256
from hswq_hub.evaluation.evaluate import evaluate
from hswq_hub.settings import DEFAULT_FORMATS, EvaluationSettings, recipe
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.publish import PublishPlan
from hswq_runtime import Checkpoint
from hswq_runtime.formats import Format
from spaces_app.models import bundled

pytestmark = pytest.mark.usefixtures("shared_home")


def test_the_files_that_ship_are_of_the_bundled_model_and_close_to_it():
    """They are what `publish demo` made with the default recipe; V1 and V2 are closer than the naive cast."""
    source, record = resolve("demo"), bundled.shipped_record()
    files = {format: bundled.SHIPPED / facts.file for format, facts in record.files.items()}
    for format, path in files.items():
        checkpoint = Checkpoint(path)
        assert checkpoint.format is format and checkpoint.metadata["hswq_source_sha256"] == source.sha256
        assert checkpoint.metadata["hswq_recipe"] == recipe().label and checkpoint.config == source.checkpoint.config
        assert file_sha256(path) == record.files[format].sha256
        assert {d.key for d in record.plans[format].decisions} == set(source.checkpoint.layers)
    naive = bundled.naive_file(source.checkpoint, source.sha256)
    labelled = {"naive": naive} | {format.label: path for format, path in files.items()}
    evaluation = evaluate(source, labelled, EvaluationSettings(pairs=3, noise_floor=False))
    error = {variant.label: variant.latent_mse_mean for variant in evaluation.variants}
    assert error["V1"] < 0.5 * error["naive"] and error["V2"] < 0.5 * error["naive"]


def test_the_page_shows_what_publish_made_here(monkeypatch, tmp_path):
    monkeypatch.setenv("HSWQ_HOME", str(tmp_path))
    source = resolve("demo")
    record = {"step": "", "seconds": 1.0, "finished": 1.0, "bytes": 1, "files": {}, "inputs": {}, "work": {}}
    for format in DEFAULT_FORMATS:
        assert bundled.quantized_file(source, Format.V2).parent == bundled.SHIPPED, "not both are done yet"
        (step,) = (step for step in PublishPlan.of(source).steps if step.name == f"write {format.value}")
        step.folder.mkdir(parents=True)
        (step.folder / "made.json").write_text(json.dumps(record))
    assert bundled.quantized_file(source, Format.V2).parent.name.startswith("write-v2-")
