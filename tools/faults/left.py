"""What a run left, in words that are the same every time."""

import re

from .bench import Bench
from .place import Disk
from .promises import IN_TMP
from .steps import PLANNED

_STAY = (".lock", ".locks")
"""Hidden names that stay."""


def finished(bench: Bench, owner: int) -> list[str]:
    """The steps that `status` calls done."""
    run = bench.start("status", "status", owner=owner)
    run.wait()
    lines = run.said.read_text().splitlines() if run.said.exists() else []
    return [name for name in PLANNED if any(re.match(rf"{name}\s+done\b", line) for line in lines)]


def as_text(done: list[str]) -> str:
    """Which steps are done, in as few words as that takes."""
    if not done:
        return "no step"
    in_order = len(done) > 1 and done == list(PLANNED[: len(done)])
    return f"{done[0]} to {done[-1]}" if in_order else ", ".join(done)


def remains(disk: Disk) -> list[str]:
    """What is there besides finished products: kinds of it."""
    found = set()
    for path in sorted(disk.folder.rglob("*")):
        inside = path.relative_to(disk.folder).parts
        if path.name.endswith(".pieces"):
            found.add("pieces of a step")
        elif inside[0] == "tmp" and len(inside) > 1:
            found.add(IN_TMP)
        elif path.match("home/cache/partial/*") and path.suffix not in (".lock", ".json"):
            found.add("half of the download")
        elif path.name.endswith(".incomplete"):
            found.add("half of a component")
        elif _is_hidden(path.name) and not any(map(_is_hidden, inside[:-1])) and inside[0] in ("home", "published"):
            found.add("a temporary folder" if path.is_dir() else "a temporary file")
    return sorted(found)


def _is_hidden(name: str) -> bool:
    """Whether it is the name of something that is not there yet."""
    return name.startswith(".") and name not in _STAY


def plain(text: str, bench: Bench) -> str:
    """A message without what differs from run to run."""
    text = text.replace(str(bench.disk), "")
    text = re.sub(r"http://(127\.0\.0\.1|localhost):\d+", "http://HOST", text)
    text = re.sub(r"127\.0\.0\.1|localhost", "HOST", text)
    text = re.sub(r"\b[0-9a-f]{10,64}\b", "…", text)
    return re.sub(r"(/\.[^/ ]+)\.\w{8}/", r"\1/", text)
