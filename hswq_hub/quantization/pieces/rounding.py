"""What is kept of rounding: codes of finished layers, and the second moments of those that come next."""

from collections.abc import Iterable, Mapping

from ...common.pieces import Pieces, load_tensors, save_tensors
from ..moments import Moments
from .replaying import ReplayPieces


class RoundingPieces(ReplayPieces):
    """Pieces of a rounding. Once second moments are gathered they do not change any more: they are a file in `scratch`,
    which is written once."""

    def __init__(self, pieces: Pieces, layers: int, *facts: object):
        super().__init__(pieces, layers, *facts)
        self._file: str | None = self._begun.get("moments")
        self._is_written = False

    def moments(self, keys: Iterable[str]) -> dict[str, Moments] | None:
        """The second moments of `keys`, if all of them were gathered and kept."""
        self._is_written = self._file is not None and self._begun.get("part") == [*keys]
        if self._file is None or self.scratch is None or not self._is_written:
            return None
        saved = load_tensors(self.scratch / self._file)
        return {key: Moments(*saved[key]) for key in keys}

    def rounded(self, left: Mapping[str, Moments]) -> None:
        """Some layers were added. left: moments of what is still to be rounded of this part."""

        def state() -> dict[str, object]:
            if left and not self._is_written:
                self._write(left)
            return self._state() | ({"part": [*left], "moments": self._file} if left else {})

        self._pieces.keep(self._far, state)

    def _write(self, moments: Mapping[str, Moments]) -> None:
        assert self.scratch is not None, "something is kept"
        for old in self.scratch.glob("moments-*"):
            if old.name != self._file:  # the state on the disk may name that one
                old.unlink()
        self._file, self._is_written = f"moments-{len(self.done)}", True
        save_tensors(
            self.scratch / self._file, {key: [m.inputs, m.rows, m.outputs, m.noise] for key, m in moments.items()}
        )
