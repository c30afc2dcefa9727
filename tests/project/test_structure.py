"""The rules of the house that a reader cannot see: import directions, one owner for each fact, cheap help."""

import ast
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
ROOF = "cli.py"
SOURCES = [(package, path) for package, folder in PACKAGES.items() for path in sorted(folder.rglob("*.py"))]


def imported(path: Path, package: str):
    """Absolute names of the modules that a file imports."""
    parts = [package, *path.relative_to(PACKAGES[package]).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("package", "path"), SOURCES, ids=lambda value: getattr(value, "name", value))
def test_imports_point_one_way(package, path):
    allowed = MAY_IMPORT[package] | ({"spaces_app"} if (package, path.name) == ("hswq_hub", ROOF) else set())
    for module in imported(path, package):
        top = module.split(".")[0]
        assert top not in PACKAGES or top in allowed, f"{package} must not import {module}"
        assert not (package == "hswq_runtime" and top in {"click", "gradio"})
        if path.name != "__main__.py":
            assert not module.startswith("hswq_hub.cli.main"), "the command line is the roof: nothing imports it"


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


def test_readme_names_every_command():
    from hswq_hub.cli.main import main

    text = (ROOT / "README.md").read_text()
    assert [name for name in main.commands if f"hswq-hub {name}" not in text] == []


def test_every_file_has_its_idea_in_a_docstring():
    assert [str(path) for _, path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_licence_in_the_package_is_that_of_the_repository():
    assert (ROOT / "hswq_hub/licences/apache-2.0.txt").read_text() == (ROOT / "LICENSE").read_text()
