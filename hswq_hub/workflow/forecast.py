"""Estimates how long steps take: from a machine's rates, corrected by what earlier steps took on this one.

The number of denoiser calls, operations and bytes moved is known for each step. Rates come from short trials, or for a
GPU that is not here from its published figures. What steps on this model took here, over what was foretold of them,
corrects the rest, also while a run goes on.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache, cached_property
from pathlib import Path
from statistics import median

import torch
from safetensors import safe_open

from ..common.hardware import dtype_named
from ..common.speed.rates import Rates, TrialRates
from ..generation.cost import (
    DenoiserCost,
    call_values,
    denoiser_cost,
    picture_values,
    pixels_a_token,
    vae_flops,
)
from ..generation.generate import GenerationSettings
from ..generation.placement import Sizes, blocks_share
from ..settings import PublishSettings
from ..sources.components import local_files
from ..sources.diffusers_folder import WEIGHTS
from ..sources.source import Source
from .steps import PRODUCT_RECORD, Made, Step, Work

_TELLING = 1.0
"""Seconds from which on a step's time says something of the next one's."""
_BESIDE, _AROUND = 15, 8000
"""Small operations beside each layer of the denoiser, and around a picture: scheduler, text encoder, VAE."""
_VAE = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
"""Of the VAE of nearly all models, for one that is not known."""


class Forecast:
    """Estimates for the steps of `source` with `settings`, settled ones, whose products are in `place`.

    rates: of another machine, to which what steps took here says nothing; None: of this one.
    """

    def __init__(self, source: Source, settings: PublishSettings, place: Path, rates: Rates | None = None):
        self._source, self._place, self._device = source, place, settings.calibration.device
        self._elsewhere = rates is not None
        self._rates = rates or TrialRates(self._device, dtype_named(settings.calibration.dtype), place)
        self._size = usual_size(source)

    @property
    def basis(self) -> str:
        """What it rests on, in a phrase."""
        return "earlier steps on this model" if self._correction({}) is not None else self._rates.basis

    @cached_property
    def _made(self) -> list[Made]:
        if self._elsewhere:
            return []
        found = (Made.read(record.parent) for record in self._place.glob(f"*/{PRODUCT_RECORD}"))
        here = (made for made in found if made is not None and made.work.device == self._device)
        return sorted(here, key=lambda made: -made.finished)

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
        """By the rates alone, as if nothing of it were done beside something else."""
        size, rates = work.size or self._size, self._rates
        flops = work.flops + work.pictures * vae_flops(usual_vae(self._source), size)
        launches = work.launches + work.pictures * _AROUND
        parts: tuple[tuple[float, Callable[[], float]], ...] = (
            (work.calls, lambda: self._call(size, work.batch)),
            (flops, lambda: 1 / self._rate(size, 1)),
            (work.double_flops, lambda: 1 / rates.double),
            (launches, lambda: rates.launch),
            (work.values, lambda: rates.value),
            (work.moved, lambda: 1 / rates.disk),
            (work.streamed, lambda: 1 / rates.host),
        )
        # What there is none of needs no trial.
        return max(sum(amount * seconds() for amount, seconds in parts if amount), 1e-3)

    def _call(self, size: int, batch: int) -> float:
        cost = self._cost(size)
        return batch * cost.flops / self._rate(size, batch) + _BESIDE * cost.layers * self._rates.launch

    def _rate(self, size: int, batch: int) -> float:
        cost = self._cost(size)
        return self._rates.block(cost.width, round(cost.tokens * batch))

    @cache  # noqa: B019 (a forecast lives as long as its run)
    def _cost(self, size: int) -> DenoiserCost:
        return cost_of(self._source, size)


def usual_vae(source: Source) -> dict[str, object]:
    """The configuration of the VAE; where it is not known, that of nearly all models."""
    return _VAE | source.vae


def usual_size(source: Source) -> int:
    """Pixels a side of its pictures if nobody says, see `GenerationSettings.of`."""
    return GenerationSettings.of(source.architecture, source.vae).size


def cost_of(source: Source, size: int) -> DenoiserCost:
    """:func:`denoiser_cost` with the VAE of `source`, which says how many pixels a latent value stands for."""
    return denoiser_cost(source.checkpoint, size, pixels_a_token(usual_vae(source)))


def sizes_of(source: Source, dtype: str, size: int | None) -> Sizes:
    """What :func:`hswq_hub.generation.placement.sizes_of` finds of the pipeline, known from headers. Components that
    are in a Hub repo are not among them."""
    word, checkpoint = dtype_named(dtype).itemsize, source.checkpoint
    size = size or usual_size(source)
    denoiser = word * sum(info.values for info in checkpoint.denoiser_tensors.values())
    components: dict[str, int] = {}
    for path in [] if source.hub_base else local_files(source):
        name = path.relative_to(source.base).parts[0]
        components[name] = components.get(name, 0) + word * _values(path)
    return Sizes(
        denoiser=denoiser,
        blocks=round(blocks_share(checkpoint.empty_model(constants=False)) * denoiser),
        components={name: values for name, values in components.items() if values},
        call=word * call_values(cost_of(source, size)),
        picture=word * picture_values(usual_vae(source), size),
    )


def _values(path: Path) -> int:
    """How many values a safetensors file holds; 0 for any other file."""
    if path.suffix != WEIGHTS:
        return 0
    with safe_open(str(path), framework="numpy") as file:
        return sum(torch.Size(file.get_slice(key).get_shape()).numel() for key in file.offset_keys())
