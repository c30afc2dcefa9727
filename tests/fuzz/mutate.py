"""Valid documents made invalid by chance: structure, types, numbers, names, and their text."""

import copy
import json
import random
from typing import Any

NAMES = (
    "", ".", "..", "../../out", "/etc/passwd", "C:\\x", "a/../../b", "%2e%2e%2fout", "__metadata__", ".weight",
    "\x00", "\x1b]0;title\x07", "\u202e\u200b", "\ud800", "a" * 5000, "🦊" * 400, "<img src=x onerror=alert(1)>",
    "`|\\*_[]()", "{{ x }}", "-o", "\n---\n# b", "9" * 5000, "1e999", "NaN", "null", " ", "https://evil.example/x",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0, 1e308, float("inf"),
    float("-inf"), float("nan"), [], {}, [[]], [{}], {"a": 1}, [0, 0], [10**9] * 3, list(range(2000)), "",
)  # fmt: skip
TEXTS = ("[" * 100_000, '{"a":' * 100_000, "", "null", "[]", "0", '"x"', "NaN", "\ufeff{}", "9" * 10_000)


def name(chance: random.Random) -> str:
    """An odd name."""
    return chance.choice(NAMES)


def value(chance: random.Random) -> Any:
    """Anything that JSON can hold."""
    return copy.deepcopy(chance.choice(VALUES)) if chance.random() < 0.7 else name(chance)


def word(chance: random.Random, text: str) -> str:
    """A text with something done to it."""
    at, other = chance.randrange(len(text) + 1), chance.randrange(len(text) + 1)
    begin, end = min(at, other), max(at, other)
    return chance.choice(
        [
            text[:at] + name(chance) + text[at:],
            text[:at],
            text[at:],
            text[:begin] + text[end:],
            text[:end] + text[begin:],
            text.swapcase(),
            text[:at] + chr(chance.randrange(0x300)) + text[at:],
            text[:at] + text[at:].replace(chance.choice("./:@-_0123"), chance.choice("./:@-_0123 ")),
        ]
    )


def _changed(chance: random.Random, found: Any) -> Any:
    """One value in place of another."""
    kind = chance.random()
    if isinstance(found, str) and kind < 0.4:
        return word(chance, found)
    if isinstance(found, (int, float)) and not isinstance(found, bool) and kind < 0.5:
        return chance.choice([found + 1, found - 1, -found, found * 2, found / 2 if abs(found) < 1e300 else 0, [found]])
    if isinstance(found, (list, dict)) and kind < 0.2:
        return [found]
    if kind > 0.97:
        deep: Any = found
        for _ in range(chance.choice([3, 50, 200])):
            deep = [deep]
        return deep
    return value(chance)


def mutated(chance: random.Random, document: Any) -> Any:
    """A copy with one to four changes, each at a place of any depth."""
    found = json.loads(json.dumps(document))
    for _ in range(chance.randint(1, 4)):
        found = _once(chance, found)
    return found


def _once(chance: random.Random, document: Any) -> Any:
    above, key, here = None, None, document
    while isinstance(here, (dict, list)) and here and chance.random() < 0.85:
        above, key = here, chance.choice(list(here)) if isinstance(here, dict) else chance.randrange(len(here))
        here = above[key]
    if above is None:
        return document if chance.random() < 0.95 else _changed(chance, document)
    kind = chance.random()
    if kind < 0.6:
        above[key] = _changed(chance, here)
    elif kind < 0.75:
        del above[key]
    elif isinstance(above, list):
        above.insert(chance.randrange(len(above) + 1), copy.deepcopy(here))
    else:
        above[name(chance) if kind < 0.85 else word(chance, str(key))] = copy.deepcopy(here)
        if kind < 0.92:
            above.pop(key, None)
    return document


def text(chance: random.Random, document: Any) -> str:
    """A document as JSON, now and then damaged as text: cut, keys twice, nested without end."""
    said = json.dumps(document)
    kind = chance.random()
    if kind < 0.8:
        return said
    if kind < 0.85:
        return chance.choice(TEXTS)
    at = chance.randrange(len(said) + 1)
    if kind < 0.9:
        return said[:at]
    if kind < 0.95 and said.startswith("{") and len(said) > 2:
        return said[:-1] + "," + said[1:]
    return said[:at] + chance.choice(['"', "{", "}", ",", "\\", "\x00", "1e999", "\\ud800"]) + said[at:]
