"""A finished comparison, kept for its visitor."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hswq_hub.evaluation.pictures import amplification, difference, enlarged

from ..request import Request
from .worker import VariantDone

KEPT = 8
"""Comparisons that are kept for each visitor."""
_SHOWN_SIDE = 512
"""Smaller pictures are enlarged to about that, pixel for pixel, so that a screen does not blur them."""


@dataclass(frozen=True)
class Run:
    """model: the reference it was made with. pictures: PNG by label. made: what was measured, without pictures.
    remark: a sentence about how it was made, or ""."""

    model: str
    request: Request
    pictures: dict[str, bytes]
    made: tuple[VariantDone, ...]
    remark: str = ""

    @classmethod
    def of(cls, model: str, request: Request, made: list[VariantDone], remark: str = "") -> "Run":
        """Pack finished pictures: as PNG they take a fraction of the memory, and lose nothing."""
        return cls(
            model, request, {m.label: png(m.image) for m in made}, tuple(_without_image(m) for m in made), remark
        )

    def picture(self, label: str) -> np.ndarray:
        """uint8 [H, W, 3], to be shown: enlarged if it is small."""
        return enlarged(self._pixels(label), _SHOWN_SIDE)

    def difference(self, one: str, other: str) -> tuple[np.ndarray, int]:
        """What differs between two variants, made visible, and by which factor it was amplified.

        The factor is that of all variants of this run, so that their differences can be compared.
        """
        reference = self._pixels(self.request.reference)
        others = [self._pixels(label) for label in self.request.variants[1:]]
        factor = amplification(reference, others)
        return enlarged(difference(self._pixels(one), self._pixels(other), factor), _SHOWN_SIDE), factor

    def _pixels(self, label: str) -> np.ndarray:
        return pixels(self.pictures[label])


def pixels(picture: bytes) -> np.ndarray:
    """uint8 [H, W, 3] of a PNG file."""
    return np.asarray(Image.open(io.BytesIO(picture)))


def png(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _without_image(made: VariantDone) -> VariantDone:
    return VariantDone(
        made.label, np.empty(0, np.uint8), made.figures, made.peak_bytes, made.weight_bytes, made.file_bytes
    )
