"""The demo page's inside and its API: what it shows is what `evaluate` measures, and nobody gets more than that."""

import base64
import gc
import io
import json
import shutil
import threading
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import httpx2
import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from safetensors.torch import save_file
from support.live_demo import live

from hswq_hub.cards.facts import source_facts
from hswq_hub.cli.main import main as cli
from hswq_hub.evaluation.evaluate import evaluate
from hswq_hub.evaluation.results import Evaluation
from hswq_hub.generation import metrics
from hswq_hub.settings import ALL_FORMATS, DEFAULT_FORMATS, EvaluationSettings
from hswq_hub.sources.find import resolve
from hswq_runtime.errors import FormatError, HSWQError
from hswq_runtime.formats import Format
from spaces_app.app import main
from spaces_app.comparison.worker import Note, StepDone, Stopped, VariantDone, Worker
from spaces_app.models import bundled
from spaces_app.models.lora import find_lora
from spaces_app.models.registry import ModelRegistry
from spaces_app.page.controller import Controller
from spaces_app.request import RequestError, default_request, validated_request

pytestmark = pytest.mark.usefixtures("shared_home")
PROMPT = "a large red house at the left on green hills by day"


@pytest.fixture(scope="module")
def url(home):
    with live() as address:
        Client(address, verbose=False).predict(PROMPT, steps=1, api_name="/compare")
        yield address


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


@pytest.fixture(scope="module")
def worker():
    return Worker(local=True)


def pixels(variant: dict) -> np.ndarray:
    data = base64.b64decode(variant["picture"].removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)))


def quick(model, **changes):
    """A small request for two variants."""
    default_fields = asdict(default_request(model.limits, PROMPT))
    cheap = {"steps": 1, "size": model.limits.smallest, "variants": [model.limits.variants[0], "V2"]}
    return validated_request(model.limits, **default_fields | cheap | changes)


def no_memory(device: torch.device) -> int:
    """A device on which nothing fits together."""
    return 0


def pictures(worker, model, **changes) -> dict[str, np.ndarray]:
    request = quick(model, **changes)
    return {event.label: event.image for event in worker.run(model, request) if isinstance(event, VariantDone)}


def test_the_api_gives_what_evaluate_measures(client):
    source = resolve("demo")
    settings = EvaluationSettings(pairs=1, steps=2, seed=5, noise_floor=False)
    evaluation = evaluate(source, {"V2": bundled.quantized_file(source, Format.V2)}, settings)
    answer = client.predict(
        source.prompts.evaluation[0], seed=5, steps=2, variants=["original", "V2"], api_name="/compare"
    )
    original, v2 = answer["variants"]
    for shown, measured in zip((original, v2), evaluation.variants, strict=True):
        assert np.array_equal(pixels(shown), evaluation.images[measured.label][0])
        pair = measured.pairs[0]
        assert (shown["ssim"], shown["psnr"], shown["latent_mse"]) == (pair.ssim, pair.psnr, pair.latent_mse)
        assert (shown["weight_bytes"], shown["file_bytes"]) == (measured.weight_bytes, measured.file_bytes)
    assert v2["ssim"] == metrics.ssim(pixels(original), pixels(v2)) < 1
    assert original["peak_bytes"] > original["weight_bytes"] > v2["weight_bytes"]


