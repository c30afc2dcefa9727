"""The dual monitor: one pass over prompts, two statistics for every Linear and Conv2d of the denoiser.

*Sensitivity* of a layer is the variance of its output, ``Var(Y) = E[Y²] − E[Y]²``, where the expectations are
means over calls of the means within a call. *Importance* of an input channel c is ``I_c = mean |X_c|`` over all
other dimensions, again averaged over calls. A call that holds anything non-finite is left out and counted.

Some calls of the whole denoiser are recorded on the way (see `generation/recording.py`) and replayed later.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from hswq_runtime.errors import FormatError, HSWQError
from hswq_runtime.loading import load_model
from hswq_runtime.text import several, shown

from ..common.files import write_atomically
from ..common.hardware import describe, pick_device, pick_dtype
from ..common.identity import versions
from ..common.pieces import Pieces
from ..common.progress import progress
from ..generation.generate import GenerationSettings, final_latents, open_pipeline
from ..generation.placement import usable_memory
from ..generation.recording import RecordedCall, record_calls, spread
from ..settings import CalibrationSettings
from ..sources.components import base_identity
from ..sources.prompts.prompts import summary
from ..sources.source import Source
from .processes import Group

_SETTINGS = "hswq_calibration"
_CALLS = "calls/"
"""Recorded tensors are stored as `calls/<call>/<number>`; no module's name holds a slash."""


@dataclass
class LayerStatistics:
    """Running sums of one layer, in float64.

    calls: how many are in the sums; skipped: how many were non-finite. output_mean, output_square: sums over
    calls of mean(Y) and mean(Y²). importance: [in_channels], sum over calls of mean |X_c|. largest_input: the largest
    |X| of all calls in the sums.
    """

    importance_sum: torch.Tensor
    mean_sum: float = 0.0
    square_sum: float = 0.0
    calls: int = 0
    skipped: int = 0
    largest_input: float = 0.0

    def add(self, inputs: torch.Tensor, outputs: torch.Tensor, channel: int) -> None:
        """Add one call: `inputs` with its channels in dimension `channel`, `outputs` of any shape."""
        others = [d for d in range(inputs.ndim) if d != channel % inputs.ndim]
        absolute = inputs.detach().abs()
        importance = absolute.mean(dim=others, dtype=torch.float64) if others else absolute.double()
        values = outputs.detach().float()
        mean = _total(values) / values.numel()
        square = _total(values.square()) / values.numel()
        if not (torch.isfinite(mean) and torch.isfinite(square) and torch.isfinite(importance).all()):
            self.skipped += 1
            return
        self.importance_sum += importance.cpu()
        self.largest_input = max(self.largest_input, absolute.amax().item())
        self.mean_sum += mean.item()
        self.square_sum += square.item()
        self.calls += 1

    @property
    def importance(self) -> torch.Tensor:
        """I_c, float64 [in_channels]."""
        return self.importance_sum / self.calls

    @property
    def output_mean(self) -> float:
        return self.mean_sum / self.calls

    @property
    def output_square(self) -> float:
        return self.square_sum / self.calls

    @property
    def output_variance(self) -> float:
        """Var(Y), clamped to 0, since rounding can make that of a constant output negative."""
        return max(self.output_square - self.output_mean**2, 0.0)


def _total(values: torch.Tensor) -> torch.Tensor:
    """The sum in float64, one dimension after another: so it is the same to the bit with any number of threads."""
    total = values.sum(-1, dtype=torch.float64)
    while total.ndim:
        total = total.sum(-1)
    return total


