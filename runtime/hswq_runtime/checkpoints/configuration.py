"""What states the configuration of a denoiser. Shapes cannot tell all of it: rotary axes, norms, heads of a UNet."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..architectures import Config
from ..errors import FormatError
from ..text import shown, written
from .header import TensorInfo

CONFIG = "config.json"
LARGEST = 1 << 20
"""Bytes."""
_CLASS = "_class_name"
_LARGEST, _LISTED = 1 << 16, 64
"""A number and a length that any configuration may have, whatever the tensors."""


@dataclass(frozen=True)
class Configuration:
    """The entries of a diffusers model's `config.json`. where: what states them, for people."""

    entries: Config
    where: str

    @property
    def arguments(self) -> Config:
        """Keyword arguments of the model's class: the entries whose names do not begin with an underscore."""
        return {name: value for name, value in self.entries.items() if not name.startswith("_")}

    @property
    def text(self) -> str:
        """Its canonical JSON, as a file's header has it: without entries that describe where it was saved."""
        named = {_CLASS: self.entries[_CLASS]} if _CLASS in self.entries else {}
        return json.dumps(named | self.arguments, sort_keys=True, separators=(",", ":"))

    def check_class(self, model_class: str, path: Path) -> None:
        """Check that it is of `model_class`, or says none.

        Raises:
            FormatError: it is of another class than the tensors of `path`.
        """
        if (stated := self.entries.get(_CLASS)) not in (None, model_class):
            raise FormatError(
                f"{shown(path)} is a {model_class} by its tensors, but {shown(self.where)} is of a {shown(stated)}; "
                "pass the base that belongs to it"
            )

    def differences(self, told: Config, guessed: Collection[str]) -> list[str]:
        """A phrase for each entry that the tensors tell otherwise: as `told`, but for those that are `guessed`."""
        stated = self.arguments
        return [
            f"{name} is {written(stated[name])} there and {written(value)} by the tensors"
            for name, value in told.items()
            if name in stated and name not in guessed and _listed(stated[name]) != _listed(value)
        ]

    @classmethod
    def read(cls, path: Path, where: str) -> "Configuration":
        """The configuration in a file.

        Raises:
            FormatError: it is not a JSON object, or larger than any configuration.
        """
        if path.stat().st_size > LARGEST:
            raise FormatError(f"{where} is larger than any configuration of a model")
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{where} is not JSON") from error
        if not isinstance(entries, dict):
            raise FormatError(f"{where} is no configuration of a model")
        return cls(entries, where)


def check_bounds(config: Config, tensors: Mapping[str, TensorInfo], table_values: Callable[[Config], int]) -> None:
    """Check, before anything is built, that a stranger's configuration builds nothing larger than the file's tensors.

    Args:
        table_values: see :class:`hswq_runtime.architectures.Architecture`.

    Raises:
        ValueError: a number is out of bounds, or no number.
    """
    largest = max((side for info in tensors.values() for side in info.shape), default=0)
    for name, value in config.items():
        for number in _numbers(name, value, len(tensors)):
            limit = len(tensors) if "layers" in name else max(_LARGEST, largest)
            if not -limit <= number <= limit:  # NaN is not, either
                raise ValueError(f"{shown(name)} is {written(number)}, and the file has no such tensors")
    if table_values(config) > sum(info.values for info in tensors.values()):
        raise ValueError("its table of positions is larger than the file")


def _numbers(name: str, value: object, most: int) -> Iterator[float]:
    """The numbers in a value of a configuration, those in lists included."""
    if isinstance(value, (list, tuple)):
        if len(value) > max(most, _LISTED):
            raise ValueError(f"{shown(name)} has {len(value)} entries")
        for item in value:
            yield from _numbers(name, item, most)
    elif isinstance(value, (int, float)):
        yield value


def as_text(model_class: str, arguments: Config) -> str:
    """:attr:`Configuration.text` of a class and its arguments."""
    return Configuration({_CLASS: model_class, **arguments}, model_class).text


def _listed(value: object) -> object:
    """A value of a configuration with tuples as lists, so that values from Python and from JSON can be compared."""
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value
