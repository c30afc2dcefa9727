"""What has to be known of an architecture: how to recognise it, what it becomes, which of its layers stay."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Fold:
    """Layers between which powers of two can move without changing the function, by their names within a block.

    What is taken off the weight of the norm `norm` can be put on all of `readers`, which are all that reads it.
    One of them, `through`, reaches `after` without a bias or anything else that is not linear: what is taken off its
    rows can be put on `after`.
    """

    norm: str
    readers: tuple[str, ...]
    through: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class Architecture:
    """The facts of one architecture. Keys are those of the original (ComfyUI) layout, without prefix."""

    name: str
    title: str
    model_class: str
    """diffusers class of the denoiser; its single-file converter gives the mapping of keys."""
    pipeline_class: str
    component: str
    """The name the denoiser has in the pipeline: "transformer" or "unet"."""
    base_repo: str
    """Hub repo that holds the other components when a checkpoint is the denoiser alone."""
    licence: str
    """Hub licence id of the architecture's base weights."""
    signature: tuple[str, ...]
    """Keys that all have to be there for this row to apply."""
    config: Callable[[Shapes], dict]
    """Shapes by key -> keyword arguments of `model_class`."""
    never_quantized: Mapping[str, str]
    """Regular expression on the layer's name, in either layout -> why that layer can never be FP8."""
    sensitive: tuple[str, ...]
    """Regular expressions on the names of diffusers modules whose inputs are never rounded to FP8: embedders,
    modulation and output, few and small, through which every error reaches the whole picture."""
    keep_ratio: float
    """Fraction of the layers that the published method keeps in full precision."""
    steps: int
    guidance: float
    size: int
    """Generation defaults: denoising steps, guidance scale, pixels a side."""
    folds: tuple[Fold, ...] = ()
    """Exact moves between diffusers modules, for `--fold`; none where nobody looked for them."""
    fits: Callable[[Mapping], bool] = lambda config: True
    """Tells this row from others of the same `model_class`, by the keyword arguments of that class."""
    converter_prefix: str = ""
    """What the single-file converter of `model_class` expects before every key."""
    bundled: Mapping[str, str] = field(default_factory=dict)
    """Component of the pipeline -> what its keys begin with in files that hold it besides the denoiser."""
    left_out: tuple[str, ...] = ()
    """Components of `pipeline_class` that it works without, and is always given as None."""
    scheduler: Callable[[Collection[str], Mapping[str, str]], dict] = lambda keys, metadata: {}
    """Keys and metadata of a file -> what its scheduler's configuration has to say, whatever the base's does."""

    def why_never_quantized(self, layer: str) -> str | None:
        """The reason `layer` (a key without prefix and `.weight`) stays in full precision, or None."""
        for pattern, reason in self.never_quantized.items():
            if re.search(pattern, layer):
                return reason
        return None

    def is_sensitive(self, module: str) -> bool:
        """Whether the inputs of the diffusers module `module` are never rounded to FP8."""
        return any(re.search(pattern, module) for pattern in self.sensitive)
