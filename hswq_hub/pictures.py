"""Pictures for people: variants side by side, with what differs made visible."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_TILE = 256
_GAP, _MARGIN, _LABEL = 8, 12, 26
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


@dataclass(frozen=True)
class Tile:
    label: str
    image: np.ndarray
    """uint8 [H, W, 3]."""


def amplification(reference: np.ndarray, images: list[np.ndarray]) -> int:
    """The largest power of two, at most 64, that leaves 99.9 % of the differences unclipped."""
    differences = np.concatenate([np.abs(reference.astype(np.int16) - image).ravel() for image in images])
    largest = max(float(np.quantile(differences, 0.999)), 1.0)
    return 2 ** int(np.clip(np.floor(np.log2(255 / largest)), 0, 6))


def difference(reference: np.ndarray, image: np.ndarray, factor: int) -> np.ndarray:
    """|reference − image| times `factor`, clipped: black where the pictures agree. All uint8 [H, W, 3]."""
    return np.clip(np.abs(reference.astype(np.int16) - image) * factor, 0, 255).astype(np.uint8)


def comparison(images: Mapping[str, np.ndarray]) -> list[Tile]:
    """The pictures as they are, then each one's difference from the first, all amplified alike."""
    (first, reference), *others = images.items()
    factor = amplification(reference, [image for _, image in others])
    tiles = [Tile(first, reference), *(Tile(label, image) for label, image in others)]
    return tiles + [
        Tile(f"|{label} − {first}| ×{factor}", difference(reference, image, factor)) for label, image in others
    ]


def sheet(tiles: list[Tile], columns: int) -> Image.Image:
    """Labelled tiles in rows of `columns`. Small pictures are enlarged by a whole factor, pixel for pixel."""
    height, width = tiles[0].image.shape[:2]
    factor = max(1, _TILE // max(height, width))
    cell_w, cell_h = width * factor + _GAP, height * factor + _LABEL + _GAP
    rows = -(-len(tiles) // columns)
    page = Image.new("RGB", (2 * _MARGIN + columns * cell_w - _GAP, 2 * _MARGIN + rows * cell_h - _GAP), _PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=16)
    for i, tile in enumerate(tiles):
        x, y = _MARGIN + i % columns * cell_w, _MARGIN + i // columns * cell_h
        draw.text((x, y), tile.label, fill=_INK, font=font)
        picture = Image.fromarray(tile.image).resize((width * factor, height * factor), Image.Resampling.NEAREST)
        page.paste(picture, (x, y + _LABEL))
    return page
