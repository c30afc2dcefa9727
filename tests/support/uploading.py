"""A small publish to upload, and what is in a folder and on a `HubServer`."""

import json

from click.testing import CliRunner

from hswq_hub.cli.main import main
from hswq_hub.generation.generate import GenerationSettings, generate
from hswq_hub.hub.settings import UploadSettings
from hswq_hub.settings import CalibrationSettings, EvaluationSettings, PublishSettings, recipe
from hswq_hub.sources.find import resolve
from support.hub_server import TOKEN

QUICK = PublishSettings(
    recipe=recipe("hswq"),
    calibration=CalibrationSettings(samples=1, steps=1),
    evaluation=EvaluationSettings(pairs=2, steps=1, noise_floor=False),
)
OPTIONS = ["--recipe", "hswq", "--samples", "1", "--steps", "1", "--pairs", "2", "--picture-steps", "1"]
REPO = "alice/demo-hswq"
UNCHECKED = UploadSettings(REPO, verify=False)


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def held(server, repo=REPO) -> dict[str, bytes]:
    return {path: bytes(data) for path, data in server.repos[repo].files.items() if path != ".gitattributes"}


def record_of(folder) -> dict:
    return json.loads((folder / "hswq.json").read_text())


def metrics_of(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def change_record(folder, **source):
    record = record_of(folder)
    record["source"] |= source
    (folder / "hswq.json").write_text(json.dumps(record))


def run(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert TOKEN not in result.output
    return result


def picture(pipeline):
    how = GenerationSettings.of(resolve("demo").checkpoint.architecture, pipeline.vae.config, steps=2)
    return generate(pipeline, "a large red house at the left on green hills by day", 5, how).image


def asked(server, method, part) -> list:
    return [seen for seen in server.seen if seen.method == method and part in seen.path]


def use(hub, monkeypatch, who):
    """Make `who` the account of this process: a token, or what whoami answers for one."""
    if isinstance(who, dict):
        hub.accounts["hf_other"], who = who, "hf_other"
    monkeypatch.setenv("HF_TOKEN", who) if who else monkeypatch.delenv("HF_TOKEN")
