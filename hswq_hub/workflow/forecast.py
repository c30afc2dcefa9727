"""Estimates how long steps take: from short trials of this machine, corrected by what earlier steps took.

The number of denoiser calls, operations and bytes moved is known for each step. What a call takes comes from a block
like the model's, as wide and with as many tokens. What steps on this model took here, over what was foretold of them,
corrects the rest, also while a run goes on.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from math import ceil
from pathlib import Path
from statistics import median

import torch

from hswq_runtime.architectures import Architecture
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.checkpoints.configuration import CONFIG
from hswq_runtime.formats import layer_of

from ..common import trial
from ..common.threads import Threads
from ..generation.generate import TOKEN, GenerationSettings
from ..settings import PublishSettings
from ..sources.source import Source
from .steps import PRODUCT_RECORD, Made, Step, Work

_TELLING = 1.0
"""Seconds from which on a step's time says something of the next one's."""
_BESIDE, _AROUND = 15, 8000
"""Small operations beside each layer of the denoiser, and around a picture: scheduler, text encoder, VAE."""
_VAE = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
"""Of the VAE of nearly all models; for a base on the Hub, whose configuration is not fetched for an estimate."""


@dataclass(frozen=True)
class DenoiserCost:
    """The cost of one call of the denoiser for one picture.

    weights: how many it multiplies with. tokens: how many each weight is applied to, in the mean. width: the most
    common number of input channels, counted by weights. attention: operations of the attention. layers: how many.
    """

    weights: int
    tokens: float
    width: int
    attention: float
    layers: int

    @property
    def flops(self) -> float:
        """A product and a sum for each weight and token, and the attention."""
        return 2.0 * self.weights * self.tokens + self.attention


class Forecast:
    """Estimates for the steps of `source` with `settings`, settled ones, whose products are in `place`."""

    def __init__(self, source: Source, settings: PublishSettings, place: Path):
        self._source, self._calibration, self._place = source, settings.calibration, place
        self._size = usual_size(source)

    @cached_property
    def _made(self) -> list[Made]:
        found = (Made.read(record.parent) for record in self._place.glob(f"*/{PRODUCT_RECORD}"))
        here = (made for made in found if made is not None and made.work.device == self._calibration.device)
        return sorted(here, key=lambda made: -made.finished)

    @property
    def is_measured(self) -> bool:
        """Whether it rests on what steps on this model took here, not on a trial alone."""
        return self._correction({}) is not None

    def seconds(self, step: Step) -> float:
        """How long `step` will take."""
        work = step.work()
        before = [made for made in self._made if made.step == step.name and made.work == work]
        if before:
            return before[0].seconds
        return self._foretold(work) * (self._correction({}) or 1.0)

    def left(self, steps: Iterable[Step], taken: Mapping[Step, float]) -> float:
        """How long those of `steps` that are not in `taken` will take, by what those in it took in this run."""
        factor = self._correction(taken) or 1.0
        return sum(self._foretold(step.work()) * factor for step in steps if step not in taken)

    def _correction(self, taken: Mapping[Step, float]) -> float | None:
        """The seconds that steps took over what was foretold: of those in `taken`, else the last ones' on record."""
        known = [(step.work(), seconds) for step, seconds in taken.items()]
        known = known or [(made.work, made.seconds) for made in self._made]
        known = [(work, seconds) for work, seconds in known if seconds >= _TELLING]
        if not known:
            return None
        if taken:
            return sum(seconds for _, seconds in known) / sum(self._foretold(work) for work, _ in known)
        return median(seconds / self._foretold(work) for work, seconds in known)

    def _foretold(self, work: Work) -> float:
        """By the trials alone."""
        size = work.size or self._size
        flops = work.flops + work.pictures * vae_flops(usual_vae(self._source), size)
        launches = work.launches + work.pictures * _AROUND
        parts: tuple[tuple[float, Callable[[], float]], ...] = (
            (work.calls, lambda: self._call(size, work.batch)),
            (flops, lambda: 1 / self._rate(size, 1)),
            (work.double_flops, lambda: 1 / self._double_rate),
            (launches, lambda: self._launch),
            (work.values, lambda: self._value),
            (work.moved, lambda: 1 / self._byte_rate),
        )
        # What there is none of needs no trial.
        return max(sum(amount * seconds() for amount, seconds in parts if amount), 1e-3)

    def _call(self, size: int, batch: int) -> float:
        cost = self._cost(size)
        return batch * cost.flops / self._rate(size, batch) + _BESIDE * cost.layers * self._launch

    @cache  # noqa: B019 (a forecast lives as long as its run)
    def _rate(self, size: int, batch: int) -> float:
        cost, dtype = self._cost(size), getattr(torch, self._calibration.dtype)
        with Threads(2.0 * cost.width**2 * cost.tokens * batch):
            return trial.block_rate(cost.width, round(cost.tokens * batch), self._calibration.device, dtype)

    @cache  # noqa: B019
    def _cost(self, size: int) -> DenoiserCost:
        return cost_of(self._source, size)

    @cached_property
    def _launch(self) -> float:
        return trial.launch_seconds(self._calibration.device)

    @cached_property
    def _value(self) -> float:
        return trial.value_seconds(self._calibration.device)

    @cached_property
    def _double_rate(self) -> float:
        return trial.double_rate(self._calibration.device)

    @cached_property
    def _byte_rate(self) -> float:
        return trial.disk_rate(self._place)


