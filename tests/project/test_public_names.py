"""What the packages export: the same names at run time and to a type checker, without loading torch."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import hswq_hub
import hswq_runtime

PACKAGES = (hswq_runtime, hswq_hub)
NAMES = [(package, name) for package in PACKAGES for name in package.__all__]
each_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)


def init(package: ModuleType) -> Path:
    return Path(str(package.__file__))


def declared(package: ModuleType) -> dict[str, str]:
    """Name -> the module that a type checker finds it in."""
    blocks = [node for node in ast.parse(init(package).read_text()).body if isinstance(node, ast.If)]
    (block,) = [node for node in blocks if ast.unparse(node.test) == "TYPE_CHECKING"]
    return {name.asname or name.name: node.module for node in block.body for name in node.names}


@each_package
def test_the_list_is_what_a_type_checker_sees(package):
    assert sorted(declared(package)) == package.__all__ == dir(package)


@pytest.mark.parametrize(("package", "name"), NAMES, ids=lambda value: getattr(value, "__name__", value))
def test_every_public_name_is_that_of_its_module(package, name):
    home = importlib.import_module(f"{package.__name__}.{declared(package)[name]}")
    assert getattr(package, name) is getattr(home, name)


def test_every_error_of_the_runtime_is_public():
    from hswq_runtime import errors

    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert classes <= {*hswq_runtime.__all__}


@each_package
def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = package.nonsense


@each_package
def test_a_type_checker_may_read_the_annotations(package):
    assert (init(package).parent / "py.typed").is_file()


@each_package
def test_importing_a_package_loads_nothing_heavy(package):
    heavy = {"torch", "diffusers", "transformers", "peft", "huggingface_hub"}
    code = f"import sys, {package.__name__}; print(*{heavy} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.split() == []


def test_readme_and_pages_use_nothing_but_public_names():
    """Of the hub and the runtime, in prose and in snippets."""
    root = init(hswq_hub).parents[1]
    pages = {*(root / "docs").glob("*.md")} - {root / "docs/cli.md"}  # it says what it is made from
    text = "\n".join(path.read_text() for path in (root / "README.md", *pages))
    for package in PACKAGES:
        used = set(re.findall(rf"\b{package.__name__}\.(\w+)", text))
        used |= {
            name.strip()
            for names in re.findall(rf"from {package.__name__} import ([^\n]+)", text)
            for name in names.split(",")
        }
        assert used <= {*package.__all__}
        assert not re.search(rf"from {package.__name__}\.", text)