def test_every_variant_is_shown_and_v2_is_closer_than_naive(client):
    answer = client.predict(PROMPT, steps=4, api_name="/compare")
    found = {variant["label"]: variant for variant in answer["variants"]}
    assert list(found) == ["original", "naive FP8", "V1", "V2", "INT8"] and answer["reference"] == "original"
    assert found["V2"]["latent_mse"] < found["naive FP8"]["latent_mse"]
    assert pixels(found["V2"]).shape == (128, 128, 3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": {"path": "/etc/hostname"}}, "The prompt has to be text"),
        ({"prompt": "x" * 10_000}, "10000 characters"),
        ({"seed": "NaN"}, "The seed has to be a number"),
        ({"size": 2**40}, "The size has to be from"),
        ({"steps": 2**40}, "steps has to be from"),
        ({"variants": ["original", "/etc/passwd"]}, "There is no variant"),
        ({"model": "/etc"}, "only the models in its list"),
        ({"model": "../.."}, "only the models in its list"),
        ({"model": "owner/repo"}, "only the models in its list"),
        ({"model": "http://169.254.169.254/latest"}, "only the models in its list"),
        ({"lora": "/etc/passwd"}, "A LoRA is named as"),
        ({"lora": "../../lora.safetensors"}, "A LoRA is named as"),
        ({"lora": "http://169.254.169.254/x/y.safetensors"}, "A LoRA is named as"),
        ({"lora": "owner/repo/../../../lora.safetensors"}, "A LoRA is named as"),
        ({"lora": "owner/repo/lora.pt"}, "A LoRA is named as"),
        ({"lora": "owner/repo/lora.safetensors"}, "cannot be reached"),
        ({"negative": ["a"]}, "The negative prompt has to be text"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_had_is_refused_in_a_sentence(client, changes, sentence):
    with pytest.raises(AppError, match=sentence):
        client.predict(**{"prompt": PROMPT, "steps": 1} | changes, api_name="/compare")


def test_nothing_but_compare_is_offered_and_no_file_is_served_or_taken(client, url):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/compare"}
    assert httpx2.get(f"{url}gradio_api/mcp/schema").status_code == 404, "a tool for assistants is off unless asked for"
    for path in ("/etc/passwd", str(resolve("demo").path), "http://169.254.169.254/latest/meta-data"):
        answer = httpx2.get(f"{url}gradio_api/file={path}")
        assert answer.status_code in (403, 404), (path, answer.status_code)
    taken = httpx2.post(f"{url}gradio_api/upload", files={"files": ("a.bin", b"x" * 100_000)})
    assert taken.status_code == 413


def test_twenty_at_once_are_all_answered_and_memory_stays_flat(client):
    def ask(count: int) -> list[dict]:
        jobs = [
            client.submit(PROMPT, seed=seed, steps=1, size=64, variants=["original", "V2"], api_name="/compare")
            for seed in range(count)
        ]
        return [job.result(timeout=100) for job in jobs]

    ask(5)
    gc.collect()
    before = psutil.Process().memory_info().rss
    answers = ask(20)
    gc.collect()
    assert [answer["seed"] for answer in answers] == list(range(20))
    assert len({answer["variants"][1]["picture"] for answer in answers}) == 20
    assert psutil.Process().memory_info().rss - before < 50e6


def test_a_run_is_told_step_by_step_with_previews(worker):
    model = ModelRegistry().model()
    events = list(worker.run(model, quick(model, steps=6)))
    steps = [event for event in events if isinstance(event, StepDone) and event.label == "V2"]
    assert [step.number for step in steps] == [1, 2, 3, 4, 5, 6]
    previews = [step.picture for step in steps if step.picture is not None]
    assert len(previews) == 5 and {p.shape for p in previews} == {(64, 64, 3)}
    assert not np.array_equal(previews[0], previews[-1])


def test_stopping_takes_effect_at_the_next_step_and_frees_the_weights():
    worker, model, stop = Worker(memory=no_memory), ModelRegistry().model(), threading.Event()
    request = quick(model, steps=60)
    seen = []
    with pytest.raises(Stopped):
        for event in worker.run(model, request, stop=stop):
            seen.append(event)
            if isinstance(event, StepDone):
                stop.set()
    assert len([event for event in seen if isinstance(event, StepDone)]) <= 3
    assert not any(isinstance(event, VariantDone) for event in seen)
    assert worker.call(lambda: worker.loaded) == 0
    assert list(pictures(worker, model)) == ["original", "V2"]


def test_variants_are_loaded_one_at_a_time_where_they_do_not_fit(worker):
    model = ModelRegistry().model()
    together = pictures(worker, model)
    held = []
    careful = Worker(memory=no_memory)
    told = []
    for event in careful.run(model, quick(model)):
        told.append(event)
        if isinstance(event, StepDone):
            held.append(careful.loaded)
    assert set(held) == {1}
    assert any("one after the other" in event.text for event in told if isinstance(event, Note))
    alone = {event.label: event.image for event in told if isinstance(event, VariantDone)}
    assert all(np.array_equal(alone[label], together[label]) for label in together)


def test_how_a_run_was_made_is_still_said_when_it_is_done():
    controller = Controller(ModelRegistry(), Worker(memory=no_memory))
    model = controller.registry.model()
    assert "one after the other" in controller.run(model, quick(model)).remark


def lora_file(folder: Path) -> Path:
    generator, tensors = torch.Generator().manual_seed(0), {}
    config = resolve("demo").checkpoint.config
    for part in ("to_q", "to_k", "to_v"):
        name = f"transformer.layers.0.attention.{part}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(4, config["dim"], generator=generator)
        tensors[f"{name}.lora_B.weight"] = torch.randn(config["dim"], 4, generator=generator) * 0.05
    path = folder / "style.safetensors"
    save_file(tensors, path)
    return path


def test_a_lora_is_on_every_variant_and_off_again(worker, tmp_path):
    model, path = ModelRegistry().model(), lora_file(tmp_path)
    plain, styled, after = (pictures(worker, model, lora=lora) for lora in ("", str(path), ""))
    for label in plain:
        assert not np.array_equal(plain[label], styled[label])
        assert np.array_equal(plain[label], after[label])


def test_a_file_that_is_no_lora_is_refused(worker, tmp_path):
    model = ModelRegistry().model()
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(RequestError, match="no LoRA that fits"):
        pictures(worker, model, lora=str(tmp_path / "x.safetensors"))
    (tmp_path / "x.bin").write_bytes(b"pickle")
    with pytest.raises(RequestError, match="pickles are not opened"):
        pictures(worker, model, lora=str(tmp_path / "x.bin"))


def test_a_path_counts_only_for_whoever_sits_at_this_machine(tmp_path, monkeypatch):
    (tmp_path / "a/b").mkdir(parents=True)
    shutil.copyfile(lora_file(tmp_path), tmp_path / "a/b/style.safetensors")
    monkeypatch.chdir(tmp_path)
    assert find_lora("a/b/style.safetensors", local=True) == Path("a/b/style.safetensors")
    with pytest.raises(RequestError, match="cannot be reached"):
        find_lora("a/b/style.safetensors", local=False)


def published(folder: Path, **changes) -> Path:
    """A folder as `publish` writes it, of the bundled model's files."""
    source = resolve("demo")
    shutil.copytree(source.base, folder)
    plans = bundled.plans(source)
    files = {}
    for version in DEFAULT_FORMATS:
        path = shutil.copy(bundled.quantized_file(source, version), folder)
        files[version.value] = {"file": Path(path).name}
    record = {
        "repo": "demo-hswq",
        "architecture": "z-image",
        "base": None,
        "source": source_facts(source),
        "recipe": {"name": "hswq"},
        "files": files,
        "layers": {version.value: plan.as_rows() for version, plan in plans.items()},
        "examples": [{"prompt": PROMPT}],
    }
    (folder / "hswq.json").write_text(json.dumps(record | changes))
    generation = {"steps": 4, "guidance": 0.0, "size": 128}
    Evaluation({"generation": generation}, []).save(folder / "metrics.json")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Card\n![x](images/x.png)\nWords.\n")
    return folder


def test_a_published_folder_is_shown_with_the_original_it_names(tmp_path, worker):
    folder = published(tmp_path / "out")
    model = ModelRegistry([str(folder)]).model()
    assert list(model.files) == ["original", "naive FP8", "V1", "V2"] and model.missing == ""
    assert (model.limits.steps, model.limits.size, model.examples) == (4, 128, (PROMPT,))
    assert "Words." in model.about and "images/" not in model.about and "license" not in model.about
    assert set(model.plans()) == set(ALL_FORMATS)
    bundled_model = ModelRegistry().model()
    here, there = pictures(worker, model), pictures(worker, bundled_model)
    assert all(np.array_equal(here[label], there[label]) for label in there)


def test_without_its_original_the_files_are_compared_with_each_other(tmp_path, worker):
    source = source_facts(resolve("demo")) | {"reference": "mine.safetensors"}
    folder = published(tmp_path / "out", source=source)
    model = ModelRegistry([str(folder)]).model()
    assert list(model.files) == ["V1", "V2"] and "--original" in model.missing
    assert list(pictures(worker, model)) == ["V1", "V2"]
    given = ModelRegistry([str(folder)], original=resolve("demo").path).model()
    assert list(given.files)[:2] == ["original", "naive FP8"]
    other = ModelRegistry([str(folder)], original=folder / "demo-hswq-v1.safetensors").model()
    with pytest.raises(HSWQError, match="not the file that this model was made from"):
        other.files["original"]()


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"v1": {"file": "../secret.safetensors"}}},
        {"files": {"v1": {"file": "/etc/passwd"}}},
        {"base": "/etc"},
        {"base": "../.."},
        {"architecture": "x"},
        {"examples": None},
        {"source": None},
        {"recipe": {}, "layers": [], "files": []},
    ],
    ids=str,
)
def test_a_hostile_record_is_refused(tmp_path, changes):
    folder = published(tmp_path / "out", **changes)
    with pytest.raises(FormatError):
        ModelRegistry([str(folder)]).model()


