"""One layer to round: a weight, the second moment of its inputs, its scale."""

import torch

from hswq_hub.quantization.compensate import Form


def case(seed: int, rows=24, n=40, tokens=64):
    """A weight [rows, n] of the size that real ones have, and the second moment of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, 8, generator=generator) @ torch.randn(8, n, generator=generator)
    x = (mixed + 0.3 * torch.randn(tokens, n, generator=generator)).double()
    return torch.randn(rows, n, generator=generator) * 0.02, x.T @ x / tokens


def form(weight, scale=None) -> Form:
    """A weight as it is rounded to FP8; None: without a scale."""
    return Form(weight, torch.ones(1) if scale is None else scale)


def scale_of(weight, kind):
    if kind == "v1":
        return None
    return weight.abs().amax().reshape(1) / 448 if kind == "v2" else weight.abs().amax(dim=1, keepdim=True) / 448
