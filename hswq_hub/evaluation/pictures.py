"""Sheets of variants side by side, with their differences amplified."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_TILE = 256
_GAP, _MARGIN, _LABEL = 10, 14, 28
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


@dataclass(frozen=True)
class Tile:
    """A labelled picture, uint8 [H, W, 3]."""

    label: str
    image: NDArray[np.uint8]


def amplification(reference: NDArray[np.uint8], images: list[NDArray[np.uint8]]) -> int:
    """The largest power of two, at most 64, that leaves 99.9 % of the differences unclipped."""
    differences = np.concatenate([np.abs(reference.astype(np.int16) - image).ravel() for image in images])
    largest = max(float(np.quantile(differences, 0.999)), 1.0)
    return 1 << int(np.clip(np.floor(np.log2(255 / largest)), 0, 6))


def difference(reference: NDArray[np.uint8], image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """|reference − image| times `factor`, clipped: black where the pictures agree. All uint8 [H, W, 3]."""
    amplified: NDArray[np.int16] = np.clip(np.abs(reference.astype(np.int16) - image) * factor, 0, 255)
    return amplified.astype(np.uint8)


def enlarged(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A small picture, uint8 [H, W, 3], enlarged pixel for pixel by the whole factor that comes closest to `side`."""
    return _enlarge(image, max(1, round(side / max(image.shape[:2]))))


def _enlarge(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def comparison(images: Mapping[str, NDArray[np.uint8]]) -> Image.Image:
    """A sheet of two rows: the pictures as they are, and under each its difference from the first.

    The differences are amplified alike, by the factor that their labels name. Small pictures are enlarged by a whole
    factor, pixel for pixel. `images`: label -> uint8 [H, W, 3], at least two, all of one shape.
    """
    (_, reference), *others = images.items()
    factor = amplification(reference, [image for _, image in others])
    differences = [Tile(f"difference x{factor}", difference(reference, image, factor)) for _, image in others]
    return _sheet([[Tile(label, image) for label, image in images.items()], [None, *differences]])


def _sheet(rows: list[list[Tile | None]]) -> Image.Image:
    height, width = next(tile for tile in rows[0] if tile).image.shape[:2]
    zoom = max(1, round(_TILE / max(height, width)))
    cell_w, cell_h = width * zoom + _GAP, height * zoom + _LABEL + _GAP
    size = (2 * _MARGIN + len(rows[0]) * cell_w - _GAP, 2 * _MARGIN + len(rows) * cell_h - _GAP)
    page = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=max(15, zoom * width // 20))
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            if tile is None:
                continue
            x, y = _MARGIN + column * cell_w, _MARGIN + row * cell_h
            draw.text((x, y + _LABEL - 4), tile.label, fill=_INK, font=font, anchor="ls")
            page.paste(Image.fromarray(_enlarge(tile.image, zoom)), (x, y + _LABEL))
    return page