def test_other_repos_only_if_they_are_allowed(tmp_path, monkeypatch):
    published(tmp_path / "a/b")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match="only the models in its list"):
        ModelRegistry().model("a/b")
    with pytest.raises(RequestError, match="owner/repo on the Hub"):
        ModelRegistry(any_repo=True).model("a/b")  # a folder of the server that is spelled like a repo
    assert ModelRegistry(any_repo=True, local=True).model("a/b").title == "demo-hswq"
    with pytest.raises(RequestError, match="nobody/nothing cannot be reached"):
        ModelRegistry(any_repo=True).model("nobody/nothing")


def test_the_command_says_what_cannot_be_shown():
    for reference in ("nowhere", "nobody/nothing", "."):
        result = CliRunner().invoke(cli, ["demo", reference])
        assert result.exit_code == 2 and result.stdout == ""
        assert result.stderr.startswith("Error: ") and len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("host", "variables", "local"),
    [
        (None, {}, True),
        ("localhost", {}, True),
        ("0.0.0.0", {}, False),
        (None, {"GRADIO_SERVER_NAME": "0.0.0.0"}, False),
        (None, {"GRADIO_SHARE": "True"}, False),
        (None, {"GRADIO_SHARE": "False"}, True),
    ],
    ids=str,
)
def test_files_of_this_machine_may_be_named_only_if_nobody_else_can(monkeypatch, host, variables, local):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    made, launched = {}, {}
    page = SimpleNamespace(launch=lambda **options: launched.update(options))
    monkeypatch.setattr("spaces_app.app.create_demo", lambda references, **options: made.update(options) or page)
    main(host=host, port=7999)
    assert made["local"] is local and launched["server_port"] == 7999
    assert launched["server_name"] == (host or variables.get("GRADIO_SERVER_NAME", "127.0.0.1"))


def test_a_strangers_record_cannot_spend_the_operators_tokens(a_strangers_repo, tmp_path):
    source = source_facts(resolve("demo")) | {"reference": "operator/private/model.safetensors"}
    model = a_strangers_repo(published(tmp_path / "one", source=source))
    assert list(model.files) == ["V1", "V2"] and model.base == "eve/model"
    with pytest.raises(FormatError, match="operator/private"):
        a_strangers_repo(published(tmp_path / "two", base="operator/private"))


def test_a_strangers_repo_cannot_fill_the_disk(a_strangers_repo, tmp_path):
    with pytest.raises(RequestError, match="GB of what would be fetched"):
        a_strangers_repo(published(tmp_path / "one"), size=10**12)
