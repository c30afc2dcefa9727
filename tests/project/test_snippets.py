"""What README and the pages show in Python and YAML does what they say."""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from support import tiny

import hswq_hub
from hswq_hub.cli.publish_all import read_entry
from hswq_hub.jobs.batch import read_list
from hswq_runtime import HSWQLinear

ROOT = Path(__file__).parents[2]


def snippets(document: str, language: str = "python") -> list[str]:
    """The blocks of a document, in its order."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_these_are_all():
    """The page's client is run in tests/spaces_app/test_api.py."""
    documents = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
    shown = {document: found for document in documents if (found := len(snippets(document)))}
    assert shown == {"README.md": 1, "docs/diffusers.md": 5, "docs/python.md": 1, "docs/spaces.md": 1}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder in which what the snippets name exists."""
    (tmp_path / "hswq-published").mkdir()
    tiny.published_demo(tmp_path / "hswq-published/demo-hswq")
    lora = {"A.weight": torch.randn(4, 192), "B.weight": torch.randn(192, 4)}
    save_file(
        {f"transformer.layers.0.attention.to_q.lora_{k}": v for k, v in lora.items()}, tmp_path / "style.safetensors"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", _without_a_compiler(torch.compile))
    return tmp_path


def _without_a_compiler(compile):
    """The graphs are made and checked; that C++ is compiled from them is torch's own affair, and takes a minute."""
    return lambda *arguments, **options: compile(*arguments, backend="eager", **options)


def test_what_people_do_with_a_published_model_runs_one_after_the_other(elsewhere):
    names = {}
    load, lora, memory, compiled, save = snippets("docs/diffusers.md")
    assert snippets("README.md") == [load]
    exec(load, names)
    assert names["image"].size == (128, 128)
    exec(lora, names)
    assert names["pipe"].get_active_adapters() == ["style"]
    exec(memory, names)
    small = {"height": 32, "width": 32, "num_inference_steps": 1, "guidance_scale": 0.0}
    assert names["pipe"]("a ring", **small).images
    exec(compiled, names)
    assert names["pipe"]("a ring", **small).images
    exec(save, names)
    assert (elsewhere / "my-pipeline/transformer/config.json").is_file()
    assert not any(isinstance(module, HSWQLinear) for module in names["pipe"].transformer.modules())


def test_the_hubs_snippet_calls_what_is_there(monkeypatch):
    """By the functions' own signatures; what they do takes minutes, and has tests of its own."""
    called = []

    def stand_in(name, result):
        signature = inspect.signature(getattr(hswq_hub, name))

        def call(*arguments, **options):
            called.append((name, signature.bind(*arguments, **options).arguments))
            return result

        return call

    measured = SimpleNamespace(variants=[SimpleNamespace(ssim_mean=1.0)])
    monkeypatch.setattr(hswq_hub, "resolve", stand_in("resolve", "a source"))
    monkeypatch.setattr(hswq_hub, "publish", stand_in("publish", SimpleNamespace(folder="x", evaluation=measured)))
    exec(*snippets("docs/python.md"), {})
    (first, given), (second, options) = called
    assert (first, second) == ("resolve", "publish") and given["base"] == "Tongyi-MAI/Z-Image-Turbo"
    assert options["source"] == "a source" and options["settings"].recipe == hswq_hub.recipe("hswq")


def test_the_list_of_models_is_one_that_is_read(tmp_path):
    (path := tmp_path / "models.yaml").write_text(*snippets("docs/jobs.md", "yaml"))
    assert [entry.words for entry in read_list(path, read_entry)] == [
        ("demo",),
        ("civitai:2242173@2774410", "--repo", "alice/my-model-hswq", "--private"),
    ]
