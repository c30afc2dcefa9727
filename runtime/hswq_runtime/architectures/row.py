"""What has to be known of an architecture: how to recognise it, what it becomes, which of its layers stay."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

Shapes = Mapping[str, tuple[int, ...]]


def count(shapes: Shapes, group: str) -> int:
    """How many blocks are called `<group>.<number>.`."""
    return len({key.split(".")[1] for key in shapes if key.startswith(f"{group}.")})


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
    guidance_argument: str = "guidance_scale"
    """What the pipeline calls the scale that is meant by `guidance`."""
    negative_prompt: str | None = None
    """What a pipeline is given that guides only if there is a negative prompt."""
    call: Mapping[str, object] = field(default_factory=dict)
    """Further arguments of the pipeline's call."""
    unread: tuple[str, ...] = ()
    """Regular expressions on keys of published files that the diffusers class has no place for; they are copied."""
    licence_name: str | None = None
    licence_link: str | None = None
    """Name and address of a licence that has no id on the Hub ("other")."""
    host_names: tuple[str, ...] = ()
    """What Civitai calls models that were made from this one."""
    variants: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Models with the same keys and shapes: Hub repo of their components -> the facts that differ."""

    def with_base(self, base: str) -> "Architecture":
        """The facts of the model whose other components are in the Hub repo `base`: of a variant, if it is one's."""
        return replace(self, base_repo=base, variants={}, **self.variants[base]) if base in self.variants else self

    @property
    def models(self) -> list["Architecture"]:
        """This row, and one for each of its variants."""
        return [self, *map(self.with_base, self.variants)]

    def why_never_quantized(self, layer: str) -> str | None:
        """The reason `layer` (a key without prefix and `.weight`) stays in full precision, or None."""
        for pattern, reason in self.never_quantized.items():
            if re.search(pattern, layer):
                return reason
        return None

    def is_unread(self, key: str) -> bool:
        """Whether the diffusers class has no place for `key` (without prefix), and that is all right."""
        return any(re.search(pattern, key) for pattern in self.unread)

    def is_sensitive(self, module: str) -> bool:
        """Whether the inputs of the diffusers module `module` are never rounded to FP8."""
        return any(re.search(pattern, module) for pattern in self.sensitive)
