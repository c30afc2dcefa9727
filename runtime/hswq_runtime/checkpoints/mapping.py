"""Which rows of which stored tensor a diffusers parameter is made of.

This is *traced*: diffusers' own single-file converter runs on row numbers instead of values. Converters rename keys
and split or join tensors along their first dimension, so the numbers that arrive under a parameter's name say where
its rows came from. There is no table of keys.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..architectures import Shapes
from ..errors import FormatError
from ..formats import Product
from ..text import shown

_ROWS = 1 << 32
"""A tag is `tensor number · _ROWS + row number`; no tensor has that many rows."""


@dataclass(frozen=True)
class Piece:
    """Rows `start:stop` of the stored tensor `key`."""

    key: str
    start: int
    stop: int


def trace(shapes: Shapes, model_class: str, config: Mapping[str, Any], prefix: str = "") -> dict[str, list[Piece]]:
    """diffusers parameter name -> the rows of stored tensors it is made of, in order.

    Args:
        shapes: of the stored tensors by key, in the original layout.
        model_class: name of a diffusers class that has a single-file converter.
        config: keyword arguments of that class.
        prefix: prefix that the converter expects on every key.

    Raises:
        FormatError: a tensor that the converter needs is missing, or has another shape than it expects.
    """
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    keys = list(shapes)
    tagged = {prefix + key: _tags(number, shapes[key]) for number, key in enumerate(keys)}
    convert = SINGLE_FILE_LOADABLE_CLASSES[model_class]["checkpoint_mapping_fn"]
    try:
        converted = convert(checkpoint=tagged, config=config)
    except KeyError as error:
        raise FormatError(f"missing {shown(error.args[0])}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise FormatError(f"diffusers' converter cannot take it apart ({shown(error)})") from error
    return {name: list(_pieces(tags, keys)) for name, tags in converted.items() if tags is not None}


def untouched(shapes: Shapes) -> dict[str, list[Piece]]:
    """The result of :func:`trace` for diffusers' own layout: every stored tensor is the parameter of its name."""
    return {key: [Piece(key, 0, row_count(shape))] for key, shape in shapes.items()}


def row_count(shape: tuple[int, ...]) -> int:
    """The number of rows of a tensor of `shape`; a scalar has one."""
    return shape[0] if shape else 1


def is_convolution(shape: tuple[int, ...]) -> bool:
    """Whether a weight of `shape` is a 2d convolution's: [out, in / groups, height, width]."""
    return len(shape) == 4


def gather_scale(pieces: list[Piece], scales: Mapping[str, torch.Tensor | None]) -> torch.Tensor | None:
    """The scale of a parameter made of `pieces`, from the scales of stored tensors: None, [1] or [rows].

    `scales`: by stored key, as :func:`hswq_runtime.formats.read_scale` returns them.
    """
    found = [scales[piece.key] for piece in pieces]
    if all(scale is None for scale in found):
        return None
    rows = []
    for piece, scale in zip(pieces, found, strict=True):
        if scale is not None and scale.numel() > 1:
            rows.append(scale[piece.start : piece.stop])
        else:
            rows.append((torch.ones(1, device="cpu") if scale is None else scale).expand(piece.stop - piece.start))
    joined = torch.cat(rows)
    return joined[:1].clone() if (joined == joined[0]).all() else joined


def gather_product(pieces: list[Piece], products: Mapping[str, Product]) -> Product | None:
    """How the layer of a parameter made of `pieces` is multiplied, from what is said of stored tensors by key.

    An input is rounded in one unit: where the tensors do not agree, the layer is multiplied in full precision. None: no
    layer can hold them as they are, since their number formats or rotations differ, or one is not quantized.
    """
    found = {products.get(piece.key) for piece in pieces}
    first = next(iter(found))
    if len(found) == 1 or first is None:
        return first
    if any(one is None or (one.number, one.group) != (first.number, first.group) for one in found):
        return None
    return Product(exact=True, number=first.number, group=first.group)


def _tags(number: int, shape: tuple[int, ...]) -> torch.Tensor:
    rows = torch.arange(row_count(shape), dtype=torch.int64) + number * _ROWS
    return rows.reshape(-1, *[1] * (len(shape) - 1))


def _pieces(tags: torch.Tensor, keys: list[str]) -> Iterator[Piece]:
    """Runs of consecutive rows in a converted tensor of tags."""
    flat = tags.reshape(-1)
    starts = [0, *(torch.nonzero(flat.diff() != 1).flatten() + 1).tolist(), len(flat)]
    for begin, end in itertools.pairwise(starts):
        number, row = divmod(int(flat[begin]), _ROWS)
        yield Piece(keys[number], row, row + end - begin)
