"""The one place that decides which prompts a source has.

A file that the user gives comes first, then what the model's page shows, then the list for its family. Of the page's
prompts every fourth measures and the others calibrate; where these are few, prompts of the list are added.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import PromptsError
from .examples import Examples
from .given import GivenPrompts, PromptFile
from .lists import GENERAL, origin_of, shipped
from .prompts import Prompts, Share, same

ENOUGH = 16
"""Prompts of a model's own from which on neither list is completed; and how many of them measure at most."""
_EVERY = 4


@dataclass(frozen=True)
class Offered:
    """What a model brings, before a user says anything. style: the list for it, see `lists.style_of`."""

    style: str = GENERAL
    examples: Examples = field(default_factory=Examples)

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> "Offered":
        """The inverse of `dataclasses.asdict`, also after a way through JSON.

        Raises:
            KeyError, TypeError: another release wrote `facts`.
        """
        examples = facts["examples"]
        return cls(facts["style"], Examples(**examples | {"prompts": tuple(examples["prompts"])}))


@dataclass(frozen=True)
class _List:
    """One of the two lists. left_out: how many prompts are not in it since a file for the other list has them."""

    prompts: tuple[str, ...]
    shares: tuple[Share, ...]
    left_out: int = 0


def choose(offered: Offered, given: GivenPrompts | None = None) -> Prompts:
    """The prompts for a model that offers some, where the user gave some.

    Raises:
        PromptsError: none is left on one side, since all of them are on the other.
    """
    given = given or GivenPrompts()
    listed, own = shipped(offered.style), offered.examples
    measuring = own.prompts[_EVERY - 1 :: _EVERY][:ENOUGH]
    others = tuple(prompt for prompt in own.prompts if prompt not in measuring)
    origins = own.page, origin_of(offered.style)
    calibration = (
        _of_file(given.calibration)
        if given.calibration
        else _completed(others, listed.calibration, origins, given.evaluation, measuring)
    )
    evaluation = (
        _of_file(given.evaluation)
        if given.evaluation
        else _completed(measuring, listed.evaluation, origins, given.calibration, calibration.prompts)
    )
    sides = (
        (evaluation, given.calibration, "to measure on, which FILE calibrates with", "--evaluation-prompts"),
        (calibration, given.evaluation, "to calibrate with, which FILE measures on", "--prompts"),
    )
    notes = []
    for found, other, why, option in sides:
        if other is not None and found.left_out:
            said = why.replace("FILE", other.name)
            notes.append(f"{found.left_out} of the prompts {said}")
            if not found.prompts:
                raise PromptsError(f"all prompts {said}; give others with {option}")
    return Prompts(
        calibration.prompts, evaluation.prompts, own.negative, calibration.shares, evaluation.shares, tuple(notes)
    )


def _of_file(file: PromptFile) -> _List:
    return _List(file.prompts, (Share(len(file.prompts), f"the file {file.name}"),))


def _completed(
    own: Sequence[str],
    listed: Sequence[str],
    origins: tuple[str, str],
    other: PromptFile | None,
    elsewhere: Collection[str],
) -> _List:
    """The model's own prompts, completed from the list if they are few; the whole list if there are none.

    other: the file that is given for the other side: none of its prompts is taken. elsewhere: further prompts that are
    not taken from the list.
    """
    barred = {same(prompt) for prompt in other.prompts} if other is not None else set[str]()
    taken = [prompt for prompt in own if same(prompt) not in barred]
    used = barred | {same(prompt) for prompt in (*elsewhere, *taken)}
    added = [prompt for prompt in listed if same(prompt) not in used]
    if taken:
        added = added[: max(ENOUGH - len(taken), 0)]
    shares = [Share(len(part), origin) for part, origin in zip((taken, added), origins, strict=True) if part]
    candidates = (*own, *listed) if added or not taken else own
    left_out = sum(same(prompt) in barred for prompt in candidates)
    return _List((*taken, *added), tuple(shares), left_out)
