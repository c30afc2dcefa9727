"""Files of prompts that a user gives, one prompt a line, read and checked."""

from dataclasses import dataclass
from pathlib import Path

from ...common.text import plain
from ...settings import PromptSettings
from ..errors import PromptsError
from .prompts import lines_of, same

LONGEST_PROMPT = 2_000
"""Characters. No text encoder here reads as many."""
MOST_PROMPTS = 10_000
_MOST_BYTES = 4 * LONGEST_PROMPT * MOST_PROMPTS
"""Of a file that keeps both bounds."""
_SHOWN = 80
"""Characters of a prompt that a message shows."""


@dataclass(frozen=True)
class PromptFile:
    """name: of the file, without its path."""

    name: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class GivenPrompts:
    """What a user gave to calibrate with and to measure on; None: nothing."""

    calibration: PromptFile | None = None
    evaluation: PromptFile | None = None

    @classmethod
    def read(cls, settings: PromptSettings) -> "GivenPrompts":
        """The files that `settings` name.

        Raises:
            PromptsError: one cannot be used, or a prompt is in both.
        """
        found = cls(
            None if settings.calibration is None else read_prompts(settings.calibration),
            None if settings.evaluation is None else read_prompts(settings.evaluation),
        )
        if found.calibration is not None and found.evaluation is not None:
            calibrating = {same(prompt) for prompt in found.calibration.prompts}
            for prompt in found.evaluation.prompts:
                if same(prompt) in calibrating:
                    raise PromptsError(
                        f"{plain(prompt, _SHOWN)!r} is in both {found.calibration.name} and {found.evaluation.name}, "
                        "and what calibrates is not measured on; take it out of one of them"
                    )
        return found


def read_prompts(path: Path) -> PromptFile:
    """The prompts of a text file, one a line, empty lines left out.

    Raises:
        PromptsError: it does not exist, is empty, is not UTF-8, or holds too much.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise PromptsError(
            f"the prompts {path} cannot be read ({error.strerror}); name a text file with one prompt a line"
        ) from error
    if len(content) > _MOST_BYTES:
        raise PromptsError(f"the prompts {path} are {_TOO_MANY}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptsError(
            f"the prompts {path} are not UTF-8; save them as a UTF-8 text file with one prompt a line"
        ) from error
    prompts = lines_of(text)
    if not prompts:
        raise PromptsError(f"the prompts {path} are empty; write one prompt a line into it")
    if len(prompts) > MOST_PROMPTS:
        raise PromptsError(f"the prompts {path} are {_TOO_MANY}")
    for prompt in prompts:
        if len(prompt) > LONGEST_PROMPT:
            raise PromptsError(
                f"the prompts {path} hold one of {len(prompt)} characters, {plain(prompt, _SHOWN)!r}…; shorten it to "
                f"{LONGEST_PROMPT} at most"
            )
    return PromptFile(plain(path.name) or "prompts", prompts)


_TOO_MANY = f"more than {MOST_PROMPTS}; leave the most typical ones in the file"
