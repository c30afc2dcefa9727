"""Compensated rounding that minimises the error of the model's output, by K-FAC's curvature.

For a layer y = W x of a model that ends in f, with D = Ŵ − W, H = E[xxᵀ] and G = E[JᵀJ], J the derivative of f by y,
the expected squared change of f is

    tr(G D H Dᵀ)

as far as x and J are independent, and tokens of each other: the Kronecker-factored curvature of K-FAC (Martens and
Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", 2015), which Tseng et al.
("Model-preserving adaptive rounding", 2025) round by. GPTQ, for which every output counts alike, is the case G = 1. As
x and J do depend on each other, H is given with each token weighted by |J|², see `moments.py`.

With H = R Rᵀ and G = S Sᵀ, both upper triangular, that is ‖Sᵀ D R‖²; element (i, j) of Sᵀ D R is

    S_ii R_jj D_ij + S_ii Σ_{k<j} D_ik R_kj + Σ_{l<i} S_li Σ_{k≤j} D_lk R_kj

Elements are rounded one after another: each D_ij is chosen so that this sum is as near to zero as the grid allows,
which compensates the errors of the rows and columns before it. Rows and columns with the largest diagonals go first. An
element depends on those above and to the left of it, so all elements of an anti-diagonal i + j are rounded at once;
blocks likewise, and the contributions of earlier blocks are matrix products.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hswq_runtime.formats import Number
from hswq_runtime.layers.numbers import NUMBERS, NumberFormat

from .gptq import damped, upper_factor

BLOCK = 64


@dataclass(frozen=True)
class Problem:
    """What is rounded by one pair of moments.

    weights: [k, out, n], one weight with k different scales, say. inputs, outputs: H [n, n] and G [out, out], each up
    to a positive factor. row_scale: [out, 1], by which readers multiply what is stored for a row; a scale that all rows
    share changes nothing, the weights are divided by it. number: the number format of what is stored.
    """

    weights: torch.Tensor
    inputs: torch.Tensor
    outputs: torch.Tensor
    row_scale: torch.Tensor | None = None
    number: Number = Number.FP8


def compensated_both_ways(
    problems: Sequence[Problem], *, damping: float = 0.003, output_damping: float = 0.1, block: int = BLOCK
) -> list[torch.Tensor]:
    """Codes [k, out, n] for the weights of each of `problems`, on their device.

    What is rounded at once are the anti-diagonals of all of them: most of the time goes into starting small operations,
    which are as many as the largest problem needs. damping, output_damping: multiples of the mean of the diagonal of H
    and of G that are added to it. block: rows and columns of a block; it changes the speed alone.

    The factors are those of float64. So is all else on a CPU; on a GPU, whose float64 may be slow, it is float32, which
    the sums do not need more than, as nothing is divided by anything small.
    """
    results: dict[int, torch.Tensor] = {}
    for number in Number:
        alike = {i: _sorted(one, damping, output_damping) for i, one in enumerate(problems) if one.number is number}
        found = _feedback([(one.weights, one.r, one.s) for one in alike.values()], block, NUMBERS[number])
        for (i, one), codes in zip(alike.items(), found, strict=True):
            results[i] = torch.empty_like(codes)
            results[i].view(torch.uint8)[:, one.rows.unsqueeze(1), one.columns] = codes.view(torch.uint8)
    return [results[i] for i in range(len(problems))]


@dataclass(frozen=True)
class _Sorted:
    """A problem in the order in which it is rounded: the places of its rows and columns, and the triangular factors; of
    `s` each column is divided by its diagonal."""

    weights: torch.Tensor
    r: torch.Tensor
    s: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor


def _sorted(problem: Problem, damping: float, output_damping: float) -> _Sorted:
    w = problem.weights.to(torch.float64)
    h, g = problem.inputs.to(w.device, torch.float64), problem.outputs.to(w.device, torch.float64)
    h, g = damped(h, damping), damped(g, output_damping)
    if problem.row_scale is not None:  # codes for w / scale: what they lose counts scale times as much
        scale = problem.row_scale.to(torch.float64).reshape(-1, 1)
        w, g = w / scale, g * scale * scale.T
    columns = h.diagonal().argsort(descending=True, stable=True)
    rows = g.diagonal().argsort(descending=True, stable=True)
    r, s = upper_factor(h[columns.unsqueeze(1), columns]), upper_factor(g[rows.unsqueeze(1), rows])
    dtype = torch.float64 if w.device.type == "cpu" else torch.float32
    return _Sorted(w[:, rows][:, :, columns].to(dtype), r.to(dtype), (s / s.diagonal()).to(dtype), rows, columns)


class _State:
    """Of one problem: what is rounded so far, D, and D R."""

    def __init__(self, w: torch.Tensor, r: torch.Tensor, s: torch.Tensor, dtype: torch.dtype):
        self.w, self.r, self.s = w, r, s
        self.codes = torch.empty(w.shape, dtype=dtype, device=w.device)
        self.lost, self.carried = torch.zeros_like(w), torch.zeros_like(w)

    def diagonals(self, size: int) -> int:
        _, out, n = self.w.shape
        return -(-out // size) + -(-n // size) - 1

    def blocks(self, diagonal: int, size: int) -> list[tuple[slice, slice]]:
        """Rows and columns of each block on a diagonal of blocks."""
        _, out, n = self.w.shape
        height, width = -(-out // size), -(-n // size)
        places = range(max(0, diagonal - width + 1), min(height, diagonal + 1))
        corners = [(place * size, (diagonal - place) * size) for place in places]
        return [(slice(i, min(i + size, out)), slice(j, min(j + size, n))) for i, j in corners]


def _feedback(
    problems: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], size: int, number: NumberFormat
) -> list[torch.Tensor]:
    """Codes of each w [k, out, n], given with its r and s, see `_Sorted`."""
    states = [_State(*problem, number.dtype) for problem in problems]
    for diagonal in range(max((state.diagonals(size) for state in states), default=0)):
        under_way = [(state, i, j) for state in states for i, j in state.blocks(diagonal, size)]
        found = _blocks(
            _stacked([p.w[:, i, j] for p, i, j in under_way], size),
            _stacked([p.r[j, j].expand(len(p.w), -1, -1) for p, _, j in under_way], size, diagonal=1.0),
            _stacked([p.s[i, i].expand(len(p.w), -1, -1) for p, i, _ in under_way], size, diagonal=1.0),
            _stacked([p.lost[:, i, : j.start] @ p.r[: j.start, j] for p, i, j in under_way], size),
            _stacked([p.s[: i.start, i].T @ p.carried[:, : i.start, j] for p, i, j in under_way], size),
            number,
        )
        counts = [len(p.w) for p, _, _ in under_way]
        for (p, i, j), *parts in zip(under_way, *(part.split(counts) for part in found), strict=True):
            for target, part in zip((p.codes, p.lost, p.carried), parts, strict=True):
                target[:, i, j] = part[:, : i.stop - i.start, : j.stop - j.start]
    return [state.codes for state in states]


def _stacked(parts: list[torch.Tensor], size: int, diagonal: float = 0.0) -> torch.Tensor:
    """[any number, size, size] of parts [k, ...]: what is missing at the edges is 0, on the diagonal `diagonal`."""
    stacked = parts[0].new_zeros(sum(map(len, parts)), size, size)
    stacked.diagonal(dim1=1, dim2=2).fill_(diagonal)
    for target, part in zip(stacked.split([len(part) for part in parts]), parts, strict=True):
        target[:, : part.shape[1], : part.shape[2]] = part
    return stacked


def _blocks(
    w: torch.Tensor, r: torch.Tensor, s: torch.Tensor, left: torch.Tensor, above: torch.Tensor, number: NumberFormat
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, D and D R of blocks [any number, b, b] that do not depend on each other.

    left: Σ D_ik R_kj over the columns before the block. above: Σ S_li (D R)_lj / S_ii over the rows before it. With the
    columns the other way round, what is done at once lies on a diagonal.
    """
    b = w.shape[1]
    w, r, left, above = w.flip(2), r.flip(1, 2), left.flip(2), above.flip(2).transpose(1, 2).contiguous()
    steps = r.diagonal(dim1=1, dim2=2)
    codes = torch.empty(w.shape, dtype=number.dtype, device=w.device)
    lost, carried = torch.empty_like(w), torch.empty_like(w)
    for offset in range(b - 1, -b, -1):
        rows, columns = slice(max(0, -offset), min(b, b - offset)), slice(max(0, offset), min(b, b + offset))
        weights, before, step = _diagonal(w, offset), _diagonal(left, offset), steps[:, columns]
        code = number.cast(weights - (before + _diagonal(above, -offset)) / step)
        d = code.to(weights.dtype) - weights
        a = before + d * step
        for target, values in ((codes, code), (lost, d), (carried, a)):
            _diagonal(target, offset).copy_(values)
        left[:, rows] += d.unsqueeze(2) * r[:, columns]
        above[:, columns] += a.unsqueeze(2) * s[:, rows]
    return codes.view(torch.uint8).flip(2).view(number.dtype), lost.flip(2), carried.flip(2)


def _diagonal(blocks: torch.Tensor, offset: int) -> torch.Tensor:
    return blocks.diagonal(offset, dim1=1, dim2=2)
