"""Prompts that strangers wrote for a WebUI, as diffusers' pipelines should get them.

A pipeline of diffusers hands a prompt to the tokenizer as it is. It knows neither A1111's `<lora:name:0.8>` nor its
emphasis, `(word:1.2)`, `((word))` and `[word]`, nor `BREAK`, nor its escapes `\\(` and `\\)`: their characters would
be tokens of the prompt. So networks and `BREAK` are taken out, of emphasis the words stay, and an escaped bracket is a
bracket.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ...common.text import plain
from .given import LONGEST_PROMPT

MOST_EXAMPLES = 64
_NETWORK = re.compile(r"<\w+:[^<>]*>")
_BREAK = re.compile(r"\bBREAK\b")
_WEIGHT = re.compile(r"(?<!\\):\s*[-+]?\d*\.?\d+\s*(?=[)\]])")
_BRACKET = re.compile(r"(?<!\\)[()\[\]]")
_ESCAPE = re.compile(r"\\([()\[\]\\])")
_GAPS = re.compile(r"\s*,(?:\s*,)*")


@dataclass(frozen=True)
class Examples:
    """What a model's page shows pictures with. negative: the most common negative prompt. page: a phrase for it."""

    prompts: tuple[str, ...] = ()
    negative: str | None = None
    page: str = ""

    @classmethod
    def of(cls, prompts: Iterable[object], negatives: Iterable[object], page: str) -> "Examples":
        """From what a host lists, in its order, each prompt once; whatever is no text is left out."""
        found: dict[str, None] = {}
        for prompt in map(clean, prompts):
            if prompt is not None and len(found) < MOST_EXAMPLES:
                found[prompt] = None
        counted = Counter(negative for negative in map(clean, negatives) if negative is not None)
        common = counted.most_common(1)
        return cls(tuple(found), common[0][0] if common else None, page)


def clean(text: object) -> str | None:
    """A prompt on one line, without control characters, with nothing in it that only a WebUI understands.

    None if no letter or digit is left.
    """
    said = plain(text, LONGEST_PROMPT)
    if said is None:
        return None
    said = _ESCAPE.sub(r"\1", _BRACKET.sub("", _WEIGHT.sub("", _BREAK.sub(",", _NETWORK.sub("", said)))))
    said = " ".join(_GAPS.sub(",", said).split()).strip(", ")
    return said if any(map(str.isalnum, said)) else None
