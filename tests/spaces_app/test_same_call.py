"""Page, card and evaluation call a pipeline with the same arguments, for every architecture and variant."""

import inspect
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch

from hswq_hub.cards.card import Card
from hswq_hub.evaluation.evaluate import evaluate
from hswq_hub.evaluation.results import Evaluation
from hswq_hub.settings import ALL_FORMATS, EvaluationSettings
from hswq_hub.sources.find import resolve
from hswq_hub.sources.prompts.prompts import Prompts
from hswq_runtime.architectures import ARCHITECTURES
from hswq_runtime.errors import FormatError
from spaces_app.comparison.worker import VariantDone, Worker
from spaces_app.models.registry import ModelRegistry
from spaces_app.request import RequestError, validated_request

MODELS = {model.title: model for row in ARCHITECTURES.values() for model in row.models}
SHOWN = Path(__file__).parents[2] / "model_cards/demo-hswq"
PROMPT = "a red “ring”, 50 %"
OF_THE_RUN = {"generator", "callback_on_step_end", "output_type"}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def recording_pipeline(model):
    """A pipeline whose call has the signature of the real one's, keeps what it is given, and ends in one colour."""
    real = inspect.signature(getattr(diffusers, model.pipeline_class).__call__)

    class Recording:
        def __init__(self):
            self.calls = []
            self.vae = SimpleNamespace(config={})
            self.transformer = self.unet = torch.nn.Module()

        def __call__(self, *args, **kwargs):
            given = dict(real.bind(self, *args, **kwargs).arguments)
            given.pop("self")
            self.calls.append({name: value for name, value in given.items() if name not in OF_THE_RUN})
            if (after_step := given.get("callback_on_step_end")) is not None:
                after_step(self, given["num_inference_steps"] - 1, 0, {"latents": torch.zeros(1, 4, 8)})
            return SimpleNamespace(images=[np.zeros((16, 16, 3), np.float32)])

    Recording.__call__.__signature__ = real
    return Recording()


def single(arguments: dict) -> dict:
    """Arguments for one prompt, where a batch of one means the same."""
    return {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in arguments.items()
    }


def evaluated(model) -> tuple[dict, dict]:
    """What the evaluation calls the pipeline with, and what it writes down of it."""
    pipeline = recording_pipeline(model)
    source = SimpleNamespace(
        architecture=model,
        path=resolve("demo").path,
        checkpoint=resolve("demo").checkpoint,
        base=model.base_repo,
        hub_base=model.base_repo,
        sha256="0" * 64,
        prompts=Prompts((), (PROMPT,)),
        negative_prompt=lambda guidance: None,
        check_components=lambda: None,
    )
    with pytest.MonkeyPatch.context() as patch:
        shared = SimpleNamespace(pipeline_for=lambda checkpoint: pipeline)
        patch.setattr("hswq_hub.evaluation.evaluate.SharedPipeline", lambda *_: shared)
        evaluation = evaluate(source, {}, EvaluationSettings(pairs=1, device="cpu", noise_floor=False))
    return single(pipeline.calls[0]), evaluation.protocol["generation"]


def published(folder: Path, model, generation: dict, **changes) -> Path:
    """A folder as `publish` leaves it, of that model; its files hold the demo model's weights, which nobody runs."""
    folder.mkdir(parents=True)
    record = json.loads((SHOWN / "hswq.json").read_text()) | {
        "architecture": model.name,
        "base": model.base_repo,
        "examples": [{"prompt": PROMPT, "seed": 1, "image": "images/example-01.png", "worst": True}],
    }
    for format in ALL_FORMATS:
        (folder / record["files"][format.value]["file"]).symlink_to(resolve("demo").path)
    (folder / "hswq.json").write_text(json.dumps(record | changes))
    figures = Evaluation.load(SHOWN / "metrics.json")
    replace(figures, protocol=figures.protocol | {"generation": generation}).save(folder / "metrics.json")
    (folder / "README.md").write_text("# Card\n")
    (folder / "images").mkdir()
    (folder / "images/compare-01.png").touch()
    return folder


