"""`HSWQPipeline.from_pretrained`: a published repo, folder or file -> a diffusers pipeline with FP8 weights."""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from .architectures import Config
from .checkpoints.base import check_components, configured, fetch_base, fetch_but_denoiser, find_base, pipeline_class
from .checkpoints.bundled import load_bundled
from .checkpoints.checkpoint import Checkpoint
from .checkpoints.fit import BUILDING
from .checkpoints.locate import MODEL_INDEX, HubOptions, locate
from .errors import ComponentError, FormatError
from .formats import Format
from .layers.matmul import set_quantized_matmul
from .layers.modules import weight_bytes
from .loading import load_model
from .quantizer import QUANTIZATION_CONFIG, HSWQConfig, Method
from .text import shown

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin


class HSWQPipeline:
    """Opens HSWQ files as diffusers pipelines. It has no instances; it returns diffusers' pipelines."""

    def __init__(self) -> None:
        raise TypeError("use HSWQPipeline.from_pretrained(); it returns a diffusers pipeline")

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        variant: str | None = None,
        weight_name: str | None = None,
        base: str | Path | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        quantized_matmul: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **pipeline_arguments: Any,
    ) -> DiffusionPipeline:
        """A diffusers pipeline (`ZImagePipeline` for Z-Image) whose denoiser holds FP8 weights.

        The denoiser's output is bit-identical to that of the plain model with `weight · scale` in `dtype`. The size of
        its weights is printed to stderr. A warning says what of its configuration is guessed, if nothing states it: the
        file's header, the folder or repo that holds it, or the base, in this order.

        Args:
            path: a Hub repo id; a published or saved folder; one safetensors file (HSWQ V1, V2, ComfyUI's scaled
                FP8, plain FP8 or full precision), by path, as "owner/repo/file.safetensors" or by URL on the Hub.
            variant: "v1" or "v2": which of several files, by their headers. None: V2 if there is one, since it is
                closer to the original.
            weight_name: which of several files, by name.
            base: diffusers folder or Hub repo with the other components. None: `path` itself if it has a
                model_index.json, else the repo that the file's header names, else the architecture's. For a component
                that the file itself holds, only the configuration is read from the base.
            dtype: the dtype to compute in. None: the dtype of the file's own unquantized weights.
            torch_dtype: the older name of `dtype`; diffusers accepts it as well.
            quantized_matmul: multiply in FP8 where the hardware can, see :func:`hswq_runtime.set_quantized_matmul`.
            revision: branch, tag or commit of the repo `path`.
            token, cache_dir, local_files_only: as in huggingface_hub.
            **pipeline_arguments: arguments of the diffusers pipeline's `from_pretrained`, components included.

        Raises:
            FormatError: there is no such file or repo, several files fit, or the file does not fit its architecture.
            ComponentError: the base lacks a component, or one cannot be loaded.
            UnknownArchitectureError: the keys match no known architecture.
            DeviceError: `quantized_matmul` without hardware for it.
            FullPrecisionError: `quantized_matmul` for a file that wants no layer multiplied in FP8.
        """
        dtype = dtype or torch_dtype
        hub = HubOptions(revision, token, cache_dir, local_files_only)
        found = locate(path, variant, weight_name, hub)
        if found.file is None:
            if variant is not None or base is not None:
                raise FormatError(f"{path} is one saved pipeline: it has no variants and takes no base; leave them out")
            return _open_saved(found.folder, dtype, quantized_matmul, pipeline_arguments)
        checkpoint = Checkpoint(found.file)
        if variant is not None and checkpoint.format is not Format(variant):
            raise FormatError(f"{checkpoint.path} is not a {variant} file")
        if found.repo is not None:
            checkpoint = configured(checkpoint, found.repo, hub=found.hub)
            base = base or _own_components(checkpoint, found.repo, pipeline_arguments, found.hub)
        base = find_base(checkpoint, base)
        checkpoint = configured(
            checkpoint, *([found.folder] if Path(path).is_dir() else []), base, hub=hub.for_another_repo()
        )
        check_components(checkpoint, base, given=pipeline_arguments, hub=hub.for_another_repo())
        denoiser = load_model(checkpoint, dtype, quantized_matmul=quantized_matmul)
        pipeline = assemble_pipeline(checkpoint, denoiser, base, hub=hub.for_another_repo(), **pipeline_arguments)
        _report(checkpoint, denoiser, base)
        if checkpoint.guess is not None:
            warnings.warn(checkpoint.guess, stacklevel=2)
        return pipeline

    @classmethod
    def from_single_file(cls, file: str | Path, **arguments: Any) -> DiffusionPipeline:
        """:meth:`from_pretrained` by diffusers' name for one file: a path, or its URL on the Hub."""
        return cls.from_pretrained(file, **arguments)


