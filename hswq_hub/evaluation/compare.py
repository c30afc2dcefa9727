"""Two quantized files of one model, tensor by tensor."""

from dataclasses import dataclass

import torch

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.checkpoints.mapping import Piece
from hswq_runtime.errors import FormatError
from hswq_runtime.layers.numbers import dequantize

from ..common.progress import progress


@dataclass(frozen=True)
class TensorComparison:
    """One weight in both files. `stored`: safetensors dtype in each. `codes`: share of codes that differ, None
    where the two are not of one number format. `difference`: ‖A − B‖ / ‖A‖ of the values that they stand for."""

    layer: str
    stored: tuple[str, str]
    codes: float | None
    difference: float


def compare(one: Checkpoint, other: Checkpoint) -> list[TensorComparison]:
    """Every linear and convolution weight of `one` against that of `other`.

    Raises:
        FormatError: the two are not files of models of one shape.
    """
    ours = {one.layer(key): key for key in one.layers}
    theirs = {other.layer(key): key for key in other.layers}
    differing = sorted(ours.keys() ^ theirs.keys())
    differing += [
        n for n in ours.keys() & theirs.keys() if one.tensors[ours[n]].shape != other.tensors[theirs[n]].shape
    ]
    if differing:
        raise FormatError(f"{one.path.name} and {other.path.name} differ in {', '.join(differing)}: not the same model")
    return [
        _compare(layer, one, ours[layer], other, theirs[layer])
        for layer in progress(ours, desc="compare", unit="tensor")
    ]


def _compare(layer: str, one: Checkpoint, key: str, other: Checkpoint, their_key: str) -> TensorComparison:
    stored = one.tensors[key].dtype, other.tensors[their_key].dtype
    a, b = _values(one, key), _values(other, their_key)
    codes = None
    if key in one.quantized and their_key in other.quantized and stored[0] == stored[1]:
        mine, theirs = (c.tensor(k).view(torch.uint8) for c, k in ((one, key), (other, their_key)))
        codes = (mine != theirs).double().mean().item()
    whole = a.norm().item()
    return TensorComparison(layer, stored, codes, (a - b).norm().item() / whole if whole else b.norm().item())


def _values(checkpoint: Checkpoint, key: str) -> torch.Tensor:
    whole = Piece(key, 0, checkpoint.tensors[key].shape[0])
    group = checkpoint.products[key].group if key in checkpoint.quantized else None
    return dequantize(checkpoint.tensor(key), checkpoint.scale_of([whole]), torch.float32, group)