def usual_vae(source: Source) -> dict[str, object]:
    """The configuration of the VAE, of a base on the Hub that of nearly all models."""
    return _VAE | vae_config(source)


def vae_config(source: Source) -> dict[str, object]:
    """The configuration of the VAE in a local base; {} of one on the Hub."""
    config = Path(source.base) / "vae" / CONFIG
    known: dict[str, object] = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return known


def usual_size(source: Source) -> int:
    """Pixels a side of its pictures if nobody says, see `GenerationSettings.of`; of a Hub base the architecture's."""
    return GenerationSettings.of(source.architecture, vae_config(source)).size


def cost_of(source: Source, size: int) -> DenoiserCost:
    """:func:`denoiser_cost` with the VAE of `source`, which says how many pixels a latent value stands for."""
    match usual_vae(source):
        case {"block_out_channels": list(channels)}:
            return denoiser_cost(source.checkpoint, size, 2 ** len(channels))
    return denoiser_cost(source.checkpoint, size)


def denoiser_cost(checkpoint: Checkpoint, size: int, token: int = TOKEN) -> DenoiserCost:
    """What a picture of `size` pixels a side costs, from the shapes of the layers. token: pixels a side of a token, of
    2 x 2 latent values.

    A weight of a transformer sees every token, of the picture and of the text; one of a UNet every place of its level,
    each half as wide and high as the one above. Embedders and modulation are left out: they see the timestep, once a
    call, or are small.
    """
    levels = 1 + max((int(n) for n in re.findall(r"down_blocks\.(\d+)", " ".join(checkpoint.parameters))), default=0)
    architecture = checkpoint.architecture
    weights, places, attention, layers, widths = 0, 0.0, 0.0, 0, Counter[int]()
    for key in checkpoint.layers:
        info, modules = checkpoint.tensors[key], [layer_of(name) for name in checkpoint.modules[key]]
        layers += len(modules)
        if architecture.is_sensitive(modules[0]):
            continue
        found = (
            _tokens(architecture, modules[0], size / token)
            if levels == 1
            else _places(modules[0], 2 * size / token, levels)
        )
        weights, places = weights + info.values, places + info.values * found
        widths[info.values // info.shape[0]] += info.values
        # Queries on keys, then on values. Those of a UNet's second attention are the text's.
        attention += 4.0 * found**2 * info.shape[1] * any(re.search(_ATTENDS, name) for name in modules)
    return DenoiserCost(weights, places / weights, widths.most_common(1)[0][0], attention, layers)


_ATTENDS = r"(?<!attn2)\.to_q$"
"""The module of the queries, one for each attention that a picture's tokens pay to each other."""


def _tokens(architecture: Architecture, module: str, side: float) -> float:
    """Tokens of a picture, `side` tokens wide and high, and of a prompt that a layer of a transformer sees."""
    several = architecture.token_multiple
    picture, text = (ceil(n / several) * several for n in (side**2, architecture.text_tokens))
    if architecture.text_only is not None and re.search(architecture.text_only, module):
        return text
    if architecture.picture_only is not None and re.search(architecture.picture_only, module):
        return picture
    return picture + text


def _places(module: str, side: float, levels: int) -> float:
    """Places of a picture, `side` latent values wide and high, that a layer of a UNet sees."""
    block = re.match(r"(down|up|mid)_block(?:s\.(\d+))?", module)
    number = int(block[2] or 0) if block else 0
    level = {"down": number, "up": levels - 1 - number, "mid": levels - 1}[block[1]] if block else 0
    return float((side / 2**level) ** 2)


def vae_flops(config: dict[str, object], size: int) -> float:
    """Operations of decoding a picture: two 3 x 3 convolutions in each residual block, one more block a level than in
    the encoder, at twice the resolution from level to level."""
    match config:
        case {"block_out_channels": list(channels), "layers_per_block": int(layers)}:
            levels = enumerate(map(float, channels))
            return sum(36.0 * (layers + 1) * c * c * (size / 2.0**level) ** 2 for level, c in levels)
    return 0.0
