"""Estimates how long steps take, from what earlier steps took or from a short trial.

The number of denoiser calls and of bytes moved is known exactly for each step. The time of a call comes from earlier
steps on this model. Without any, one transformer layer of the model's usual width is timed and scaled by parameter
count. The disk is timed by writing a file.
"""

import json
import os
import re
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.formats import layer_of

from ..common.targets import nearest_existing
from ..generation.generate import TOKEN, GenerationSettings
from ..settings import PublishSettings
from ..sources.diffusers_folder import CONFIG
from ..sources.source import Source
from .steps import PRODUCT_RECORD, Made, Step, Work

_LATENT = 8
"""Pixels a side of a latent value."""
_TELLING = 50
"""Calls from which on a step's time says more of calling than of loading."""
_TRIAL_WIDTH, _TRIAL_TOKENS, _TRIAL_SECONDS, _TRIAL_BYTES = 1024, 512, 0.3, 1 << 25


@dataclass(frozen=True)
class DenoiserCost:
    """The cost of one call of the denoiser for one picture.

    weights: how many it multiplies with. tokens: how many each weight is applied to, in the mean. width: the most
    common number of input channels, counted by weights.
    """

    weights: int
    tokens: float
    width: int

    @property
    def flops(self) -> float:
        """A product and a sum for each weight and token; attention is not counted."""
        return 2.0 * self.weights * self.tokens


class Forecast:
    """Estimates for the steps of `source` with `settings`, settled ones, whose products are in `place`."""

    def __init__(self, source: Source, settings: PublishSettings, place: Path):
        self._checkpoint, self._calibration, self._place = source.checkpoint, settings.calibration, place
        self._size = usual_size(source)
        made = (made for made in _records(place) if not made.work.calls or made.work.device == self._calibration.device)
        self._made = sorted(made, key=lambda made: -made.finished)

    @property
    def is_measured(self) -> bool:
        """Whether it rests on what steps on this model took here, not on a trial."""
        return any(made.work.calls >= _TELLING for made in self._made)

    def seconds(self, step: Step) -> float:
        """How long `step` will take."""
        work = step.work()
        before = [made for made in self._made if made.step == step.name and made.work == work]
        if before:
            return before[0].seconds
        return work.calls * self._call_seconds(work) + work.flops / self._flop_rate + work.moved / self._byte_rate

    def _pixels(self, work: Work) -> int:
        return (work.size or self._size) ** 2

    def _call_seconds(self, work: Work) -> float:
        rates = [m.seconds / m.work.calls / self._pixels(m.work) for m in self._made if m.work.calls >= _TELLING]
        if rates:
            return min(rates) * self._pixels(work)
        call = denoiser_cost(self._checkpoint, work.size or self._size)
        return call.flops / self._flop_rate

    @cached_property
    def _flop_rate(self) -> float:
        """Operations a second of a layer like the model's."""
        call = denoiser_cost(self._checkpoint, self._calibration.size or self._size)
        return layer_rate(call, self._calibration.device, getattr(torch, self._calibration.dtype))

    @cached_property
    def _byte_rate(self) -> float:
        return disk_rate(self._place)


def usual_size(source: Source) -> int:
    """Pixels a side of its pictures if nobody says, see `GenerationSettings.of`; of a Hub base the architecture's."""
    config = Path(source.base) / "vae" / CONFIG
    known = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return GenerationSettings.of(source.architecture, known).size


def denoiser_cost(checkpoint: Checkpoint, size: int) -> DenoiserCost:
    """What a picture of `size` pixels a side costs, from the shapes of the layers.

    A weight of a transformer sees every token; one of a UNet every place of its level, each half as wide and high as
    the one above. Embedders and modulation are left out: they see the timestep, once a call, or are small.
    """
    levels = 1 + max((int(n) for n in re.findall(r"down_blocks\.(\d+)", " ".join(checkpoint.parameters))), default=0)
    weights, places, widths = 0, 0.0, Counter[int]()
    for key in checkpoint.layers:
        info, module = checkpoint.tensors[key], layer_of(checkpoint.modules[key][0])
        if checkpoint.architecture.is_sensitive(module):
            continue
        found = _tokens(module, size, levels)
        weights, places = weights + info.values, places + info.values * found
        widths[info.values // info.shape[0]] += info.values
    return DenoiserCost(weights, places / weights, widths.most_common(1)[0][0])


def _tokens(module: str, size: int, levels: int) -> float:
    if levels == 1:
        return (size / TOKEN) ** 2
    block = re.match(r"(down|up|mid)_block(?:s\.(\d+))?", module)
    number = int(block[2] or 0) if block else 0
    level = {"down": number, "up": levels - 1 - number, "mid": levels - 1}[block[1]] if block else 0
    return float((size / _LATENT / 2**level) ** 2)


@torch.no_grad()
def layer_rate(call: DenoiserCost, device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a transformer layer on `device`, about as wide as the model's."""
    width = max(64, min(call.width, _TRIAL_WIDTH) // 64 * 64)
    tokens = max(1, min(round(call.tokens), _TRIAL_TOKENS))
    layer = nn.TransformerEncoderLayer(
        width, width // 64, 4 * width, batch_first=True, device=device, dtype=dtype
    ).eval()
    inputs = torch.zeros(1, tokens, width, device=device, dtype=dtype)
    layer(inputs)
    runs, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < _TRIAL_SECONDS:
        layer(inputs).sum().item()  # which waits for the GPU
        runs += 1
    return runs * 2.0 * tokens * sum(p.numel() for p in layer.parameters() if p.ndim > 1) / passed


def disk_rate(place: Path) -> float:
    """Bytes a second that the disk under `place` takes."""
    data = os.urandom(_TRIAL_BYTES)
    with tempfile.TemporaryFile(dir=nearest_existing(place)) as file:
        start = time.perf_counter()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return len(data) / (time.perf_counter() - start)


def _records(place: Path) -> list[Made]:
    found = (Made.read(record.parent) for record in place.glob(f"*/{PRODUCT_RECORD}"))
    return [made for made in found if made is not None]
