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

import torch

from hswq_runtime.layers.fp8 import FP8, saturating_cast

from .gptq import damped, upper_factor

BLOCK = 64


def compensated_both_ways(
    weights: torch.Tensor,
    inputs: torch.Tensor,
    outputs: torch.Tensor,
    row_scale: torch.Tensor | None = None,
    *,
    damping: float = 0.003,
    output_damping: float = 0.1,
    block: int = BLOCK,
) -> torch.Tensor:
    """FP8 codes [k, out, n] for `weights` [k, out, n], on their device: one weight with k different scales, say.

    inputs, outputs: H [n, n] and G [out, out], each up to a positive factor. row_scale: [out, 1], by which what is
    stored for a row is multiplied by readers; one that all rows share changes nothing, divide by it. damping,
    output_damping: multiples of the mean of the diagonal of H and of G that are added to it. block: rows and columns of
    a block; it changes the speed alone.

    The factors are those of float64. So is all else on a CPU; on a GPU, whose float64 may be slow, it is float32, which
    the sums do not need more than, as nothing is divided by anything small.
    """
    w = weights.to(torch.float64)
    h, g = inputs.to(w.device, torch.float64), outputs.to(w.device, torch.float64)
    h, g = damped(h, damping), damped(g, output_damping)
    if row_scale is not None:  # codes for w / scale: what they lose counts scale times as much
        scale = row_scale.to(torch.float64).reshape(-1, 1)
        w, g = w / scale, g * scale * scale.T
    columns = h.diagonal().argsort(descending=True, stable=True)
    rows = g.diagonal().argsort(descending=True, stable=True)
    r, s = upper_factor(h[columns.unsqueeze(1), columns]), upper_factor(g[rows.unsqueeze(1), rows])
    dtype = torch.float64 if w.device.type == "cpu" else torch.float32
    sorted_, r, s = (t.to(dtype) for t in (w[:, rows][:, :, columns], r, s / s.diagonal()))
    codes = _feedback(sorted_, r, s, block)
    result = torch.empty_like(codes)
    result.view(torch.uint8)[:, rows.unsqueeze(1), columns] = codes.view(torch.uint8)
    return result


def _feedback(w: torch.Tensor, r: torch.Tensor, s: torch.Tensor, size: int) -> torch.Tensor:
    """Codes of `w` [k, out, n]. s: the factor with each column divided by its diagonal."""
    count, out, n = w.shape
    codes = torch.empty(w.shape, dtype=FP8, device=w.device)
    lost, carried = torch.zeros_like(w), torch.zeros_like(w)  # D, and D R
    height, width = -(-out // size), -(-n // size)
    for diagonal in range(height + width - 1):
        places = range(max(0, diagonal - width + 1), min(height, diagonal + 1))
        corners = [(place * size, (diagonal - place) * size) for place in places]
        blocks = [(slice(i, min(i + size, out)), slice(j, min(j + size, n))) for i, j in corners]
        found = _blocks(
            _stacked([w[:, i, j] for i, j in blocks], size),
            _stacked([r[j, j].expand(count, -1, -1) for _, j in blocks], size, diagonal=1.0),
            _stacked([s[i, i].expand(count, -1, -1) for i, _ in blocks], size, diagonal=1.0),
            _stacked([lost[:, i, : j.start] @ r[: j.start, j] for i, j in blocks], size),
            _stacked([s[: i.start, i].T @ carried[:, : i.start, j] for i, j in blocks], size),
        )
        for (i, j), *parts in zip(blocks, *(part.split(count) for part in found), strict=True):
            for target, part in zip((codes, lost, carried), parts, strict=True):
                target[:, i, j] = part[:, : i.stop - i.start, : j.stop - j.start]
    return codes


def _stacked(parts: list[torch.Tensor], size: int, diagonal: float = 0.0) -> torch.Tensor:
    """[k · len(parts), size, size] of parts [k, ...]: what is missing at the edges is 0, on the diagonal `diagonal`."""
    stacked = parts[0].new_zeros(len(parts), len(parts[0]), size, size)
    stacked.diagonal(dim1=2, dim2=3).fill_(diagonal)
    for target, part in zip(stacked, parts, strict=True):
        target[:, : part.shape[1], : part.shape[2]] = part
    return stacked.flatten(0, 1)


def _blocks(
    w: torch.Tensor, r: torch.Tensor, s: torch.Tensor, left: torch.Tensor, above: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, D and D R of blocks [any number, b, b] that do not depend on each other.

    left: Σ D_ik R_kj over the columns before the block. above: Σ S_li (D R)_lj / S_ii over the rows before it. With the
    columns the other way round, what is done at once lies on a diagonal.
    """
    b = w.shape[1]
    w, r, left, above = w.flip(2), r.flip(1, 2), left.flip(2), above.flip(2).transpose(1, 2).contiguous()
    steps = r.diagonal(dim1=1, dim2=2)
    codes = torch.empty(w.shape, dtype=FP8, device=w.device)
    lost, carried = torch.empty_like(w), torch.empty_like(w)
    for offset in range(b - 1, -b, -1):
        rows, columns = slice(max(0, -offset), min(b, b - offset)), slice(max(0, offset), min(b, b + offset))
        weights, before, step = _diagonal(w, offset), _diagonal(left, offset), steps[:, columns]
        code = saturating_cast(weights - (before + _diagonal(above, -offset)) / step)
        d = code.to(weights.dtype) - weights
        a = before + d * step
        for target, values in ((codes, code), (lost, d), (carried, a)):
            _diagonal(target, offset).copy_(values)
        left[:, rows] += d.unsqueeze(2) * r[:, columns]
        above[:, columns] += a.unsqueeze(2) * s[:, rows]
    return codes.view(torch.uint8).flip(2).view(FP8), lost.flip(2), carried.flip(2)


def _diagonal(blocks: torch.Tensor, offset: int) -> torch.Tensor:
    return blocks.diagonal(offset, dim1=1, dim2=2)
