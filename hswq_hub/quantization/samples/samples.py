"""Sums over recorded calls, and the rows of parameters that they belong to."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.errors import HSWQError


class Samples:
    """Sums over one recorded call, squared when it ends, and their mean over the calls."""

    def __init__(self) -> None:
        self._now: dict[str, torch.Tensor] = {}
        self._squares: dict[str, torch.Tensor] = {}
        self._calls: dict[str, torch.Tensor] = {}

    def start(self, key: str, zeros: torch.Tensor) -> None:
        """`zeros`: [k], of k sums that belong to the stored weight `key`."""
        self._now[key], self._squares[key], self._calls[key] = zeros, zeros.double(), zeros.clone()

    def add(self, key: str, part: torch.Tensor) -> None:
        """`part`: [k], of the call that is replayed."""
        self._now[key] = self._now[key] + part

    def end_call(self, values: int) -> None:
        """What came since the last one is of one call, which gave `values`; what is not finite does not count."""
        for key, now in self._now.items():
            finite = now.isfinite()
            self._squares[key] += torch.where(finite, now, 0.0).double().square() / values
            self._calls[key] += finite
            self._now[key] = torch.zeros_like(now)

    def sums(self) -> dict[str, Any]:
        """Everything that a later call adds to."""
        return {"squares": self._squares, "calls": self._calls}

    def go_on(self, sums: Mapping[str, Any]) -> None:
        """Add to `sums` from now on, which an earlier run returned."""
        for key, total in self._squares.items():
            total.copy_(sums["squares"][key])
            self._calls[key].copy_(sums["calls"][key])

    def errors(self, key: str) -> list[float]:
        """The squared change of a value of the output, in the mean of values and calls, for each sum.

        Raises:
            HSWQError: none was finite.
        """
        if not self._calls[key].all():
            raise HSWQError(f"no finite gradient was seen of {key}; try --dtype float32")
        means: list[float] = (self._squares[key] / self._calls[key]).tolist()
        return means


def sums_of(*samples: Samples) -> list[dict[str, Any]]:
    return [each.sums() for each in samples]


def rows_of(checkpoint: Checkpoint, key: str) -> Iterator[tuple[str, slice, slice]]:
    """The parameters that the stored weight `key` becomes: name, rows there, rows of the stored one."""
    for name in checkpoint.modules[key]:
        row = 0
        for piece in checkpoint.parameters[name]:
            rows = slice(row, row + piece.stop - piece.start)
            if piece.key == key:
                yield name, rows, slice(piece.start, piece.stop)
            row = rows.stop
