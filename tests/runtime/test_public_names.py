"""What `hswq_runtime` exports: the same names at run time and to a type checker, without loading torch."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import hswq_runtime

INIT = Path(hswq_runtime.__file__)


def declared() -> dict[str, str]:
    """Name -> the module that a type checker finds it in."""
    (block,) = [node for node in ast.parse(INIT.read_text()).body if isinstance(node, ast.If) and not is_negated(node)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    return {name.asname or name.name: node.module for node in block.body for name in node.names}


def is_negated(node: ast.If) -> bool:
    return isinstance(node.test, ast.UnaryOp)


def test_the_list_is_what_a_type_checker_sees():
    assert sorted(declared()) == hswq_runtime.__all__ == dir(hswq_runtime)


@pytest.mark.parametrize("name", hswq_runtime.__all__)
def test_every_public_name_is_that_of_its_module(name):
    home = importlib.import_module(f"hswq_runtime.{declared()[name]}")
    assert getattr(hswq_runtime, name) is getattr(home, name)


def test_every_error_that_users_catch_is_public():
    from hswq_runtime import errors

    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert classes <= {*hswq_runtime.__all__}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = hswq_runtime.nonsense


def test_a_type_checker_may_read_the_annotations():
    assert (INIT.parent / "py.typed").is_file()


def test_importing_the_package_loads_neither_torch_nor_diffusers():
    code = "import sys, hswq_runtime; print(*{'torch', 'diffusers', 'transformers', 'peft'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.split() == []
