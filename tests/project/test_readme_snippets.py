"""The five things people do with a published model, as the README shows them, one after the other."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import tiny

from hswq_runtime import HSWQLinear

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "README.md").read_text().split("## Use a published model")[1].split("\n## ")[0]
SNIPPETS = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)


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


def test_the_five_snippets_run_one_after_the_other(elsewhere):
    names = {}
    load, lora, memory, compiled, save = SNIPPETS
    exec(load, names)
    assert names["image"].size == (64, 64)
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
