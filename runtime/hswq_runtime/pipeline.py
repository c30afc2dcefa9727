"""`HSWQPipeline.from_pretrained`: a published repo, folder or file -> a diffusers pipeline with FP8 weights."""

import inspect
import json
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError

from .architectures import Architecture
from .checkpoints.bundled import load_bundled
from .checkpoints.checkpoint import Checkpoint
from .checkpoints.locate import MODEL_INDEX, HubOptions, Located, fetch_components, is_repo_id, locate
from .errors import ComponentError, FormatError
from .formats import Format, Metadata
from .layers.matmul import set_fp8_matmul
from .layers.modules import weight_bytes
from .loading import load_model
from .quantizer import QUANTIZATION_CONFIG, HSWQConfig, Method


class HSWQPipeline:
    """Opens HSWQ files as diffusers pipelines. It is never instantiated: what it returns is diffusers' own."""

    def __init__(self):
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
        fp8_matmul: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **pipeline_arguments,
    ):
        """A diffusers pipeline (`ZImagePipeline` for Z-Image) whose denoiser holds FP8 weights.

        The denoiser's output equals, bit for bit, that of the plain model with `weight · scale` in
        `dtype`. The size of its weights is printed to stderr.

        Args:
            path: a Hub repo id; a published or saved folder; one safetensors file (HSWQ V1, V2, ComfyUI's scaled
                FP8, plain FP8 or full precision), by path, as "owner/repo/file.safetensors" or by URL on the Hub.
            variant: "v1" or "v2": which of several files, by what their headers say. None: V2 where there
                is one, it being the closer to the original.
            weight_name: which of several files, by name.
            base: diffusers folder or Hub repo with the other components. None: `path` itself if it has a
                model_index.json, else the repo named in the file's header, else the architecture's. Of components
                that the file itself holds only the configuration is taken from there.
            dtype: what to compute in. None: the dtype of the file's own unquantized weights.
            torch_dtype: the older name of `dtype`, which diffusers takes as well.
            fp8_matmul: multiply in FP8 where the hardware can, see :func:`hswq_runtime.set_fp8_matmul`.
            revision: branch, tag or commit of the repo `path`.
            token, cache_dir, local_files_only: as in huggingface_hub.
            **pipeline_arguments: passed on to the diffusers class's `from_pretrained`, components included.

        Raises:
            FormatError: no such file or repo, several to choose from, or one that does not fit.
            ComponentError: a component is missing from the base.
            UnknownArchitectureError: the keys match no known architecture.
            DeviceError: `fp8_matmul` and no such hardware.
        """
        dtype = dtype or torch_dtype
        hub = HubOptions(revision, token, cache_dir, local_files_only)
        found = locate(path, variant, weight_name, hub)
        if found.file is None:
            if variant is not None or base is not None:
                raise FormatError(f"{path} is one saved pipeline: it has no variants and takes no base; leave them out")
            return _open_saved(found.folder, dtype, fp8_matmul, pipeline_arguments)
        checkpoint = Checkpoint(found.file)
        if variant is not None and checkpoint.format is not Format(variant):
            raise FormatError(f"{checkpoint.path} is not a {variant} file")
        if base is None and found.repo is not None:
            base = _own_components(checkpoint, found, pipeline_arguments)
        base = find_base(checkpoint, base)
        check_components(checkpoint, base, given=pipeline_arguments, hub=hub.elsewhere())
        denoiser = load_model(checkpoint, dtype, fp8_matmul=fp8_matmul)
        pipeline = assemble_pipeline(checkpoint, denoiser, base, hub=hub.elsewhere(), **pipeline_arguments)
        _report(checkpoint, denoiser, base)
        return pipeline

    @classmethod
    def from_single_file(cls, file: str | Path, **arguments):
        """:meth:`from_pretrained` under the name that diffusers has for one file: a path, or its URL on the Hub."""
        return cls.from_pretrained(file, **arguments)


