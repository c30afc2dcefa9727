"""Compensated rounding: chooses FP8 codes that minimise the error of a layer's output instead of that of each weight.

For a layer y = W x the expected squared error of the outputs is, with D = Ŵ − W and H = E[xxᵀ],

    E‖Dx‖² = Σ_rows  d H dᵀ

Rounding each weight to nearest minimises the diagonal of H alone. Here, as in GPTQ (Frantar et al., "GPTQ:
accurate post-training quantization for generative pre-trained transformers", 2022), columns are rounded one after
another, and the columns still to come compensate the error of those before. With H = R Rᵀ, R upper triangular, and
U = R⁻¹ (so that H⁻¹ = Uᵀ U) the error of column j, divided by U_jj, is taken off each later column k times U_jk.

After that, sweeps of coordinate descent: with all other columns as they are, the best code for column j is that
nearest to w_j − Σ_{k≠j} D_k H_kj / H_jj. No step can make the error larger; sweeps end when nothing changes.

H is damped, as it may be singular: a share of its mean diagonal is added to the diagonal. The columns with the
largest diagonal go first, while there is still most left to compensate with. Rows are independent of each other
and are all done at once; columns go in blocks, so that most of the work is matrix products.
"""

import torch

from hswq_runtime.formats import Number
from hswq_runtime.layers.numbers import NUMBERS

_BLOCK = 128


def compensated(
    weight: torch.Tensor,
    moment: torch.Tensor,
    scale: torch.Tensor | None = None,
    *,
    number: Number = Number.FP8,
    damping: float = 0.01,
    sweeps: int = 0,
    block: int = _BLOCK,
) -> torch.Tensor:
    """Codes [out, n] for `weight` [out, n], on its device.

    moment: E[xxᵀ] of the inputs, [n, n], up to a positive factor. scale: None (1), [1] or [out, 1]. number: of the
    codes. damping: share of the mean of H's diagonal that is added to it. sweeps: of coordinate descent, at most.
    block: columns that are rounded before the others are updated; it changes the speed alone.
    """
    w = weight.to(torch.float64)
    h = damped(moment.to(w.device, torch.float64), damping)
    order = h.diagonal().argsort(descending=True, stable=True)
    w, h = w[:, order], h[order.unsqueeze(1), order]
    codes = _feedback(w, h, scale, block, number)
    for _ in range(sweeps):
        if not _sweep(w, h, codes, scale, block, number):
            break
    result = torch.empty_like(codes)
    result.view(torch.uint8)[:, order] = codes.view(torch.uint8)
    return result


def damped(h: torch.Tensor, damping: float) -> torch.Tensor:
    """A second moment [n, n] made positive definite: `damping` times the mean of its diagonal is added to the
    diagonal."""
    mean = h.diagonal().mean()
    if mean <= 0:  # nothing ever came in: any rounding is as good, and that to nearest is what identity gives
        return torch.eye(len(h), dtype=h.dtype, device=h.device)
    h = h.clone()
    h.diagonal().add_(damping * mean)
    return h


def upper_factor(h: torch.Tensor) -> torch.Tensor:
    """R, upper triangular, with h = R Rᵀ: the Cholesky factor of `h` with rows and columns reversed."""
    factor: torch.Tensor = torch.linalg.cholesky(h.flip(0, 1))
    return factor.flip(0, 1)


def conditional_variances(h: torch.Tensor, damping: float) -> torch.Tensor:
    """What a squared error in each column costs once later columns compensate it, float64 [n]: the squared diagonal of
    R, for a second moment [n, n] that is damped and whose columns are rounded in order."""
    h = damped(h.to(torch.float64), damping)
    order = h.diagonal().argsort(descending=True, stable=True)
    costs = torch.empty(len(h), dtype=torch.float64, device=h.device)
    costs[order] = upper_factor(h[order.unsqueeze(1), order]).diagonal().square()
    return costs


def _round(column: torch.Tensor, scale: torch.Tensor | None, number: Number) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of a [out, 1] float64 column, and the values they stand for."""
    unit = torch.ones(1, device=column.device) if scale is None else scale
    codes = NUMBERS[number].cast(column.float() / unit)
    return codes, (codes.float() * unit).double()


def _feedback(
    w: torch.Tensor, h: torch.Tensor, scale: torch.Tensor | None, together: int, number: Number
) -> torch.Tensor:
    n = len(h)
    u = torch.linalg.solve_triangular(upper_factor(h), torch.eye(n, dtype=h.dtype, device=h.device), upper=True)
    w = w.clone()
    codes = torch.empty(w.shape, dtype=NUMBERS[number].dtype, device=w.device)
    for start in range(0, n, together):
        stop = min(start + together, n)
        block, lost = w[:, start:stop], torch.empty_like(w[:, start:stop])
        for i in range(stop - start):
            j = start + i
            column = block[:, i : i + 1]
            codes[:, j : j + 1], value = _round(column, scale, number)
            lost[:, i : i + 1] = (column - value) / u[j, j]
            block[:, i + 1 :] -= lost[:, i : i + 1] * u[j, j + 1 : stop]
        w[:, stop:] -= lost @ u[start:stop, stop:]
    return codes


def _sweep(
    w: torch.Tensor, h: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor | None, together: int, number: Number
) -> bool:
    """One sweep over all columns, in place; returns whether any code changed."""
    n, changed = len(h), False
    d = (codes.float() if scale is None else codes.float() * scale).double() - w
    for start in range(0, n, together):
        stop = min(start + together, n)
        pull = d @ h[:, start:stop]  # Σ_k D_k H_kj for the columns of the block
        for i in range(stop - start):
            j = start + i
            best = w[:, j : j + 1] + d[:, j : j + 1] - pull[:, i : i + 1] / h[j, j]
            code, value = _round(best, scale, number)
            step = value - w[:, j : j + 1] - d[:, j : j + 1]
            if step.any():
                changed = True
                codes[:, j : j + 1] = code
                d[:, j : j + 1] += step
                pull += step * h[j, start:stop]
    return changed
