"""What is kept of recorded calls that are replayed: what blocks were given, and sums over the calls of a part."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ...common.pieces import Pieces
from ..blocks import BlockReplays, Part


class ReplayPieces:
    """Pieces of work on `layers` layers by replaying calls, see `common/pieces.py`; `facts` decide it.

    Layers of a part that are done are pieces. The sums of those that are not are in the state.
    """

    def __init__(self, pieces: Pieces, layers: int, *facts: object):
        self._pieces, self._layers = pieces, layers
        self._begun: dict[str, Any] = pieces.begin(*facts) or {}
        self._replays: BlockReplays | None = None
        self._prepared = 0
        self.done: set[str] = set()
        """Keys of the layers that are."""

    @property
    def scratch(self) -> Path | None:
        """For the replays."""
        return self._pieces.scratch

    def found(self) -> Iterator[Any]:
        """What was added for each layer; the first of it is the key."""
        for key, *piece in self._pieces.found():
            self.done.add(key)
            yield key, *piece

    def add(self, key: str, *piece: object) -> None:
        """What was found of a layer."""
        self._pieces.add([key, *piece])
        self.done.add(key)

    def go_on(self, replays: BlockReplays) -> None:
        """From now on they are of `replays`, which goes on as well."""
        self._replays = replays
        replays.go_on(self._begun.get("seen", []))
        self._prepared = len(replays.seen)

    def prepared(self) -> None:
        """Some calls may have been prepared."""
        replays = self._under_way
        if len(replays.seen) == self._prepared:
            return
        self._prepared = len(replays.seen)
        self._pieces.keep(f"preparing {len(replays.seen)} of {len(replays)} calls", self._state)

    def begun(self, part: Part, keys: Iterable[str]) -> tuple[int, Any] | None:
        """How many calls were replayed for `keys` of a part, and their sums; None if no run stopped there."""
        begun, self._begun = self._begun, {}
        is_here = "sums" in begun and begun["part"] == [*keys] and begun["computed"] == _in_order(part)
        return (begun["calls"], begun["sums"]) if is_here else None

    def replayed(self, part: Part, keys: Iterable[str], calls: int, sums: Callable[[], object]) -> None:
        """So many calls were replayed for `keys` of a part."""

        def state() -> dict[str, object]:
            return self._state() | {"part": [*keys], "computed": _in_order(part), "calls": calls, "sums": sums()}

        self._pieces.keep(f"{self._far}, {calls} of {len(self._under_way)} calls for more", state)

    @property
    def _far(self) -> str:
        return f"{len(self.done)} of {self._layers} layers"

    def _state(self) -> dict[str, object]:
        return {"seen": self._under_way.seen}

    @property
    def _under_way(self) -> BlockReplays:
        assert self._replays is not None, "go_on comes first"
        return self._replays


def _in_order(part: Part) -> list[str] | None:
    return None if part.computed is None else sorted(part.computed)