def _open_saved(folder: Path, dtype: torch.dtype | None, fp8_matmul: bool, arguments: dict):
    """A pipeline that `save_pretrained` wrote; diffusers opens it, with our quantizer."""
    import diffusers

    name, config = _quantized_component(folder)
    dtype = dtype or config.compute_dtype
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            folder, **{"dtype": dtype, **arguments}, use_safetensors=True
        )
    except (OSError, ValueError, AttributeError, ImportError, SafetensorError) as error:
        raise ComponentError(f"{folder} has a component that cannot be loaded: {_first_line(error)}") from error
    set_fp8_matmul(getattr(pipeline, name), fp8_matmul)
    return pipeline


def _quantized_component(folder: Path) -> tuple[str, HSWQConfig]:
    """The component of a saved pipeline that is quantized with HSWQ, and how."""
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


def _own_components(checkpoint: Checkpoint, found: Located, given) -> Path | None:
    """The other components of the repo that the checkpoint came from, as a folder; None if it has none. What is
    `given` is not fetched."""
    folder = _fetch(checkpoint, found.repo, given, found.hub)
    return folder if (folder / MODEL_INDEX).is_file() else None


def assemble_pipeline(
    checkpoint: Checkpoint,
    denoiser: torch.nn.Module,
    base: str,
    *,
    hub: HubOptions | None = None,
    **pipeline_arguments,
):
    """The diffusers pipeline of `checkpoint` around `denoiser`, which gives it its dtype.

    Components that the checkpoint holds are taken from it. The others are read from `base`, from safetensors files
    only: no pickle is ever opened.

    Raises:
        ComponentError: a component cannot be loaded, or its scheduler does not know what the checkpoint needs.
    """
    architecture = checkpoint.architecture
    given = {name for name, component in pipeline_arguments.items() if component is not None}
    base = fetch_base(checkpoint, base, given, hub)
    device_map = pipeline_arguments.get("device_map")
    arguments = {architecture.component: denoiser, "dtype": denoiser.dtype}
    arguments |= dict.fromkeys(architecture.left_out) | pipeline_arguments
    try:
        arguments |= load_bundled(checkpoint, Path(base), checkpoint.bundled - given, denoiser.dtype)
        if device_map is not None and device_map != "balanced":
            for name in {architecture.component, *checkpoint.bundled - given}:
                arguments[name].to(device_map)
        pipeline = _pipeline_class(architecture).from_pretrained(base, **arguments, use_safetensors=True)
    except (OSError, ValueError, AttributeError, ImportError, SafetensorError) as error:
        raise ComponentError(f"{base} has a component that cannot be loaded: {_first_line(error)}") from error
    if "scheduler" not in given:
        _adapt_scheduler(pipeline, checkpoint.scheduler, base)
    tokenizer = pipeline.components.get("tokenizer")
    if tokenizer is not None and not tokenizer("a").input_ids:
        raise ComponentError(f"{base} has a tokenizer without a vocabulary")
    return pipeline


def _adapt_scheduler(pipeline, changes: dict, base: str) -> None:
    """Give the pipeline a scheduler of its kind that has `changes` in its configuration."""
    known = inspect.signature(type(pipeline.scheduler).__init__).parameters
    if unknown := changes.keys() - known:
        raise ComponentError(
            f"the checkpoint needs {', '.join(sorted(unknown))}, which the scheduler of {base} "
            f"({type(pipeline.scheduler).__name__}) does not have; pass a base whose scheduler has it"
        )
    if changes:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **changes)


def fetch_base(checkpoint: Checkpoint, base: str, given=(), hub: HubOptions | None = None) -> str:
    """`base` as a folder on this disk: of a Hub repo, all but the denoiser and what is `given` is fetched; of what the
    checkpoint itself holds the configuration alone.

    Raises:
        FormatError: the repo cannot be reached.
    """
    return base if Path(base).is_dir() else str(_fetch(checkpoint, base, given, hub or HubOptions()))


