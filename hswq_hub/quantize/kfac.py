"""Compensated rounding that knows what becomes of a layer's outputs.

For a layer y = W x of a model, with D = Ŵ − W, H = E[xxᵀ] and G = E[ggᵀ], g the derivative of the model's output by y,
the expected squared change of the model's output is, as far as x and g are independent,

    tr(G D H Dᵀ)

the Kronecker-factored curvature of K-FAC (Martens and Grosse, "Optimizing neural networks with Kronecker-factored
approximate curvature", 2015), which Tseng et al. ("Model-preserving adaptive rounding", 2025) round by. GPTQ, for
which every output counts alike, is the case G = 1.

With H = R Rᵀ and G = S Sᵀ, both upper triangular, that is ‖Sᵀ D R‖²; element (i, j) of Sᵀ D R is

    S_ii R_jj D_ij + S_ii Σ_{k<j} D_ik R_kj + Σ_{l<i} S_li Σ_{k≤j} D_lk R_kj

So going from element to element, each D_ij is chosen such that its own is as near to zero as the grid allows: what rows
and columns before it lost is made up for. Rows and columns with the largest diagonals go first. An element needs
those above and to the left of it, so all of a diagonal i + j are done at once; blocks likewise, and what blocks before
one did comes in as matrix products.
"""

import torch

from hswq_runtime.fp8 import FP8

from .gptq import damped, round_to_grid, upper_factor

_BLOCK = 64


def compensated_both_ways(
    weight: torch.Tensor,
    inputs: torch.Tensor,
    outputs: torch.Tensor,
    scale: torch.Tensor | None = None,
    *,
    damping: float = 0.003,
    output_damping: float = 0.03,
) -> torch.Tensor:
    """FP8 codes [out, n] for `weight` [out, n], on its device.

    inputs, outputs: H [n, n] and G [out, out], each of any positive multiple. scale: None (1), [1] or [out, 1].
    damping, output_damping: shares of the means of their diagonals that are added to these.
    """
    h = damped(inputs.to(weight.device, torch.float64), damping)
    g = damped(outputs.to(weight.device, torch.float64), output_damping)
    columns = h.diagonal().argsort(descending=True, stable=True)
    rows = g.diagonal().argsort(descending=True, stable=True)
    r, s = upper_factor(h[columns][:, columns]), upper_factor(g[rows][:, rows])
    if scale is not None:
        scale = scale.reshape(-1, 1).expand(len(weight), 1)[rows]
    codes = _feedback(weight.to(torch.float64)[rows][:, columns], r, s, scale)
    result = torch.empty_like(codes)
    result.view(torch.uint8)[rows.unsqueeze(1), columns] = codes.view(torch.uint8)
    return result


def curved_error(difference: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor) -> float:
    """tr(G D H Dᵀ) in float64: what :func:`compensated_both_ways` makes small. `difference`: D, [out, n]."""
    d = difference.double()
    return ((outputs.double() @ d @ inputs.double()) * d).sum().item()


def _feedback(w: torch.Tensor, r: torch.Tensor, s: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """Codes of `w` [out, n], all float64 but `scale` [out, 1]."""
    out, n = w.shape
    codes = torch.empty(w.shape, dtype=FP8, device=w.device)
    lost, carried = torch.zeros_like(w), torch.zeros_like(w)  # D, and D R
    row_blocks, column_blocks = range(0, out, _BLOCK), range(0, n, _BLOCK)
    for diagonal in range(len(row_blocks) + len(column_blocks) - 1):
        first = max(0, diagonal - len(column_blocks) + 1)
        corners = [
            (top, column_blocks[diagonal - place])
            for place, top in enumerate(row_blocks[first : diagonal + 1], start=first)
        ]
        blocks = [(slice(i, min(i + _BLOCK, out)), slice(j, min(j + _BLOCK, n))) for i, j in corners]
        from_left = _stack([lost[i, : j.start] @ r[: j.start, j] for i, j in blocks])
        from_above = _stack([s[: i.start, i].T @ carried[: i.start, j] for i, j in blocks])
        found = _blocks(
            _stack([w[i, j] for i, j in blocks]),
            _stack([r[j, j] for _, j in blocks], diagonal=True),
            _stack([s[i, i] for i, _ in blocks], diagonal=True),
            from_left,
            from_above,
            None if scale is None else _stack([scale[i] for i, _ in blocks], padding=1.0, columns=1),
        )
        for (i, j), code, d, a in zip(blocks, *found, strict=True):
            height, width = i.stop - i.start, j.stop - j.start
            codes[i, j], lost[i, j], carried[i, j] = code[:height, :width], d[:height, :width], a[:height, :width]
    return codes


def _stack(
    parts: list[torch.Tensor], *, padding: float = 0.0, columns: int | None = None, diagonal: bool = False
) -> torch.Tensor:
    """[len(parts), _BLOCK, columns, or as many]: what is missing at the edges is `padding`; diagonal: 1 on that."""
    stacked = parts[0].new_full((len(parts), _BLOCK, columns or _BLOCK), padding)
    if diagonal:
        stacked.diagonal(dim1=1, dim2=2).fill_(1.0)
    for target, part in zip(stacked, parts, strict=True):
        target[: part.shape[0], : part.shape[1]] = part
    return stacked


def _blocks(
    w: torch.Tensor,
    r: torch.Tensor,
    s: torch.Tensor,
    left: torch.Tensor,
    above: torch.Tensor,
    scale: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, D and D R of blocks [k, b, b] that do not depend on each other.

    left: Σ D_ik R_kj over the columns before the block; above: Σ S_li (D R)_lj over the rows before it; both are used
    up. Diagonals are slices of what is stored by ascending rows and descending columns.
    """
    b = w.shape[1]
    codes = torch.empty(w.shape, dtype=FP8, device=w.device)
    lost, carried = torch.empty_like(w), torch.empty_like(w)
    r_down, above_down = r.flip(1), above.transpose(1, 2).flip(1).contiguous()
    r_diagonal, s_diagonal = r.diagonal(dim1=1, dim2=2), s.diagonal(dim1=1, dim2=2)
    for diagonal in range(2 * b - 1):
        i = torch.arange(max(0, diagonal - b + 1), min(b, diagonal + 1), device=w.device)
        j = diagonal - i
        down = slice(max(0, b - 1 - diagonal), min(b, 2 * b - 1 - diagonal))
        rows = slice(max(0, diagonal - b + 1), min(b, diagonal + 1))
        step = r_diagonal[:, j]
        ahead = left[:, i, j] + above_down[:, b - 1 - j, i] / s_diagonal[:, rows]
        wanted = (w[:, i, j] - ahead / step).reshape(-1, 1)
        code, value = round_to_grid(wanted, None if scale is None else scale[:, rows].reshape(-1, 1))
        code, value = code.reshape(ahead.shape), value.reshape(ahead.shape)
        d = value - w[:, i, j]
        a = left[:, i, j] + d * step
        codes.view(torch.uint8)[:, i, j], lost[:, i, j], carried[:, i, j] = code.view(torch.uint8), d, a
        left[:, rows] += d.unsqueeze(2) * r_down[:, down]
        above_down[:, down] += a.unsqueeze(2) * s[:, rows]
    return codes, lost, carried
