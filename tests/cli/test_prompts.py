"""`--prompts` and `--evaluation-prompts`, from the command line to the published folder."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import tiny_unet
from support.civitai_server import MODEL, TOKEN, VERSION, CivitaiServer

from hswq_hub.cli.main import main
from hswq_hub.cli.publish_all import read_entry
from hswq_hub.settings import PromptSettings
from hswq_hub.sources.find import resolve
from hswq_hub.sources.prompts.prompts import summary

QUICK = ("--recipe", "hswq", "--samples", 2, "--steps", 1, "--pairs", 2, "--picture-steps", 1, "--size", 32)
CAPTIONS = "the demo model's own captions"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """Prompts to calibrate with and to measure on, in a folder whose name nobody else is to see."""
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "mine.txt").write_text("a red circle\na green *cross*\n")
    (folder / "held-out.txt").write_text("a blue ring | wide\n")
    return folder / "mine.txt", folder / "held-out.txt"


def test_files_are_used_said_and_recorded(run, files, tmp_path):
    words = ("--prompts", files[0], "--evaluation-prompts", files[1])
    plan = run("publish", "demo", *QUICK, *words, "--dry-run")
    assert "  prompts     2 of the file mine.txt\n  measured on 1 of the file held-out.txt\n" in plan.stdout
    result = run("publish", "demo", *QUICK, *words, "--folder", "out")
    assert result.exit_code == 0, result.output
    assert "prompts: 2 of the file mine.txt\nmeasured on: 1 of the file held-out.txt\n" in result.stderr
    record = json.loads((tmp_path / "out/hswq.json").read_text())
    assert record["prompts"] == {
        "calibration": {
            **summary(["a red circle", "a green *cross*"]),
            "from": [{"count": 2, "origin": "the file mine.txt"}],
        },
        "evaluation": {**summary(["a blue ring | wide"]), "from": [{"count": 1, "origin": "the file held-out.txt"}]},
        "negative": None,
    }
    assert record["calibration"]["prompts"] == summary(["a red circle", "a green *cross*"])
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert {pair["prompt"] for pair in metrics["variants"][0]["pairs"]} == {"a blue ring | wide"}
    card = (tmp_path / "out/README.md").read_text()
    assert "--prompts mine.txt --evaluation-prompts held-out.txt" in card
    assert "Calibration prompts: 2 of the file mine.txt." in card and "They are 1 of the file held-out.txt." in card
    assert r"*a blue ring \| wide* (seed" in card
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and b"secret" in path.read_bytes()]
    states = run("status", "demo", *QUICK, *words, "--folder", "out").stdout
    assert "all is done" in states and "prompts: 2 of the file mine.txt" in states
    files[0].write_text("another\n")
    assert re.search(r"^calibrate +missing", run("status", "demo", *QUICK, *words).stdout, re.MULTILINE)


def test_status_of_what_was_worked_on_chooses_anew(run, files, tmp_path):
    shutil.copyfile(resolve("demo").path, tmp_path / "model.safetensors")
    words = ("model.safetensors", "--base", resolve("demo").base, *QUICK)
    assert run("publish", *words, "--prompts", files[0]).exit_code == 0
    given, default = run("status", *words, "--prompts", files[0]).stdout, run("status", *words).stdout
    assert "all is done" in given and "prompts: 2 of the file mine.txt" in given
    assert "prompts: 128 of the list `general`" in default and re.search("^calibrate +missing", default, re.MULTILINE)


def test_what_is_left_out_is_said(run, files):
    shared = resolve("demo").prompts.evaluation[0]
    files[0].write_text(f"a red circle\n{shared}\n")
    result = run("publish", "demo", "--prompts", files[0], "--dry-run")
    assert f"  measured on 15 of {CAPTIONS}\n" in result.stdout
    assert "  left out    1 of the prompts to measure on, which mine.txt calibrates with\n" in result.stdout


def test_steps_alone_take_and_say_them(run, files, tmp_path):
    quick = ("--steps", 1, "--size", 32, "--device", "cpu")
    result = run("calibrate", "demo", "--samples", 1, *quick, "--prompts", files[0], "-o", "s.safetensors")
    assert result.exit_code == 0 and "prompts: 2 of the file mine.txt" in result.stderr, result.output
    made_by = json.loads((tmp_path / "s.json").read_text())["made_by"]
    assert made_by["prompts"] == summary(["a red circle", "a green *cross*"])
    result = run("quantize", "demo", "--calibration", "s.safetensors", "--recipe", "hswq", "--prompts", files[0],
                 "--format", "v1", "-o", "out")  # fmt: skip
    assert result.exit_code == 0, result.output
    measured = ("evaluate", "demo", "out/demo-hswq-v1.safetensors", "--pairs", 1, *quick, "-o", "m.json")
    result = run(*measured, "--evaluation-prompts", files[1])
    assert result.exit_code == 0 and "measured on: 1 of the file held-out.txt" in result.stderr, result.output
    assert json.loads((tmp_path / "m.json").read_text())["variants"][0]["pairs"][0]["prompt"] == "a blue ring | wide"


@pytest.mark.parametrize("command", ["publish", "status", "calibrate", "evaluate"])
@pytest.mark.parametrize("option", ["--prompts", "--evaluation-prompts"])
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(run, command, option):
    more = {"calibrate": ("-o", "s.safetensors"), "evaluate": (resolve("demo").path,)}.get(command, ())
    result = run(command, "demo", *more, option, "nowhere.txt")
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1
    assert "nowhere.txt cannot be read" in result.stderr and "one prompt a line" in result.stderr


def test_a_prompt_in_both_files_is_refused(run, files):
    files[1].write_text("a red circle\n")
    result = run("publish", "demo", "--prompts", files[0], "--evaluation-prompts", files[1])
    assert result.exit_code == 2 and "'a red circle' is in both mine.txt and held-out.txt" in result.stderr


def test_an_entry_of_a_list_names_them(files):
    from hswq_hub.cli.publish_all import _request_of

    entry = read_entry({"reference": "demo", "prompts": str(files[0]), "evaluation_prompts": str(files[1])})
    assert entry.words == ("demo", "--prompts", str(files[0]), "--evaluation-prompts", str(files[1]))
    assert _request_of(entry.values).source.prompts == PromptSettings(*files)


def test_a_page_is_used_said_and_recorded_and_writes_nothing_else_into_the_card(run, tmp_path, monkeypatch):
    monkeypatch.setenv("CIVITAI_API_TOKEN", TOKEN)
    monkeypatch.setitem(sys.modules, "keyring", None)
    path, base = tiny_unet.full("sdxl", tmp_path)
    meta = {"prompt": "1girl, [x](http://evil.example) {}, <b>bold</b>", "negativePrompt": "*bad* | anatomy"}
    with CivitaiServer(path.read_bytes()) as server:
        server.version |= {"baseModel": "Illustrious", "images": [
            {"nsfwLevel": 1, "meta": meta | {"prompt": meta["prompt"].format(i)}} for i in range(8)
        ]}  # fmt: skip
        words = ("publish", f"civitai:{MODEL}@{VERSION}", "--civitai-endpoint", server.url, "--base", base, *QUICK)
        plan = run(*words, "--dry-run").stdout
        result = run(*words, "--folder", "out")
    assert "  prompts     6 of the model's own page on Civitai, 10 of the list `tags`\n" in plan
    assert "  measured on 2 of the model's own page on Civitai, 14 of the list `tags`\n" in plan
    assert "  negative    '*bad* | anatomy', the most common one of the model's own page on Civitai\n" in plan
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out/hswq.json").read_text())
    assert record["prompts"]["negative"] == record["calibration"]["generation"]["negative_prompt"] == "*bad* | anatomy"
    card = (tmp_path / "out/README.md").read_text()
    assert r"6 of the model's own page on Civitai, 10 of the list \`tags\`; negative prompt of all pictures:" in card
    assert r"*\*bad\* \| anatomy*." in card
    body = card.split("---\n", 2)[2].replace("```python" + card.split("```python")[1].split("```")[0], "")
    assert "<b>" not in body and "](http://evil.example" not in body
