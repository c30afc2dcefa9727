"""The facts of one architecture: how to recognise it, its diffusers classes, the layers that stay in full precision."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

Shapes = Mapping[str, tuple[int, ...]]
"""Shape by key."""
Config = dict[str, Any]
"""Keyword arguments of a diffusers class: the entries of its `config.json`, whose values are any JSON."""


TEXT_STREAM = r"\.add_[qkv]_proj$|\.to_add_out$|\.ff_context\."
"""`text_only` of models whose double blocks have layers of their own for the text."""


def count(shapes: Shapes, group: str) -> int:
    """The number of blocks whose keys begin with `<group>.<number>.`."""
    return len({key.split(".")[1] for key in shapes if key.startswith(f"{group}.")})


@dataclass(frozen=True)
class Fold:
    """Layers between which powers of two can move without changing the function, by their names within a block.

    The output of the norm `norm` is the input of `readers` and of nothing else: its weight can be divided by a power
    of two and theirs multiplied by it. One reader, `through`, feeds `after` linearly and without a bias: its weight can
    be divided by a power of two and that of `after` multiplied by it.
    """

    norm: str
    readers: tuple[str, ...]
    through: str | None = None
    after: str | None = None


class VariantFacts(TypedDict, total=False):
    """The facts that a variant of an architecture has of its own; fields of :class:`Architecture`."""

    title: str
    licence: str
    licence_name: str
    licence_link: str
    steps: int
    guidance: float
    civitai_base_models: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """The facts of one architecture. Keys are those of the original (ComfyUI) layout, without prefix."""

    name: str
    title: str
    model_class: str
    """diffusers class of the denoiser; its single-file converter gives the mapping of keys."""
    pipeline_class: str
    """diffusers class of the text-to-image pipeline."""
    component: str
    """Name of the denoiser in the pipeline: "transformer" or "unet"."""
    base_repo: str
    """Hub repo with the other components, for a checkpoint that is the denoiser alone."""
    licence: str
    """Hub licence id of the architecture's base weights."""
    signature: tuple[str, ...]
    """This row applies to a file that has all of these keys."""
    config: Callable[[Shapes], Config]
    """Shapes by key -> keyword arguments of `model_class`, for a file whose configuration nothing states."""
    never_quantized: Mapping[str, str]
    """Regular expression on a layer's name, in either layout -> why that layer can never be FP8."""
    sensitive: tuple[str, ...]
    """Regular expressions on the names of diffusers modules whose inputs are never rounded to FP8: embedders,
    modulation and output. They are few and small, and their error reaches the whole picture."""
    keep_ratio: float
    """Fraction of the layers that the published method keeps in full precision."""
    steps: int
    guidance: float
    size: int
    """Generation defaults: denoising steps, guidance scale, height and width in pixels."""
    text_tokens: int = 0
    """Tokens of a usual prompt that go through the denoiser's blocks beside the picture's."""
    text_only: str | None = None
    picture_only: str | None = None
    """Regular expressions on the names of diffusers modules that see tokens of one kind alone."""
    token_multiple: int = 1
    """Tokens of the picture and of the text are each padded to a multiple of this."""
    guided_above: float | None = 1.0
    """Guidance scale above which the denoiser is called with and without the prompt; None: it is given the scale."""
    guessed: tuple[str, ...] = ()
    """Entries of `config` that are those of the published models, since shapes do not tell them."""
    table_values: Callable[[Config], int] = lambda config: 0
    """Values of the table of positions that `model_class` computes when it is built."""
    folds: tuple[Fold, ...] = ()
    """Exact moves between diffusers modules, for `--fold`; () if none are known."""
    fits: Callable[[Mapping[str, Any]], bool] = lambda config: True
    """Whether a configuration of `model_class` is of this row, where several rows share the class."""
    converter_prefix: str = ""
    """Prefix that the single-file converter of `model_class` expects on every key."""
    bundled: Mapping[str, str] = field(default_factory=dict)
    """Component of the pipeline -> prefix of its keys in a file that holds it besides the denoiser."""
    left_out: tuple[str, ...] = ()
    """Optional components of `pipeline_class`, always passed as None."""
    scheduler: Callable[[Collection[str], Mapping[str, str]], Config] = lambda keys, metadata: {}
    """Keys and metadata of a file -> entries that override the base's scheduler configuration."""
    guidance_argument: str = "guidance_scale"
    """Name of the pipeline's argument that takes `guidance`."""
    negative_prompt: str | None = None
    """Negative prompt for a pipeline that applies guidance only if it has one."""
    call: Mapping[str, object] = field(default_factory=dict)
    """Further keyword arguments of the pipeline's call."""
    unread: tuple[str, ...] = ()
    """Regular expressions on keys that published files hold and the diffusers class has no parameter for; quantized
    files keep them."""
    licence_name: str | None = None
    licence_link: str | None = None
    """Name and URL of a licence that has no id on the Hub ("other")."""
    civitai_base_models: tuple[str, ...] = ()
    """What Civitai lists as the base model of checkpoints that were trained from this one."""
    prompt_styles: Mapping[str, str] = field(default_factory=dict)
    """Families of fine-tunes whose users write prompts otherwise: what hosts call the family -> name of the way."""
    takes_negative_prompt: bool = True
    """Whether `pipeline_class` has an argument `negative_prompt`."""
    variants: Mapping[str, VariantFacts] = field(default_factory=dict)
    """Models with the same keys and shapes: Hub repo of their components -> the facts that differ."""

    def with_base(self, base: str) -> "Architecture":
        """The facts of the variant whose other components are in the Hub repo `base`; this row if no variant's are."""
        return replace(self, base_repo=base, variants={}, **self.variants[base]) if base in self.variants else self

    def passes(self, guidance: float | None = None) -> int:
        """How often a picture goes through the denoiser in one step; `guidance` None: the default scale."""
        scale = self.guidance if guidance is None else guidance
        return 1 if self.guided_above is None or scale <= self.guided_above else 2

    @property
    def models(self) -> list["Architecture"]:
        """This row, then one for each of its variants."""
        return [self, *map(self.with_base, self.variants)]

    def why_never_quantized(self, layer: str) -> str | None:
        """The reason `layer` (a key without prefix and `.weight`) stays in full precision, or None."""
        for pattern, reason in self.never_quantized.items():
            if re.search(pattern, layer):
                return reason
        return None

    def is_unread(self, key: str) -> bool:
        """Whether `key` (without prefix) may be left over when the diffusers model is loaded."""
        return any(re.search(pattern, key) for pattern in self.unread)

    def is_sensitive(self, module: str) -> bool:
        """Whether the inputs of the diffusers module `module` are never rounded to FP8."""
        return any(re.search(pattern, module) for pattern in self.sensitive)
