"""Which rows of which stored tensor a diffusers parameter is made of.

It is *found*, by running diffusers' own single-file converter on row numbers instead of values: the converters
rename keys and cut or join tensors along their first dimension, so what arrives under a parameter's name says where
it came from. No table of keys is kept anywhere.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from ..errors import FormatError

_ROWS = 1 << 32
"""A tag is `tensor number · _ROWS + row number`; no tensor has that many rows."""


@dataclass(frozen=True)
class Piece:
    """Rows `start:stop` of the stored tensor `key`."""

    key: str
    start: int
    stop: int


def trace(
    shapes: Mapping[str, tuple[int, ...]], model_class: str, config: Mapping, prefix: str = ""
) -> dict[str, list[Piece]]:
    """diffusers parameter name -> the rows of stored tensors it is made of, in order.

    Args:
        shapes: of the stored tensors, by key, in the original layout.
        model_class: name of a diffusers class that can be loaded from a single file.
        config: keyword arguments of that class.
        prefix: what the converter expects before every key.

    Raises:
        FormatError: the converter misses a tensor, or one has not the shape that it expects.
    """
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    keys = list(shapes)
    tagged = {prefix + key: _tags(number, shapes[key]) for number, key in enumerate(keys)}
    convert = SINGLE_FILE_LOADABLE_CLASSES[model_class]["checkpoint_mapping_fn"]
    try:
        converted = convert(checkpoint=tagged, config=config)
    except KeyError as error:
        raise FormatError(f"missing {error.args[0]}") from error
    except (RuntimeError, ValueError, IndexError) as error:
        raise FormatError(f"diffusers' converter cannot take it apart ({' '.join(str(error).split())})") from error
    return {name: list(_pieces(tags, keys)) for name, tags in converted.items() if tags is not None}


def untouched(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[Piece]]:
    """The same for tensors in diffusers' own layout: every one is the parameter of its name, whole."""
    return {key: [Piece(key, 0, row_count(shape))] for key, shape in shapes.items()}


def row_count(shape: tuple[int, ...]) -> int:
    """How many rows a tensor of `shape` has; a single value is one."""
    return shape[0] if shape else 1


def gather_scale(pieces: list[Piece], scales: Mapping[str, torch.Tensor | None]) -> torch.Tensor | None:
    """The scale of a parameter made of `pieces`, from the scales of stored tensors: None, [1] or one a row.

    `scales`: by stored key, as :func:`hswq_runtime.formats.read_scale` gives them.
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
