"""Muon in float32: torch.optim.Muon orthogonalises in bfloat16, which on a CPU without matrix units for that takes
several times as long as all the rest of a step."""

import torch

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the quintic iteration, from https://kellerjordan.github.io/posts/muon/."""
ITERATIONS = 5


def orthogonalised(matrices):
    """About U Vᵀ of each matrix U S Vᵀ of a stack [B, m, n]."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Updates of the size that AdamW's have at the same rate (0.2 √max(m, n) times an orthogonal matrix)."""

    def __init__(self, matrices, lr, weight_decay):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for matrix in group["params"]:
                by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, alike in by_shape.items():
                updates = orthogonalised(torch.stack([self._nesterov(matrix) for matrix in alike]))
                for matrix, update in zip(alike, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(update, alpha=-0.2 * max(shape) ** 0.5 * group["lr"])

    def _nesterov(self, matrix):
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        state["momentum"].lerp_(matrix.grad, 1 - MOMENTUM)
        return matrix.grad.lerp(state["momentum"], MOMENTUM)
