"""What a checkpoint is and what quantizing it would take, from its header alone."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hswq_runtime.architectures import base_named
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.formats import Format, Metadata
from hswq_runtime.text import shown

from ..calibration.calibrate import steps_made
from ..common.hardware import describe, pick_device, pick_dtype
from ..common.speed.trial import block_rate
from ..common.text import megabytes, roughly
from ..generation.cost import DenoiserCost, denoiser_cost
from ..quantization.choices.keep import keep_ratio, settled, size_range
from ..settings import CALIBRATION_MEMORY, DEFAULT_RECIPE, RECIPES, CalibrationSettings, Recipe, SourceSettings
from ..sources.find import find
from ..sources.listing import Listing

_LISTED = 100
"""Lines under one heading. Only files that nobody would quantize have more."""
_METADATA = 30
"""Entries of the metadata that are shown, ours before others."""
_OURS = {entry.value for entry in Metadata}


@dataclass(frozen=True)
class Inspection:
    """Facts of one file.

    variant: the model that its components are of, where several have the same keys. format: "V1", "V2", "INT8", "FP8"
    (cast without our metadata) or "full precision". scaled_inputs: layers with a scale for their inputs. parts: values
    by part of the file; dtypes: values of the denoiser by safetensors dtype. never_quantized: layer -> why. kept:
    recipe -> what stays in full precision besides. sizes: recipe and format -> bytes of the file, at least and at most.
    Both are empty for a file that is quantized already. size, steps: of a picture, by default. call: of the denoiser,
    for such a picture; passes: how many in a step. config: of the denoiser; guess: what of it is guessed, unless the
    base says otherwise; None: the file states it. bundled: the components that the file holds besides the denoiser.
    scheduler: what it says of its scheduler's configuration. metadata: all entries of the header.
    """

    file: str
    file_bytes: int
    architecture: str
    variant: str
    licence: str
    prefix: str
    format: str
    parts: dict[str, int]
    dtypes: dict[str, int]
    layers: int
    quantized_layers: int
    scaled_inputs: int
    never_quantized: dict[str, str]
    kept: dict[str, str]
    sizes: dict[tuple[str, str], tuple[int, int]]
    size: int
    steps: int
    call: DenoiserCost
    passes: int
    config: dict[str, object]
    guess: str | None
    bundled: list[str]
    scheduler: dict[str, object]
    metadata: dict[str, str]

    @property
    def parameters(self) -> int:
        """Values of the denoiser."""
        return sum(self.dtypes.values())

    def lines(self, device: str = "auto") -> list[str]:
        """All of it, as people read it on a terminal. `device`: where a product is timed, for what quantizing takes."""
        return [
            f"{shown(self.file)}: {self.variant}, {self.format}, {megabytes(self.file_bytes)}",
            *_column("parameters", [f"{_millions(self.parameters)} in the denoiser ({self._precision()})"]),
            *_column("parts", (f"{shown(part)}: {_millions(values)}" for part, values in self.parts.items())),
            *_column("layers", self._layer_lines()),
            *(_column("holds too", [", ".join(self.bundled)]) if self.bundled else ()),
            *(_column("scheduler", [_settings(self.scheduler)]) if self.scheduler else ()),
            *_column("never 8-bit", (f"{shown(layer)}: {reason}" for layer, reason in self.never_quantized.items())),
            *_column("kept", (f"recipe {recipe}: {what}" for recipe, what in self.kept.items())),
            *_column("prefix", [self.prefix or "none"]),
            *_column("licence", [f"{self.licence}, of the original that this architecture is from"]),
            *_column("sizes", (_size_line(*item) for item in self.sizes.items())),
            *(self._cost_lines(device) if self.sizes else ()),
            *_column("config", [_settings(self.config), *([f"a guess: {self.guess}"] if self.guess else ())]),
            *_column(
                "metadata", (f"{shown(name, 60)}: {shown(value)}" for name, value in self._ours_first()), _METADATA
            ),
        ]

    def _layer_lines(self) -> list[str]:
        lines = [f"{self.layers} linear or convolution, {self.quantized_layers} of them quantized"]
        if self.scaled_inputs:
            lines.append(f"{self.scaled_inputs} with a scale for their inputs, to multiply in FP8 on GPUs that can")
        return lines

    def _ours_first(self) -> list[tuple[str, str]]:
        """The entries of the metadata by name, those that this project writes before all others."""
        return sorted(self.metadata.items(), key=lambda entry: (entry[0] not in _OURS, entry[0]))

    def _precision(self) -> str:
        return ", ".join(f"{dtype} {values / self.parameters:.0%}" for dtype, values in self.dtypes.items())

    def _cost_lines(self, name: str) -> list[str]:
        """What quantizing takes on a device: memory for the denoiser, time for the calibration."""
        device = pick_device(name)
        dtype, calibration = (
            pick_dtype("auto", device),
            CalibrationSettings(whole=RECIPES[DEFAULT_RECIPE].wants_statistics),
        )
        most, steps = calibration.steps_of(self.steps), sum(steps_made(calibration, self.steps))
        rate = block_rate(self.call.width, round(self.call.tokens), device.type, dtype)
        seconds = steps * self.passes * self.call.flops / rate
        return [
            *_column(
                "memory",
                [
                    f"{megabytes(self.parameters * dtype.itemsize)} for the denoiser in {str(dtype)[6:]}, on top text "
                    f"encoders and VAE while it makes pictures, then second moments, {CALIBRATION_MEMORY:g} GB at "
                    "most, and what rounding works with"
                ],
            ),
            *_column(
                "time",
                [
                    f"{roughly(seconds)} to calibrate with {calibration.samples} pictures of {self.size} pixels a side "
                    f"in {most} steps at most, before any rounding, on {describe(device)}, an estimate from a short "
                    "trial"
                ],
            ),
        ]


def inspect(reference: str | Path, civitai_endpoint: str | None = None) -> Inspection:
    """What `reference` (see :mod:`hswq_hub.sources.reference`) leads to. Of a remote file only the header is fetched.

    Raises:
        SourceError: there is no such model, or it cannot be had.
        FormatError: not a complete safetensors file, or it does not fit its architecture.
        UnknownArchitectureError: its keys match no architecture that we know.
    """
    found = find(str(reference), SourceSettings(civitai_endpoint=civitai_endpoint))
    with found.header() as path:
        return _inspection(Checkpoint(path), found.listing)


def _inspection(checkpoint: Checkpoint, listing: Listing | None) -> Inspection:
    architecture = checkpoint.architecture
    base = listing and (listing.base or base_named(architecture, listing.provenance.base_model))
    model = architecture.with_base(base or checkpoint.metadata.get(Metadata.BASE.value, ""))
    dtypes: Counter[str] = Counter()
    for info in (checkpoint.tensors[key] for key in checkpoint.modules):
        dtypes[info.dtype] += info.values
    reasons = {checkpoint.layer(key): checkpoint.why_never_quantized(key) for key in checkpoint.layers}
    if checkpoint.format is not None:
        kind = checkpoint.format.label
    else:
        kind = (
            " and ".join(sorted({weight.number.name for weight in checkpoint.quantized.values()})) or "full precision"
        )
    return Inspection(
        file=checkpoint.path.name,
        file_bytes=checkpoint.path.stat().st_size,
        architecture=architecture.title,
        variant=model.title,
        licence=model.licence_name or model.licence,
        prefix=checkpoint.prefix,
        format=kind,
        parts=_parts(checkpoint),
        dtypes=dict(dtypes),
        layers=len(checkpoint.layers),
        quantized_layers=len(checkpoint.quantized),
        scaled_inputs=sum(bool(weight.input_scale_keys) for weight in checkpoint.quantized.values()),
        never_quantized={layer: reason for layer, reason in reasons.items() if reason is not None},
        kept={} if checkpoint.quantized else {recipe.name: _kept(checkpoint, recipe) for recipe in RECIPES.values()},
        sizes={} if checkpoint.quantized else _sizes(checkpoint, RECIPES.values()),
        size=model.size,
        steps=model.steps,
        call=denoiser_cost(checkpoint, model.size),
        passes=model.passes(),
        config=checkpoint.config,
        guess=checkpoint.guess,
        bundled=sorted(checkpoint.bundled),
        scheduler=checkpoint.scheduler,
        metadata=checkpoint.metadata,
    )


def _parts(checkpoint: Checkpoint) -> dict[str, int]:
    """Values by kind of block, of the rest of the denoiser, and of the other components in the file; largest first."""
    values: Counter[str] = Counter()
    blocks: dict[str, set[str]] = {}
    denoiser = checkpoint.denoiser_tensors
    for key, info in checkpoint.tensors.items():
        if key not in denoiser:
            values[_component(key)] += info.values
            continue
        block = re.match(r"(\w+)\.(\d+)\.", key.removeprefix(checkpoint.prefix))
        part = block[1] if block else "around the blocks"
        blocks.setdefault(part, set()).update([block[2]] if block else [])
        values[part] += info.values
    return {f"{part} x {len(blocks[part])}" if blocks.get(part) else part: n for part, n in values.most_common()}


def _component(key: str) -> str:
    """What a key outside of the denoiser belongs to, by what it begins with."""
    return key.split(".", 1)[0]


def _kept(checkpoint: Checkpoint, recipe: Recipe) -> str:
    """What a recipe chooses, in words: which layers these are, calibration finds out."""
    budget = settled(recipe, checkpoint, Format).budget
    if budget is not None:
        return f"what costs the pictures most, until the denoiser takes {100 * budget:.4g}% of its size in 16 bits"
    possible = sum(checkpoint.why_never_quantized(key) is None for key in checkpoint.layers)
    return f"{round(keep_ratio(checkpoint, recipe) * possible)} of {possible} layers, those whose outputs vary most"


def _sizes(checkpoint: Checkpoint, recipes: Iterable[Recipe]) -> dict[tuple[str, str], tuple[int, int]]:
    return {
        (recipe.name, format.label): size_range(checkpoint, format, recipe) for recipe in recipes for format in Format
    }


def _size_line(what: tuple[str, str], size: tuple[int, int]) -> str:
    recipe, format = what
    return f"{format}, recipe {recipe}: {megabytes(size[0])} to {megabytes(size[1])}, by what is kept"


def _column(name: str, lines: Iterable[str], most: int = _LISTED) -> list[str]:
    """The lines under a heading: the first `most` of them, and how many were left out."""
    rest = iter(lines)
    found = [f"  {name if i == 0 else '':<12}{line}" for i, line in enumerate(itertools.islice(rest, most))]
    left = sum(1 for _ in rest)
    return found + ([f"  {'':<12}and {left} more"] if left else [])


def _settings(values: Mapping[str, object]) -> str:
    return ", ".join(f"{shown(name)} {shown(value)}" for name, value in values.items())


def _millions(values: int) -> str:
    return f"{values / 1e9:.2f} billion" if values >= 1e9 else f"{values / 1e6:.1f} million"
