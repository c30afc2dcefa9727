"""Prints constraints that hold every direct dependency at the lowest version that pyproject.toml allows.

    python tools/lowest.py demo metrics > build/lowest.txt          # with the dependencies of these extras
    python tools/lowest.py demo metrics --except torch              # torch as in constraints.txt

A dependency without a minimum, or one that is not for this machine, has no line.
"""

import argparse
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def lowest(project: dict, extras: list[str]) -> dict[str, str]:
    """Name -> the lowest version, of the dependencies in a [project] table and of its extras."""
    listed = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    found = {}
    for requirement in map(Requirement, listed):
        here = requirement.marker is None or requirement.marker.evaluate()
        minimum = [rule.version for rule in requirement.specifier if rule.operator == ">="]
        if here and minimum:
            found[canonicalize_name(requirement.name)] = minimum[0]
    return found


def pinned(constraints: str) -> dict[str, str]:
    """Name -> version, of a constraints file."""
    lines = re.findall(r"^([\w.-]+)==(\S+)$", constraints, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in lines}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*")
    parser.add_argument("--except", dest="left_out", action="append", default=[])
    asked = parser.parse_args()
    versions = lowest(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"], asked.extras)
    instead = pinned((ROOT / "constraints.txt").read_text())
    versions |= {name: instead[name] for name in map(canonicalize_name, asked.left_out)}
    print("\n".join(f"{name}=={version}" for name, version in versions.items()))