@dataclass(frozen=True)
class Calibration:
    """Statistics by diffusers module name, recorded calls, and everything that made them."""

    layers: dict[str, LayerStatistics]
    made_by: dict[str, Any] = field(default_factory=dict)
    calls: list[RecordedCall] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """Hex digest of what :meth:`save` writes."""
        return hashlib.sha256(self._encoded()).hexdigest()

    def save(self, path: Path) -> None:
        """Write `path` (safetensors) and, beside it with the suffix .json, the same without the vectors."""
        readable = {
            "made_by": self.made_by,
            "layers": {
                name: {"output_variance": s.output_variance, "calls": s.calls, "skipped": s.skipped}
                for name, s in self.layers.items()
            },
        }
        write_atomically(path.with_suffix(".json"), (json.dumps(readable, indent=2) + "\n").encode())
        write_atomically(path, self._encoded())

    def _encoded(self) -> bytes:
        tensors = {name: statistics.importance_sum for name, statistics in self.layers.items()}
        numbers = {
            name: {k: v for k, v in vars(statistics).items() if k != "importance_sum"}
            for name, statistics in self.layers.items()
        }
        descriptions = []
        for i, call in enumerate(self.calls):
            description, recorded = call.flatten()
            descriptions.append(description)
            tensors |= {f"{_CALLS}{i}/{n}": tensor.contiguous() for n, tensor in enumerate(recorded)}
        header = json.dumps({"made_by": self.made_by, "layers": numbers, "calls": descriptions})
        return save(tensors, metadata={_SETTINGS: header})

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Read what :meth:`save` wrote.

        Raises:
            FormatError: the file does not exist, or is not a calibration.
        """
        if not path.exists():
            raise FormatError(f"{path} does not exist; make one with `hswq-hub calibrate`")
        try:
            with safe_open(str(path), framework="pt") as file:
                header = json.loads((file.metadata() or {})[_SETTINGS])
                layers = {
                    name: LayerStatistics(importance_sum=file.get_tensor(name), **numbers)
                    for name, numbers in header["layers"].items()
                }
                calls = [_call(file, i, description) for i, description in enumerate(header["calls"])]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{path} is not a calibration file; make one with `hswq-hub calibrate`") from error
        return cls(layers, header["made_by"], calls)


def _call(file: Any, number: int, description: Any) -> RecordedCall:
    prefix = f"{_CALLS}{number}/"
    count = sum(key.startswith(prefix) for key in file.keys())  # noqa: SIM118 (it is no dictionary)
    return RecordedCall.unflatten(description, [file.get_tensor(f"{prefix}{n}") for n in range(count)])


@contextmanager
def monitor(model: nn.Module) -> Iterator[dict[str, LayerStatistics]]:
    """While open, gather the statistics of every Linear and Conv2d of `model`, by module name.

    A linear layer's channels are its input's last dimension, whatever the number of dimensions (adaLN and
    timestep embedders get [B, C]); a convolution's are dimension 1 of [B, C, H, W].
    """
    layers: dict[str, LayerStatistics] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            channels, dimension = module.in_features, -1
        elif isinstance(module, nn.Conv2d):
            channels, dimension = module.in_channels, 1
        else:
            continue
        statistics = layers[name] = LayerStatistics(torch.zeros(channels, dtype=torch.float64))

        def hook(
            _module: nn.Module,
            inputs: tuple[torch.Tensor, ...],
            output: torch.Tensor,
            statistics: LayerStatistics = statistics,
            dimension: int = dimension,
        ) -> None:
            statistics.add(inputs[0], output, dimension)

        hooks.append(module.register_forward_hook(hook))
    try:
        yield layers
    finally:
        for handle in hooks:
            handle.remove()


def calibrate(
    source: Source,
    settings: CalibrationSettings | None = None,
    device_memory: float | None = None,
    pieces: Pieces | None = None,
) -> Calibration:
    """Generate `settings.samples` pictures with the original model and gather its layers' statistics.

    Sample i has the i-th calibration prompt (the list starts over when it ends) and the seed `seed + i`. Processes
    that were launched together share the samples, and each returns all of it. `device_memory`: GB of the device that
    the model may take; None: most of what is free. `pieces`: where what is finished is kept and found; None: nowhere.

    Raises:
        DeviceError: CUDA asked for and absent, or not even a block of the model fits into its memory.
        ComponentError: the base lacks a component.
        HSWQError: a layer was never called with finite values, so nothing is known of it.
    """
    settings = settings or CalibrationSettings()
    pieces = pieces or Pieces()
    group = Group(pick_device(settings.device))
    dtype = pick_dtype(settings.dtype, group.device)
    source.check_components()
    architecture = source.architecture
    memory = usable_memory(group.device, device_memory)
    denoiser = load_model(source.checkpoint, dtype)
    pipeline = open_pipeline(source.checkpoint, denoiser, source.base, group.device, settings.size, memory)
    steps, ends = settings.steps_of(architecture.steps), steps_made(settings, architecture.steps)
    generation = GenerationSettings.of(
        architecture,
        pipeline.vae.config,
        steps=steps,
        guidance=settings.guidance,
        size=settings.size,
        negative_prompt=source.negative_prompt(settings.guidance),
    )
    prompts = source.prompts.calibration
    made_by = {
        "settings": asdict(settings),
        "source_sha256": source.sha256,
        "configuration": source.checkpoint.config,
        "generation": asdict(generation),
        "prompts": summary(prompts),
        "dtype": str(dtype).removeprefix("torch."),
        "hardware": describe(group.device),
        "processes": group.size,
        "versions": versions(),
    }
    ours = [i for i in range(group.number, settings.samples, group.size) if ends[i]]
    wanted = spread(settings.calls, settings.samples, generation.steps)
    done = 0

    def under_way() -> int:
        """The index of the current step over all samples; a scheduler's extra calls count to the last step."""
        return i * generation.steps + min(done, generation.steps - 1)

    def on_step() -> None:
        nonlocal done
        done += 1
        bar.update()
        if done == ends[i] < steps:
            raise _Ended

    state = pieces.begin(made_by, list(prompts), base_identity(source), group.number)
    before = 0 if state is None else state["pictures"]
    earlier = [RecordedCall.unflatten(*call) for call in pieces.found()]
    with (
        record_calls(denoiser, wanted, under_way) as calls,
        monitor(denoiser) as layers,
        progress(
            total=sum(ends[i] for i in ours),
            desc="calibrate",
            unit="step",
            initial=sum(ends[i] for i in ours[:before]),
        ) as bar,
    ):
        if state is not None:
            for name, statistics in layers.items():
                vars(statistics).update(state["layers"][name])
        for made, i in enumerate(ours[before:], start=before + 1):
            done, known = 0, len(calls)
            prompt = prompts[i % len(prompts)]
            try:
                latents = final_latents(pipeline, [prompt], [settings.seed + i], generation, on_step)
                finite = bool(latents.isfinite().all())
            except _Ended:
                pipeline.maybe_free_model_hooks()  # as at the end of a picture
                finite = calls[-1].is_finite
            if not finite:
                raise HSWQError(f"the picture of {shown(prompt)!r} came out as NaN or infinity; try --dtype float32")
            for call in calls[known:]:
                pieces.add(call.flatten())
            sums = {name: vars(statistics) for name, statistics in layers.items()}
            pieces.keep(f"{made} of {len(ours)} pictures", partial(dict, pictures=made, layers=sums))
    numbers = [sample * generation.steps + step for sample in ours for step in range(generation.steps)]
    ordered = zip((n for n in numbers if n in wanted), [*earlier, *calls], strict=True)
    found = group.gather((layers, dict(ordered)))
    layers = {name: merged([part[name] for part, _ in found]) for name in layers}
    recorded = {number: call for _, part in found for number, call in part.items()}
    _require_calls(layers)
    return Calibration(layers, made_by, calls=[recorded[number] for number in sorted(recorded)])


