"""`HSWQPipeline.from_pretrained`: a published folder or a file -> a diffusers pipeline with FP8 weights."""

import json
import sys
from pathlib import Path

import torch

from .checkpoint import Checkpoint
from .errors import ComponentError, FormatError
from .formats import Format, Metadata
from .layers import weight_bytes
from .loading import load_model

MODEL_INDEX = "model_index.json"


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
        denoiser = load_model(checkpoint, dtype or torch_dtype)
        pipeline = assemble_pipeline(checkpoint, denoiser, base, **pipeline_arguments)
        _report(checkpoint, denoiser)
        return pipeline


def assemble_pipeline(checkpoint: Checkpoint, denoiser: torch.nn.Module, base=None, **pipeline_arguments):
    """The diffusers pipeline of `checkpoint`'s architecture around `denoiser`, which gives it its dtype.

    `base` and the errors are those of :meth:`HSWQPipeline.from_pretrained`.
    """
    import diffusers

    architecture = checkpoint.architecture
    base = find_base(checkpoint, base)
    pipeline_class = getattr(diffusers, architecture.pipeline_class)
    check_components(base, architecture.component, given=pipeline_arguments)
    arguments = {architecture.component: denoiser, "dtype": denoiser.dtype, **pipeline_arguments}
    try:
        return pipeline_class.from_pretrained(str(base), **arguments)
    except OSError as error:
        raise ComponentError(
            f"the components beside the {architecture.component} could not be loaded from {base}: "
            f"{str(error).splitlines()[0]}; pass a diffusers folder or a Hub repo that has them as base"
        ) from error


def find_base(checkpoint: Checkpoint, base: str | Path | None = None) -> str:
    """Where the other components of `checkpoint` are: see `base` of :meth:`HSWQPipeline.from_pretrained`."""
    if base is not None:
        return str(base)
    if (checkpoint.path.parent / MODEL_INDEX).is_file():
        return str(checkpoint.path.parent)
    return checkpoint.metadata.get(Metadata.BASE.value) or checkpoint.architecture.base_repo


def check_components(base: str, denoiser: str, given=()) -> None:
    """Check that a local base folder has all components but the denoiser; a Hub repo is diffusers' to check.

    Raises:
        ComponentError: names what is missing.
    """
    folder = Path(base)
    if not folder.is_dir():
        if folder.is_absolute() or base.startswith("."):
            raise ComponentError(f"there is no folder {base}; pass a diffusers folder or a Hub repo as base")
        return
    index = folder / MODEL_INDEX
    if not index.is_file():
        raise ComponentError(f"{base} has no {MODEL_INDEX}; pass a diffusers folder or a Hub repo as base")
    try:
        components = {name: value for name, value in json.loads(index.read_text()).items() if isinstance(value, list)}
    except (ValueError, AttributeError) as error:
        raise ComponentError(f"{index} is not a diffusers model index ({error})") from error
    present = {entry.name for entry in folder.iterdir() if entry.is_dir() and any(entry.iterdir())}
    missing = [
        name for name, value in components.items() if value != [None, None] and name not in {*present, *given, denoiser}
    ]
    if missing:
        raise ComponentError(
            f"{base} lacks {', '.join(sorted(missing))}; pass a diffusers folder or a Hub repo that has it as base"
        )


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
        formats.setdefault(Checkpoint(file).format, []).append(file)
    wanted = formats.get(Format(variant) if variant else Format.V2 if Format.V2 in formats else None, [])
    if len(wanted) == 1:
        return wanted[0]
    names = ", ".join(file.name for file in files) or "no safetensors file"
    wish = f" of variant {variant}" if variant else ""
    raise FormatError(f"{path} does not hold just one model{wish}: it holds {names}; choose with weight_name")


def _report(checkpoint: Checkpoint, denoiser: torch.nn.Module) -> None:
    """One line on stderr, beside diffusers' progress bars, and silenced with them."""
    from diffusers.utils import logging

    if not logging.is_progress_bar_enabled():
        return
    held = weight_bytes(denoiser)
    plain = sum(p.numel() for p in denoiser.parameters()) * 2
    label = checkpoint.format.label if checkpoint.format else "checkpoint"
    print(
        f"{checkpoint.path.name} ({label}): {held / 1e6:.1f} MB of weights, {held / plain:.0%} of bfloat16",
        file=sys.stderr,
    )
