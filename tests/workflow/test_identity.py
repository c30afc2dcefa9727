"""What a step's identity covers: the code that the step uses, and nothing that it does not."""

import ast
import shutil
from pathlib import Path

import pytest

from hswq_hub import CalibrationSettings, EvaluationSettings, PublishPlan, PublishSettings, resolve
from hswq_hub.common import identity
from hswq_hub.common.identity import EVERYWHERE, PACKAGES, code_digest, meaning
from hswq_hub.workflow.stages import calibrate, evaluate, folder, quantize

SETTINGS = PublishSettings(calibration=CalibrationSettings(samples=1), evaluation=EvaluationSettings(pairs=1))
ROUNDING = {"search", "round", "measure", "write v1", "write v2"}
AFTER = {"evaluate", "folder"}
EVERY = {"calibrate", "naive"} | ROUNDING | AFTER


@pytest.fixture
def code(tmp_path, monkeypatch) -> dict[str, Path]:
    """A copy of the project's code, which is the one that is digested."""
    copies = {name: tmp_path / name for name in PACKAGES}
    for name, copy in copies.items():
        shutil.copytree(PACKAGES[name], copy, ignore=shutil.ignore_patterns("data", "__pycache__"))
    monkeypatch.setattr(identity, "PACKAGES", copies)
    return copies


def identities(command: str = "") -> dict[str, str]:
    """As a new process finds them."""
    meaning.cache_clear()
    plan = PublishPlan.of(resolve("demo"), SETTINGS, command=command)
    return {step.name: step.identity for step in plan.steps}


def add(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


@pytest.mark.parametrize(
    ("module", "changed"),
    [
        ("hswq_hub/cli/options.py", set()),
        ("hswq_hub/jobs/jobs.py", set()),
        ("hswq_hub/hub/upload.py", set()),
        ("hswq_hub/sources/civitai.py", set()),
        ("hswq_hub/workflow/publish.py", set()),
        ("hswq_hub/workflow/forecast.py", set()),
        ("hswq_hub/cards/card.py", {"folder"}),
        ("hswq_hub/evaluation/evaluate.py", AFTER),
        ("hswq_hub/workflow/stages/evaluate.py", AFTER),
        ("hswq_hub/quantization/gptq.py", EVERY - {"calibrate"}),
        ("hswq_hub/workflow/stages/calibrate.py", EVERY - {"naive"}),
        ("hswq_hub/calibration/calibrate.py", EVERY - {"naive"}),
        ("hswq_hub/generation/generate.py", EVERY - {"naive"}),
        ("hswq_hub/settings.py", EVERY),
        ("hswq_hub/common/files.py", EVERY),
        ("hswq_runtime/formats.py", EVERY),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_touching_code_changes_the_steps_that_use_it(code, module, changed):
    before = identities()
    assert before.keys() == EVERY
    package, _, rest = module.partition("/")
    add(code[package] / rest, "\nTOUCHED = True\n")
    after = identities()
    assert {name for name in before if before[name] != after[name]} == changed


def test_a_running_process_keeps_the_identity_of_the_code_that_it_runs(code):
    before = code_digest("hswq_hub.quantization")
    add(code["hswq_hub"] / "quantization/gptq.py", "\nTOUCHED = True\n")
    assert code_digest("hswq_hub.quantization") == before
    meaning.cache_clear()
    assert code_digest("hswq_hub.quantization") != before


def test_a_mended_typo_changes_nothing(code):
    before = identities()
    path = code["hswq_hub"] / "quantization/gptq.py"
    text = path.read_text()
    mended = "# A comment.\n\n" + text.replace('"""', '"""Mended: ', 1)
    path.write_text(mended + '\n\nNAME = ""\n"""What it is for."""\n')
    assert identities() != before, "a name was added"
    path.write_text(mended + '\n\n"""What nothing is for."""\n')
    assert identities() == before


def test_the_command_line_is_no_part_of_it():
    assert identities("hswq-hub publish demo") == identities("hswq-hub publish demo --device cpu")


def test_a_room_that_is_not_there_is_an_error():
    with pytest.raises(FileNotFoundError):
        code_digest("hswq_hub.kitchen")


def reachable(module: str) -> set[str]:
    """The modules of the hub that `module` imports, and those that these import, and so on."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = PACKAGES["hswq_hub"].joinpath(*name.split(".")[1:]).with_suffix(".py")
        if name in found or not path.is_file():
            continue
        found.add(name)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                above = name.split(".")[: -node.level]
                target = ".".join([*above, *([node.module] if node.module else [])])
                waiting += [target, *(f"{target}.{alias.name}" for alias in node.names)]
    return found


DATA = (
    *("hswq_hub.sources", "hswq_hub.hub", "hswq_hub.jobs"),
    *(f"hswq_hub.workflow.{name}" for name in ("steps", "forecast", "memory")),
)
"""Code whose outcome is in the identity itself, such as what a reference led to, that runs no step, or that only
foretells how long one takes."""


@pytest.mark.parametrize("stage", [calibrate, quantize, evaluate, folder], ids=lambda stage: stage.STAGE)
def test_all_code_that_a_stage_imports_is_covered(stage):
    """Another stage's module is an input's affair: the identity of that input covers it."""
    others = tuple(other.__name__ for other in (calibrate, quantize, evaluate, folder) if other is not stage)
    covered = (*stage.ROOMS, *EVERYWHERE, *DATA, *others)
    missing = {
        name
        for name in reachable(stage.__name__)
        if not any(name == room or name.startswith(f"{room}.") for room in covered)
    }
    assert missing == set()