def called_by_the_card(folder: Path, model, monkeypatch) -> dict:
    """Run the snippet of the card, with a stand-in for the package that it imports."""
    pipeline = recording_pipeline(model)
    package = ModuleType("hswq_runtime")
    package.HSWQPipeline = SimpleNamespace(from_pretrained=lambda repo: pipeline)
    (snippet,) = re.findall(r"```python\n(.*?)```", Card.from_folder(folder).render(), flags=re.DOTALL)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "hswq_runtime", package)
        exec(snippet, {})
    return single(pipeline.calls[0])


def called_by_the_page(folder: Path, model, **asked) -> dict:
    """Ask the page's worker for two variants; all are called alike."""
    pipeline = recording_pipeline(model)
    shared = SimpleNamespace(together=True, loaded=0, pipeline_for=lambda checkpoint: pipeline)
    shown = ModelRegistry([str(folder)]).model()
    limits = shown.limits
    fields = {"prompt": PROMPT, "negative": "", "seed": 1, "steps": limits.steps, "guidance": limits.guidance}
    fields |= {"size": limits.size, "variants": ["V1", "V2"]}
    worker = Worker("cpu", "float32", pipelines=lambda *args: shared)
    done = [e for e in worker.run(shown, validated_request(limits, **fields | asked)) if isinstance(e, VariantDone)]
    assert len(done) == 2 and pipeline.calls[0] == pipeline.calls[1]
    return single(pipeline.calls[0])


@every_model
def test_page_card_and_evaluation_call_the_pipeline_alike(model, tmp_path, monkeypatch):
    expected, generation = evaluated(model)
    folder = published(tmp_path / "out", model, generation)
    assert expected[model.guidance_argument] == model.guidance and expected["prompt"] == PROMPT
    assert expected.get("negative_prompt") == model.negative_prompt and expected.items() >= model.call.items()
    assert called_by_the_card(folder, model, monkeypatch) == expected
    assert called_by_the_page(folder, model) == expected


@every_model
def test_a_record_of_an_earlier_release_leaves_the_rest_to_the_architecture(model, tmp_path, monkeypatch):
    """Once only steps, guidance and size were written down."""
    expected, generation = evaluated(model)
    folder = published(tmp_path / "out", model, {name: generation[name] for name in ("steps", "guidance", "size")})
    assert called_by_the_card(folder, model, monkeypatch) == called_by_the_page(folder, model) == expected


@every_model
def test_a_visitors_negative_prompt_replaces_the_architectures(model, tmp_path):
    expected, generation = evaluated(model)
    folder = published(tmp_path / "out", model, generation)
    real = inspect.signature(getattr(diffusers, model.pipeline_class).__call__)
    if "negative_prompt" in real.parameters:
        assert called_by_the_page(folder, model, negative="rings") == expected | {"negative_prompt": "rings"}
    else:
        with pytest.raises(RequestError, match="takes no negative prompt"):
            called_by_the_page(folder, model, negative="rings")


@every_model
def test_a_strangers_repo_with_a_models_own_base_opens(model, tmp_path, a_strangers_repo):
    shown = a_strangers_repo(published(tmp_path / "out", model, evaluated(model)[1]))
    assert (shown.base, shown.architecture.title) == (model.base_repo, model.title)
    assert (shown.limits.steps, shown.limits.guidance) == (model.steps, model.guidance)


@pytest.mark.parametrize(
    "changes",
    [
        {"call": {"num_images_per_prompt": 1000}},
        {"guidance_argument": "num_images_per_prompt"},
        {"negative_prompt": "x" * 10_000},
        {"call": []},
        {"steps": "nine"},
    ],
    ids=str,
)
def test_a_strangers_record_adds_nothing_to_the_call(changes, tmp_path, a_strangers_repo):
    model = MODELS["Stable Diffusion XL"]
    with pytest.raises(FormatError):
        a_strangers_repo(published(tmp_path / "out", model, evaluated(model)[1] | changes))