def _fetch(checkpoint: Checkpoint, repo: str, given, hub: HubOptions) -> Path:
    names = _component_names(checkpoint.architecture) - {*given}
    return fetch_components(repo, names - checkpoint.bundled, hub, without_weights=names & checkpoint.bundled)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def find_base(checkpoint: Checkpoint, base: str | Path | None = None) -> str:
    """Where the other components of `checkpoint` are: see `base` of :meth:`HSWQPipeline.from_pretrained`.

    Raises:
        FormatError: the file's header names something that is no Hub repo.
    """
    if base is not None:
        return str(base)
    if (checkpoint.path.parent / MODEL_INDEX).is_file():
        return str(checkpoint.path.parent)
    named = checkpoint.metadata.get(Metadata.BASE.value)
    if named is None:
        return checkpoint.architecture.base_repo
    if not is_repo_id(named):  # a file from a stranger must not choose a folder of this machine
        raise FormatError(f"the header of {checkpoint.path} names the base {named!r}, which is no Hub repo; pass base")
    return named


def check_components(checkpoint: Checkpoint, base: str, given=(), hub: HubOptions | None = None) -> None:
    """Check, in a moment, that `base` has all that the pipeline needs besides the denoiser and what is `given`.

    Of a Hub repo only the index is read. Of what the checkpoint itself holds the base needs the configuration.

    Raises:
        ComponentError: names what is missing.
    """
    advice = "pass a diffusers folder or a Hub repo that has it as base"
    if Path(base).is_dir():
        folder, index = Path(base), _read_index(Path(base))
    else:
        folder, index = None, _fetch_index(base, hub or HubOptions())
    wanted = _component_names(checkpoint.architecture) - {*given}
    missing = [name for name in wanted if not _is_component(index.get(name))]
    if folder is not None:
        missing += [name for name in wanted - {*missing} if not _has_files(folder / name)]
    if missing:
        raise ComponentError(f"{base} lacks {', '.join(sorted(missing))}; {advice}")


def component_folders(base: Path, architecture: Architecture) -> list[Path]:
    """The folders of the components that a checked local `base` has besides the denoiser."""
    return sorted(base / name for name in _component_names(architecture) if (base / name).is_dir())


def _component_names(architecture: Architecture) -> set[str]:
    """What a pipeline has to be made of, but for the denoiser. Names from a file are never used as paths."""
    parameters = inspect.signature(_pipeline_class(architecture).__init__).parameters.values()
    required = {parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty}
    return required - {"self", architecture.component, *architecture.left_out}


def _pipeline_class(architecture: Architecture):
    import diffusers

    return getattr(diffusers, architecture.pipeline_class)


def _read_index(folder: Path) -> dict:
    path = folder / MODEL_INDEX
    if not path.is_file():
        raise ComponentError(f"{folder} has no {MODEL_INDEX}; pass a diffusers folder or a Hub repo as base")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ComponentError(f"{path} is not JSON") from error
    if not isinstance(index, dict):
        raise ComponentError(f"{path} is not a diffusers model index")
    return index


def _fetch_index(base: str, hub: HubOptions) -> dict:
    if not is_repo_id(base):
        raise ComponentError(f"{base} is neither a folder here nor a Hub repo; pass one of them as base")
    try:
        return _read_index(fetch_components(base, (), hub))
    except FormatError as error:
        raise ComponentError(f"{error}") from error


def _is_component(entry) -> bool:
    return isinstance(entry, (list, tuple)) and len(entry) == 2 and None not in entry


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _report(checkpoint: Checkpoint, denoiser: torch.nn.Module, base: str) -> None:
    """One line on stderr, beside diffusers' progress bars, and silenced with them."""
    from diffusers.utils import logging

    if not logging.is_progress_bar_enabled():
        return
    held = weight_bytes(denoiser)
    plain = sum(p.numel() for p in denoiser.parameters()) * 2
    label = checkpoint.format.label if checkpoint.format else "checkpoint"
    print(
        f"{checkpoint.path.name} ({label}): {held / 1e6:.1f} MB of weights, {held / plain:.0%} of bfloat16; "
        f"other components from {base}",
        file=sys.stderr,
    )
