"""A round of the blind test: pairs of pictures, the original and a quantized one in an order that nobody is told."""

import io
import secrets
from dataclasses import dataclass, field

from PIL import Image

from hswq_hub.evaluation.results import ORIGINAL

from ..models.registry import Model
from ..request import SEED, Request, RequestError, validated_request
from .runs import Run, pixels

PAIRS = 10
_AHEAD = 2
"""Pairs that are made, or wait, while somebody looks at one."""


@dataclass(frozen=True)
class Pair:
    """number: from 1 on. pictures: PNG files of one length, with nothing in them but pixels."""

    number: int
    prompt: str
    pictures: tuple[bytes, bytes]


@dataclass(eq=False)
class Round:
    """model, label: of what is compared with the original. right: for each answer whether it was. over: no more pairs
    are wanted. They are forgotten once they are answered."""

    model: str
    label: str
    right: list[bool] = field(default_factory=list)
    over: bool = False
    _made: int = 0
    _pairs: dict[int, tuple[Pair, int]] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return len(self.right) == PAIRS

    @property
    def wanted(self) -> bool:
        """Whether another pair should be made."""
        return not self.over and self._made < PAIRS and self._made - len(self.right) <= _AHEAD

    @property
    def shown(self) -> Pair | None:
        """The pair that is to be answered; None: it is not made yet, or all are answered."""
        return self._pairs[len(self.right) + 1][0] if len(self.right) + 1 in self._pairs else None

    def request(self, model: Model) -> Request:
        """The next pair as a request: the model's prompts in turn, its own settings, a seed by chance.

        Raises:
            RequestError: the model has no original, or no such file.
        """
        if ORIGINAL not in model.files:
            raise RequestError("without the original there is nothing to tell apart")
        limits, prompt = model.limits, model.examples[self._made % len(model.examples)]
        variants, seed = (ORIGINAL, self.label), secrets.randbelow(SEED + 1)
        return validated_request(limits, prompt, "", seed, limits.steps, limits.guidance, limits.size, variants)

    def add(self, run: Run) -> Pair:
        """The next pair, in an order by chance."""
        pictures = [_plain(run.pictures[label]) for label in (ORIGINAL, self.label)]
        first = secrets.randbelow(2)
        pair = Pair(self._made + 1, run.request.prompt, (pictures[first], pictures[1 - first]))
        self._pairs[pair.number] = pair, first
        self._made += 1
        return pair

    def answer(self, number: int, picture: int) -> None:
        """Picture 0 or 1 of the pair `number` is taken for the original. It counts once, for the pair that is shown."""
        if picture in (0, 1) and (pair := self.shown) is not None and pair.number == number:
            _, original = self._pairs.pop(number)
            self.right.append(picture == original)


def _plain(picture: bytes) -> bytes:
    """The same pixels, stored without compression: how long a file is would tell of its noise."""
    file = io.BytesIO()
    Image.fromarray(pixels(picture)).save(file, "PNG", compress_level=0)
    return file.getvalue()