class _Ended(Exception):
    """Of a picture there is all that is wanted."""


def steps_made(settings: CalibrationSettings, own: int) -> list[int]:
    """How many denoising steps each picture gets, for a model whose pictures are made in `own`."""
    steps = settings.steps_of(own)
    if settings.whole:
        return [steps] * settings.samples
    ends = [0] * settings.samples
    for number in spread(settings.calls, settings.samples, steps):
        sample, step = divmod(number, steps)
        ends[sample] = max(ends[sample], step + 1)
    return ends


def merged(parts: list[LayerStatistics]) -> LayerStatistics:
    """The statistics of one layer over the calls of all `parts`."""
    return LayerStatistics(
        importance_sum=torch.stack([part.importance_sum for part in parts]).sum(dim=0),
        mean_sum=sum(part.mean_sum for part in parts),
        square_sum=sum(part.square_sum for part in parts),
        calls=sum(part.calls for part in parts),
        skipped=sum(part.skipped for part in parts),
        largest_input=max(part.largest_input for part in parts),
    )


def _require_calls(layers: dict[str, LayerStatistics]) -> None:
    silent = [name for name, statistics in layers.items() if statistics.calls == 0]
    if silent:
        raise HSWQError(
            f"calibration saw no finite call of {several(silent)}; try --dtype float32, or check the checkpoint"
        )
