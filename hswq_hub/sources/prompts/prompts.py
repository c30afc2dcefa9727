"""The prompts of a source: those that calibrate, those that measure, and where they are from."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Share:
    """How many prompts are from where. origin: a phrase without a path of this machine."""

    count: int
    origin: str

    def __str__(self) -> str:
        return f"{self.count} of {self.origin}"


@dataclass(frozen=True)
class Prompts:
    """Calibration prompts and evaluation prompts; no prompt is in both.

    negative: the negative prompt of pictures, for models that take one. calibration_from, evaluation_from: the shares
    of either list, in its order. notes: for each list that prompts were left out of, how many and why.
    """

    calibration: tuple[str, ...]
    evaluation: tuple[str, ...]
    negative: str | None = None
    calibration_from: tuple[Share, ...] = ()
    evaluation_from: tuple[Share, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path | Traversable) -> "Prompts":
        """`calibration.txt` and `evaluation.txt` of a folder, one prompt a line, empty lines left out."""
        calibration, evaluation = (folder / f"{name}.txt" for name in ("calibration", "evaluation"))
        return cls(lines_of(calibration.read_text("utf-8")), lines_of(evaluation.read_text("utf-8")))

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> "Prompts":
        """The inverse of `dataclasses.asdict`, also after a way through JSON.

        Raises:
            KeyError, TypeError: another release wrote `facts`.
        """
        lists = {name: tuple(facts[name]) for name in ("calibration", "evaluation", "notes")}
        shares = {
            name: tuple(Share(**share) for share in facts[name]) for name in ("calibration_from", "evaluation_from")
        }
        return cls(**facts | lists | shares)

    def facts(self) -> dict[str, Any]:
        """For a record: how many, from where, and the SHA-256 of each list as a file with one prompt a line."""
        return {
            "calibration": {**summary(self.calibration), "from": [asdict(share) for share in self.calibration_from]},
            "evaluation": {**summary(self.evaluation), "from": [asdict(share) for share in self.evaluation_from]},
            "negative": self.negative,
        }


def summary(prompts: Sequence[str]) -> dict[str, object]:
    """How many prompts, and the SHA-256 of them as a file with one a line."""
    text = "".join(f"{prompt}\n" for prompt in prompts)
    return {"count": len(prompts), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def lines_of(text: str) -> tuple[str, ...]:
    """The prompts of a text, one a line, without empty lines."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def same(prompt: str) -> str:
    """What is equal for prompts that differ in nothing but case and spaces."""
    return " ".join(prompt.split()).casefold()
