"""The rules of the house that a reader cannot see: import directions, one owner for each fact, cheap help."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hswq_runtime.architectures import ARCHITECTURES

ROOT = Path(__file__).parents[2]
PACKAGES = {name: ROOT / folder for name, folder in {
    "hswq_runtime": "runtime/hswq_runtime",
    "hswq_hub": "hswq_hub",
    "spaces_app": "spaces_app",
}.items()}  # fmt: skip
MAY_IMPORT = {
    "hswq_runtime": {"hswq_runtime"},
    "hswq_hub": {"hswq_runtime", "hswq_hub"},
    "spaces_app": {"hswq_runtime", "hswq_hub", "spaces_app"},
}
ROOMS = {
    "common": "",
    "sources": "common",
    "generation": "common",
    "calibration": "common sources generation",
    "quantization": "common sources generation calibration",
    "evaluation": "common sources generation calibration quantization",
    "cards": "common sources generation quantization evaluation",
    "hub": "common sources evaluation cards",
    "workflow": "common sources generation calibration quantization evaluation cards hub",
    "jobs": "common sources hub workflow",
    "cli": "common sources calibration evaluation cards hub workflow jobs",
}
"""Each room of the hub, bottom floor first, and the rooms that it may import."""
MODULES_IN_A_ROOM, LINES_IN_A_FILE = 12, 400
SOURCES = [(package, path) for package, folder in PACKAGES.items() for path in sorted(folder.rglob("*.py"))]


def name_of(package: str, path: Path) -> str:
    """Dotted name of a module."""
    parts = [package, *path.relative_to(PACKAGES[package]).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(package, path): path for package, path in SOURCES}


def imported(path: Path, package: str):
    """Absolute names of the modules that a file imports."""
    parts = [package, *path.relative_to(PACKAGES[package]).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ({module} | {f"{module}.{alias.name}" for alias in node.names})


def room_of(module: str) -> str | None:
    """The room of the hub that a module is in."""
    top, *rest = module.split(".")
    return rest[0] if top == "hswq_hub" and rest and rest[0] in ROOMS else None


@pytest.mark.parametrize(("package", "path"), SOURCES, ids=[name_of(*source) for source in SOURCES])
def test_imports_point_one_way(package, path):
    room = room_of(name_of(package, path))
    allowed = MAY_IMPORT[package] | ({"spaces_app"} if room == "cli" else set())
    for module in imported(path, package):
        top = module.split(".")[0]
        assert top not in PACKAGES or top in allowed, f"{package} must not import {module}"
        assert not (package == "hswq_runtime" and top in {"click", "gradio"})
        if path.name != "__main__.py" and room != "cli":
            assert not module.startswith("hswq_hub.cli"), "the command line is the roof: nothing imports it"
        if room is not None and (other := room_of(module)) not in (None, room):
            assert other in ROOMS[room].split(), f"{room} is below {other}"


def test_rooms_are_listed_from_the_bottom_up():
    floors = list(ROOMS)
    assert {path.name for path in PACKAGES["hswq_hub"].iterdir() if path.is_dir() and path.name[0] != "_"} == {
        *floors,
        "data",
    }
    for floor, below in ROOMS.items():
        assert all(floors.index(room) < floors.index(floor) for room in below.split())


def test_no_imports_go_round_in_a_circle():
    arrows = {
        name: {module for module in imported(path, name.split(".")[0]) if NAMES.get(module, path) != path}
        for name, path in NAMES.items()
        if path.name != "__init__.py"
    }
    arrows = {name: found & arrows.keys() for name, found in arrows.items()}
    while leaves := {name for name, found in arrows.items() if not found}:
        arrows = {name: found - leaves for name, found in arrows.items() if name not in leaves}
    assert arrows == {}


@pytest.mark.parametrize("room", sorted({path.parent for _, path in SOURCES}), ids=lambda room: room.name)
def test_rooms_are_small(room):
    assert len([path for path in room.glob("*.py") if path.name != "__init__.py"]) <= MODULES_IN_A_ROOM


def test_files_are_small():
    files = [path for _, path in SOURCES]
    files += [path for folder in ("tests", "benchmarks", "tools") for path in (ROOT / folder).rglob("*.py")]
    assert {path.name: n for path in files if (n := len(path.read_text().splitlines())) > LINES_IN_A_FILE} == {}


@pytest.mark.parametrize("spelling", ["comfy_quant", "weight_scale", '".scale"', "hswq_format", "F8_E4M3"])
def test_the_format_is_spelled_in_one_module(spelling):
    users = {path.name for _, path in SOURCES if spelling in path.read_text()}
    assert users == {"formats.py"}
    assert not {path.name for _, path in SOURCES if '}.scale"' in path.read_text()}


def test_no_code_asks_which_architecture_it_has():
    rows = [model for row in ARCHITECTURES.values() for model in row.models]
    names = {name for row in rows for name in (row.name, row.model_class, row.pipeline_class, row.base_repo)}
    for _, path in SOURCES:
        if path.parent.name != "architectures":
            texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            assert not texts & names, path


def test_help_needs_neither_torch_nor_diffusers():
    code = (
        "import sys; from click.testing import CliRunner; from hswq_hub.cli.main import main\n"
        "for command in ([], *([name] for name in main.commands)):\n"
        "    result = CliRunner().invoke(main, [*command, '--help']); assert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'skimage', 'gradio', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_picture_in_architecture_is_the_tree():
    """Every module and every room, each below its folder, and nothing that is not there."""
    picture = (ROOT / "ARCHITECTURE.md").read_text().split("```")[1]
    drawn, above = set(), []
    for line in picture.splitlines():
        if match := re.match(r"( *)([\w/]+(?:/|\.py))(?: |$)", line):
            depth, name = len(match[1]) // 2, match[2]
            above[depth:] = [name.rstrip("/")]
            drawn.add("/".join(above))
    for package, folder in PACKAGES.items():
        there = {path for found, path in SOURCES if found == package and not path.name.startswith("__")}
        there |= {path for path in folder.rglob("*") if (path / "__init__.py").is_file()} | {folder}
        names = {str(path.relative_to(ROOT)) for path in there}
        assert {name for name in drawn if name.startswith(str(folder.relative_to(ROOT)))} == names


def test_every_room_says_what_comes_in_and_what_goes_out_in_a_sentence():
    for room in ROOMS:
        module = ast.parse((PACKAGES["hswq_hub"] / room / "__init__.py").read_text())
        said = ast.get_docstring(module) or ""
        assert said.endswith(".") and "\n\n" not in said and len(module.body) == 1, room


def test_every_file_has_its_idea_in_a_docstring():
    assert [str(path) for _, path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_licence_in_the_package_is_that_of_the_repository():
    assert (ROOT / "hswq_hub/cards/licences/apache-2.0.txt").read_text() == (ROOT / "LICENSE").read_text()
