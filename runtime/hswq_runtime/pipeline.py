"""`HSWQPipeline.from_pretrained`: a published folder or a file -> a diffusers pipeline with FP8 weights."""

import inspect
import json
import re
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError

from .architectures import Architecture
from .checkpoint import Checkpoint
from .errors import ComponentError, FormatError, UnknownArchitectureError
from .formats import Format, Metadata
from .layers import weight_bytes
from .loading import load_model

MODEL_INDEX = "model_index.json"
_REPO_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


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
        **pipeline_arguments,
    ):
        """A diffusers pipeline (`ZImagePipeline` for Z-Image) whose denoiser holds FP8 weights.

        The denoiser's output equals, bit for bit, that of the plain model with `weight · scale` in
        `dtype`. The size of its weights is printed to stderr.

        Args:
            path: a published folder, or one safetensors file (HSWQ V1, V2, plain FP8 or full precision).
            variant: "v1" or "v2": which of a folder's files, by what their headers say. None: V2 where there
                is one, it being the closer to the original.
            weight_name: which of a folder's files, by name.
            base: diffusers folder or Hub repo with the other components. None: `path`'s folder if it has a
                model_index.json, else the repo named in the file's header, else the architecture's.
            dtype: what to compute in. None: the dtype of the file's own unquantized weights.
            torch_dtype: the older name of `dtype`, which diffusers takes as well.
            **pipeline_arguments: passed on to the diffusers class's `from_pretrained`, components included.

        Raises:
            FormatError: no such file, several to choose from, or one that does not fit.
            ComponentError: a component is missing from the base.
            UnknownArchitectureError: the keys match no known architecture.
        """
        checkpoint = Checkpoint(_choose(Path(path), variant, weight_name))
        if variant is not None and checkpoint.format is not Format(variant):
            raise FormatError(f"{checkpoint.path} is not a {variant} file")
        base = find_base(checkpoint, base)
        check_components(checkpoint.architecture, base, given=pipeline_arguments)
        denoiser = load_model(checkpoint, dtype or torch_dtype)
        pipeline = assemble_pipeline(checkpoint.architecture, denoiser, base, **pipeline_arguments)
        _report(checkpoint, denoiser, base)
        return pipeline


def assemble_pipeline(architecture: Architecture, denoiser: torch.nn.Module, base: str, **pipeline_arguments):
    """The diffusers pipeline of `architecture` around `denoiser`, which gives it its dtype.

    The other components are read from `base`, from safetensors files only: no pickle is ever opened.

    Raises:
        ComponentError: a component cannot be loaded.
    """
    arguments = {architecture.component: denoiser, "dtype": denoiser.dtype, **pipeline_arguments}
    try:
        pipeline = _pipeline_class(architecture).from_pretrained(base, **arguments, use_safetensors=True)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ComponentError(f"{base} has a component that cannot be loaded: {reason}") from error
    tokenizer = pipeline.components.get("tokenizer")
    if tokenizer is not None and not tokenizer("a").input_ids:
        raise ComponentError(f"{base} has a tokenizer without a vocabulary")
    return pipeline


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
    if not _REPO_ID.fullmatch(named):  # a file from a stranger must not choose a folder of this machine
        raise FormatError(f"the header of {checkpoint.path} names the base {named!r}, which is no Hub repo; pass base")
    return named


def check_components(architecture: Architecture, base: str, given=()) -> None:
    """Check, in a moment, that `base` has all that the pipeline needs besides the denoiser and what is `given`.

    Of a Hub repo only the index is read.

    Raises:
        ComponentError: names what is missing.
    """
    advice = "pass a diffusers folder or a Hub repo that has it as base"
    if Path(base).is_dir():
        folder, index = Path(base), _read_index(Path(base))
    else:
        folder, index = None, _fetch_index(base)
    wanted = _component_names(architecture) - {*_pipeline_class(architecture)._optional_components, *given}
    missing = [name for name in wanted if not _is_component(index.get(name))]
    if folder is not None:
        missing += [name for name in wanted - {*missing} if not _has_files(folder / name)]
    if missing:
        raise ComponentError(f"{base} lacks {', '.join(sorted(missing))}; {advice}")


def component_folders(base: Path, architecture: Architecture) -> list[Path]:
    """The folders of the components that a checked local `base` has besides the denoiser."""
    return sorted(base / name for name in _component_names(architecture) if (base / name).is_dir())


def _component_names(architecture: Architecture) -> set[str]:
    """What the pipeline class is made of, but for the denoiser. Names from a file are never used as paths."""
    return set(inspect.signature(_pipeline_class(architecture).__init__).parameters) - {"self", architecture.component}


def _pipeline_class(architecture: Architecture):
    import diffusers

    return getattr(diffusers, architecture.pipeline_class)


def _read_index(folder: Path) -> dict:
    path = folder / MODEL_INDEX
    if not path.is_file():
        raise ComponentError(f"{folder} has no {MODEL_INDEX}; pass a diffusers folder or a Hub repo as base")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ComponentError(f"{path} is not JSON") from error
    if not isinstance(index, dict):
        raise ComponentError(f"{path} is not a diffusers model index")
    return index


def _fetch_index(base: str) -> dict:
    from huggingface_hub import hf_hub_download

    if not _REPO_ID.fullmatch(base):
        raise ComponentError(f"{base} is neither a folder here nor a Hub repo; pass one of them as base")
    try:
        return _read_index(Path(hf_hub_download(base, MODEL_INDEX)).parent)
    except OSError as error:
        raise ComponentError(
            f"the Hub repo {base} cannot be read from here; check its name and the connection, or pass a folder as base"
        ) from error


def _is_component(entry) -> bool:
    return isinstance(entry, (list, tuple)) and len(entry) == 2 and None not in entry


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _choose(path: Path, variant: str | None, weight_name: str | None) -> Path:
    """The one file of `path` that `variant` and `weight_name` leave."""
    if variant is not None and variant not in {format.value for format in Format}:
        raise FormatError(f"there is no variant {variant!r}; choose {' or '.join(format.value for format in Format)}")
    if path.is_file():
        return path
    if not path.is_dir():
        raise FormatError(f"{path} is neither a folder nor a file; download the repo first and give its folder")
    if weight_name is not None:
        return path / weight_name
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    formats: dict[Format | None, list[Path]] = {}
    for file in files:
        try:
            formats.setdefault(Checkpoint(file).format, []).append(file)
        except UnknownArchitectureError:  # a LoRA, say: not what is looked for
            continue
    wanted = formats.get(Format(variant) if variant else Format.V2 if Format.V2 in formats else None, [])
    if len(wanted) == 1:
        return wanted[0]
    names = ", ".join(file.name for file in files) or "no safetensors file"
    wish = f" of variant {variant}" if variant else ""
    raise FormatError(f"{path} does not hold just one model{wish}: it holds {names}; choose with weight_name")


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
