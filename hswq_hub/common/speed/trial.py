"""What this machine can do, from short trials: medians after a warm-up."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

from ..targets import nearest_existing

_HEAD = 64
_WIDEST, _MOST_TOKENS = 2048, 1024
"""What a trial is cut to: wider and longer products are about as fast."""
_SECONDS, _RUNS = 0.3, 5
_BYTES = 1 << 25
_SMALL, _SQUARE = 64, 768


class _Block(nn.Module):
    """A transformer block as diffusion models have them: normed, with rotated queries and keys, and a gated MLP."""

    def __init__(self, width: int):
        super().__init__()
        hidden = 8 * width // 3
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(4))
        self.of_heads = nn.ModuleList(nn.RMSNorm(_HEAD) for _ in range(2))
        self.attention = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(4))
        self.mlp = nn.ModuleList(nn.Linear(*sizes, bias=False) for sizes in ((width, hidden),) * 2 + ((hidden, width),))

    def forward(self, x: torch.Tensor, scale: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        y = self.norms[0](x) * scale
        q, k, v = (layer(y).unflatten(-1, (-1, _HEAD)) for layer in list(self.attention)[:3])
        q, k = (_rotated(norm(one), rotation) for norm, one in zip(self.of_heads, (q, k), strict=True))
        q, k, v = (one.transpose(1, 2) for one in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + scale * self.norms[1](self.attention[3](y))
        y = self.norms[2](x) * scale
        out: torch.Tensor = x + scale * self.norms[3](self.mlp[2](F.silu(self.mlp[0](y)) * self.mlp[1](y)))
        return out


def _rotated(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    turned = torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * rotation
    return torch.view_as_real(turned).flatten(3).to(x.dtype)


@torch.no_grad()
def block_rate(width: int, tokens: int, device: str, dtype: torch.dtype) -> float:
    """Operations a second of a transformer block, about `width` wide, that sees `tokens` tokens."""
    width = max(_HEAD, min(width, _WIDEST) // _HEAD * _HEAD)
    tokens = max(1, min(tokens, _MOST_TOKENS))
    block = _Block(width).to(device, dtype)
    x, scale = (torch.ones(1, n, width, device=device, dtype=dtype) for n in (tokens, 1))
    rotation = torch.ones(1, tokens, 1, _HEAD // 2, device=device, dtype=torch.complex64)
    flops = 2.0 * tokens * sum(p.numel() for p in block.parameters() if p.ndim > 1) + 4.0 * tokens**2 * width
    return flops / _timed(lambda: block(x, scale, rotation).sum().item())


@torch.no_grad()
def double_rate(device: str) -> float:
    """Operations a second of a product in float64."""
    matrix = torch.ones(_SQUARE, _SQUARE, device=device, dtype=torch.float64)
    return 2.0 * _SQUARE**3 / _timed(lambda: (matrix @ matrix)[0, 0].item())


@torch.no_grad()
def launch_seconds(device: str) -> float:
    """Seconds of one operation that has next to nothing to compute."""
    many = 200
    small = torch.ones(_SMALL, _SMALL, device=device)

    def run() -> None:
        for _ in range(many):
            small.mul(1.0)
        small[0, 0].item()

    return _timed(run) / many


@torch.no_grad()
def value_seconds(device: str) -> float:
    """Seconds that a few small operations take for one value, which wait for the memory."""
    values = torch.ones(_SQUARE, _SQUARE, device=device)

    def run() -> None:
        values.abs().mean(0, dtype=torch.float64)
        values.square().sum(-1, dtype=torch.float64)[0].item()

    return _timed(run) / values.numel()


def disk_rate(place: Path) -> float:
    """Bytes a second that the disk under `place` takes."""
    data = os.urandom(_BYTES)
    with tempfile.TemporaryFile(dir=nearest_existing(place)) as file:

        def write() -> None:
            file.seek(0)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

        write()
        start = time.perf_counter()
        write()
        return len(data) / (time.perf_counter() - start)


@torch.no_grad()
def host_rate(device: str) -> float:
    """Bytes a second from the memory of this machine, page-locked for a GPU, to that of the device."""
    data = torch.zeros(_BYTES, dtype=torch.uint8, pin_memory=device == "cuda")
    return _BYTES / _timed(lambda: data.to(device, copy=True)[0].item())


def _timed(run: Callable[[], object]) -> float:
    """The median seconds of `run`, which waits for the device; the first two runs do not count."""
    run()
    run()
    taken: list[float] = []
    while len(taken) < _RUNS or sum(taken) < _SECONDS:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return median(taken)
