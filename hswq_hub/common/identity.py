"""What a product depends on besides its inputs and settings: the code that makes it, the libraries, the hardware.

Code is digested by rooms: a step depends on the rooms that it is made in, on what every room uses, and on the runtime.
Comments, docstrings and layout do not count, so that a mended typo throws nothing away.
"""

import ast
import hashlib
import json
import platform
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

import hswq_hub
import hswq_runtime

from .. import __version__
from .hardware import describe

PACKAGES = {package.__name__: Path(str(package.__file__)).parent for package in (hswq_hub, hswq_runtime)}
"""Where the code is that is digested, by the name of the package."""
EVERYWHERE = ("hswq_hub.common", "hswq_hub.settings", "hswq_runtime")
"""Code that every product depends on."""
_LIBRARIES = ("torch", "diffusers", "transformers")
_DIGITS = 12


def fingerprint(made_from: object) -> str:
    """Twelve hex digits of the SHA-256 of `made_from` as canonical JSON."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def code_digest(*rooms: str) -> str:
    """Twelve hex digits of the code of `rooms`, packages or modules by their full names, and of `EVERYWHERE`.

    Raises:
        FileNotFoundError: there is no such room.
    """
    digest = hashlib.sha256()
    for room in sorted({*rooms, *EVERYWHERE}):
        for name, path in _files(room):
            digest.update(f"{name}\n{meaning(path)}\n".encode())
    return digest.hexdigest()[:_DIGITS]


def environment_fingerprint(device: str, *rooms: str) -> list[object]:
    """What a computed product depends on besides its inputs: the code of `rooms`, the libraries, the hardware."""
    return [code_digest(*rooms), libraries(), describe(torch.device(device))]


def libraries() -> dict[str, str]:
    """Versions of the libraries and of Python that a computed product depends on."""
    return {name: version(name) for name in _LIBRARIES} | {"python": platform.python_version()}


def versions() -> dict[str, str]:
    """The same and this tool's version, for a record."""
    return {"hswq-hub": __version__, **libraries()}


def _files(room: str) -> Iterator[tuple[str, Path]]:
    """Every module of a room, with a name that does not depend on where the package is installed."""
    package, *parts = room.split(".")
    place = PACKAGES[package].joinpath(*parts)
    if not place.is_dir():
        yield room, place.with_suffix(".py")
        return
    for path in sorted(place.rglob("*.py")):
        yield f"{room}/{path.relative_to(place).as_posix()}", path


@cache
def meaning(path: Path) -> str:
    """The syntax tree of a module without docstrings, as text. A process reads a file once: it does not run what is
    changed afterwards.
    """
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_text(part)]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    """Whether it is a docstring, of a module, class or function or of the name above it."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