def _open_saved(
    folder: Path, dtype: torch.dtype | None, quantized_matmul: bool, arguments: Mapping[str, Any]
) -> DiffusionPipeline:
    """A pipeline that `save_pretrained` wrote, opened by diffusers with our quantizer."""
    import diffusers

    name, config = _quantized_component(folder)
    dtype = dtype or config.compute_dtype
    try:
        with BUILDING:
            pipeline = diffusers.DiffusionPipeline.from_pretrained(
                folder, **{"dtype": dtype, **arguments}, use_safetensors=True
            )
    except (OSError, ValueError, AttributeError, ImportError, SafetensorError) as error:
        raise ComponentError(f"{folder} has a component that cannot be loaded: {_first_line(error)}") from error
    set_quantized_matmul(getattr(pipeline, name), quantized_matmul)
    return pipeline


def _quantized_component(folder: Path) -> tuple[str, HSWQConfig]:
    """The name of the HSWQ component of a saved pipeline, and its configuration."""
    for path in sorted(folder.glob("*/config.json")):
        try:
            described = json.loads(path.read_text(encoding="utf-8")).get(QUANTIZATION_CONFIG)
            if isinstance(described, dict) and described.get("quant_method") == Method.HSWQ.value:
                return path.parent.name, HSWQConfig(**described)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(f"{path} is not a configuration that this release reads") from error
    raise FormatError(
        f"{folder} holds no FP8 checkpoint and no component saved with HSWQ; use diffusers' from_pretrained"
    )


def _own_components(checkpoint: Checkpoint, repo: str, given: Iterable[str], hub: HubOptions) -> Path | None:
    """The other components of the checkpoint's own repo, as a folder without those `given`; None if it has none."""
    folder = fetch_but_denoiser(checkpoint, repo, given, hub)
    return folder if (folder / MODEL_INDEX).is_file() else None


def assemble_pipeline(
    checkpoint: Checkpoint,
    denoiser: ModelMixin,
    base: str,
    *,
    hub: HubOptions | None = None,
    **pipeline_arguments: Any,
) -> DiffusionPipeline:
    """The diffusers pipeline of `checkpoint` with `denoiser`, in the dtype of `denoiser`.

    Components that the checkpoint holds are loaded from it. The others are loaded from `base`, from safetensors files
    only: no pickle is opened.

    Raises:
        ComponentError: a component cannot be loaded, or the scheduler lacks an entry that the checkpoint needs.
    """
    architecture = checkpoint.architecture
    given = {name for name, component in pipeline_arguments.items() if component is not None}
    base = fetch_base(checkpoint, base, given, hub)
    device_map = pipeline_arguments.get("device_map")
    arguments: dict[str, Any] = {architecture.component: denoiser, "dtype": denoiser.dtype}
    arguments |= dict.fromkeys(architecture.left_out) | pipeline_arguments
    try:
        with BUILDING:
            arguments |= load_bundled(checkpoint, Path(base), checkpoint.bundled - given, denoiser.dtype)
        if device_map is not None and device_map != "balanced":
            for name in {architecture.component, *checkpoint.bundled - given}:
                arguments[name].to(device_map)
        with BUILDING:
            pipeline = pipeline_class(architecture).from_pretrained(base, **arguments, use_safetensors=True)
    except (OSError, ValueError, AttributeError, ImportError, SafetensorError) as error:
        raise ComponentError(f"{base} has a component that cannot be loaded: {_first_line(error)}") from error
    if "scheduler" not in given:
        _adapt_scheduler(pipeline, checkpoint.scheduler, base)
    tokenizer = pipeline.components.get("tokenizer")
    if tokenizer is not None and not tokenizer("a").input_ids:
        raise ComponentError(f"{base} has a tokenizer without a vocabulary")
    return pipeline


def _adapt_scheduler(pipeline: DiffusionPipeline, changes: Config, base: str) -> None:
    """Replace the pipeline's scheduler by one of its class with `changes` in its configuration."""
    known = inspect.signature(type(pipeline.scheduler).__init__).parameters
    if unknown := changes.keys() - known:
        raise ComponentError(
            f"the checkpoint needs {', '.join(sorted(unknown))}, which the scheduler of {base} "
            f"({type(pipeline.scheduler).__name__}) does not have; pass a base whose scheduler has it"
        )
    if changes:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **changes)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _report(checkpoint: Checkpoint, denoiser: torch.nn.Module, base: str) -> None:
    """Print one line to stderr, unless diffusers' progress bars are turned off."""
    from diffusers.utils import logging

    if not logging.is_progress_bar_enabled():
        return
    held = weight_bytes(denoiser)
    plain = sum(p.numel() for p in denoiser.parameters()) * 2
    label = checkpoint.format.label if checkpoint.format else "checkpoint"
    print(
        f"{shown(checkpoint.path.name)} ({label}): {held / 1e6:.1f} MB of weights, {held / plain:.0%} of bfloat16; "
        f"other components from {shown(base)}",
        file=sys.stderr,
    )
