"""A visitor's request, validated before anything is fetched or computed.

No field is trusted: the page sends them, but so may any program.
"""

import math
from dataclasses import dataclass

from hswq_runtime.errors import HSWQError
from hswq_runtime.text import written

PROMPT_LENGTH = 600
STEPS = 60
GUIDANCE = 20.0
SEED = 2**32 - 1
FIRST_SEED = 1
SIZE_STEP = 16


class RequestError(HSWQError):
    """An invalid request; its message is shown on the page."""


@dataclass(frozen=True)
class Limits:
    """A model's variants and default settings. Sizes: pixels a side, multiples of `SIZE_STEP`. more: variants that are
    compared only if a visitor asks for them."""

    variants: tuple[str, ...]
    steps: int
    guidance: float
    size: int
    more: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """All variants that may be asked for."""
        return self.variants + self.more

    @property
    def smallest(self) -> int:
        return max(SIZE_STEP, _rounded(self.size // 2))

    @property
    def largest(self) -> int:
        return _rounded(self.size * 3 // 2)


@dataclass(frozen=True)
class Request:
    """One comparison: pictures of `variants`, the original first if it is among them, all from the same noise."""

    prompt: str
    negative: str
    seed: int
    steps: int
    guidance: float
    size: int
    variants: tuple[str, ...]
    lora: str

    @property
    def reference(self) -> str:
        """The variant that the others are measured against."""
        return self.variants[0]


def default_request(limits: Limits, prompt: str) -> Request:
    """The request for `prompt` with the default of every other field."""
    return validated_request(
        limits, prompt, "", FIRST_SEED, limits.steps, limits.guidance, limits.size, limits.variants
    )


def validated_request(limits: Limits, prompt, negative, seed, steps, guidance, size, variants, lora="") -> Request:
    """The request of these fields, validated against `limits`.

    Raises:
        RequestError: a field is invalid; the message names the first.
    """
    if not isinstance(variants, (list, tuple)):
        raise RequestError("the variants have to be a list of names")
    unknown = [name for name in variants if name not in limits.all]
    if unknown:
        raise RequestError(f"there is no variant {written(unknown[0])}; choose among {', '.join(limits.all)}")
    chosen = tuple(name for name in limits.all if name in variants)
    if len(chosen) < 2:
        raise RequestError("choose at least two variants: one alone has nothing to be compared with")
    prompt = _text(prompt, "prompt")
    if not prompt:
        raise RequestError("write a prompt first")
    size = _whole(size, "size", limits.smallest, limits.largest)
    if size % SIZE_STEP:
        raise RequestError(f"the size has to be a multiple of {SIZE_STEP}, such as {_rounded(size)}")
    return Request(
        prompt,
        _text(negative, "negative prompt"),
        _whole(seed, "seed", 0, SEED),
        _whole(steps, "number of steps", 1, STEPS),
        _number(guidance, "guidance", 0.0, GUIDANCE),
        size,
        chosen,
        _text(lora, "LoRA"),
    )


def _rounded(size: float) -> int:
    return round(size / SIZE_STEP) * SIZE_STEP


def _text(value, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RequestError(f"the {name} has to be text")
    text = " ".join(value.split())
    if len(text) > PROMPT_LENGTH:
        raise RequestError(f"the {name} has {len(text)} characters; {PROMPT_LENGTH} are the most")
    if not text.isprintable():
        raise RequestError(f"the {name} holds characters that cannot be printed")
    return text


def _number(value, name: str, low: float, high: float) -> float:
    if type(value) not in (int, float) or value != value or value in (math.inf, -math.inf):
        raise RequestError(f"the {name} has to be a number from {low:g} to {high:g}")
    if not low <= value <= high:
        raise RequestError(f"the {name} has to be from {low:g} to {high:g}, not {written(value)}")
    return float(value)


def _whole(value, name: str, low: int, high: int) -> int:
    number = _number(value, name, low, high)
    if number != int(number):
        raise RequestError(f"the {name} has to be a whole number")
    return int(number)
