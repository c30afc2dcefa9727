"""The lists of prompts that ship with the package, and which of them a model's users write like."""

import re
from collections.abc import Iterable
from importlib.resources import files

from hswq_runtime.architectures import Architecture

from .prompts import Prompts

GENERAL, DEMO_CAPTIONS = "general", "demo"
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def shipped(style: str) -> Prompts:
    """The list of a style: `GENERAL`, `DEMO_CAPTIONS`, or one that an architecture's row names."""
    data = files("hswq_hub.data")
    return Prompts.read(data / "demo_model" / "prompts" if style == DEMO_CAPTIONS else data / "prompts" / style)


def origin_of(style: str) -> str:
    """Where the prompts of a style are from, as a phrase."""
    return "the demo model's own captions" if style == DEMO_CAPTIONS else f"the list `{style}`"


def style_of(architecture: Architecture, names: Iterable[str]) -> str:
    """The list for a model of `architecture` that has these names, or was made from models that have.

    A family is named by words of its own: "waiIllustriousSDXL" and "NoobAI-XL" are, "ponytail" is not. What comes first
    in `names` decides.
    """
    for name in names:
        words = [word.casefold() for word in _WORD.findall(name)]
        joined = {"".join(words[i:j]).removesuffix("xl") for i in range(len(words)) for j in range(i + 1, i + 4)}
        for family, style in architecture.prompt_styles.items():
            if family in joined:
                return style
    return GENERAL
