"""One row of facts for each architecture; nothing else in the project asks which architecture it has.

A row says how to recognise a checkpoint from its keys, which diffusers classes it becomes, how the model's
configuration follows from tensor shapes (so that nothing has to be downloaded to open a file), which layers
can never be FP8 and why, and the defaults that its model card recommends. To add an architecture, add a row.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .errors import UnknownArchitectureError

Shapes = Mapping[str, tuple[int, ...]]


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

    def why_never_quantized(self, layer: str) -> str | None:
        """The reason `layer` (a key without prefix and `.weight`) stays in full precision, or None."""
        for pattern, reason in self.never_quantized.items():
            if re.search(pattern, layer):
                return reason
        return None

    def is_sensitive(self, module: str) -> bool:
        """Whether the inputs of the diffusers module `module` are never rounded to FP8."""
        return any(re.search(pattern, module) for pattern in self.sensitive)


def _z_image_config(shapes: Shapes) -> dict:
    def count(group: str) -> int:
        return len({key.split(".")[1] for key in shapes if key.startswith(f"{group}.")})

    dim, patch_values = shapes["x_embedder.weight"]
    head_dim = shapes["layers.0.attention.q_norm.weight"][0]
    patch = 2  # the only patch size that the diffusers converter names
    return {
        "in_channels": patch_values // patch**2,
        "dim": dim,
        "n_layers": count("layers"),
        "n_refiner_layers": count("noise_refiner"),
        "n_heads": dim // head_dim,
        "n_kv_heads": dim // head_dim,
        "cap_feat_dim": shapes["cap_embedder.1.weight"][1],
        # Rotary axes (index, row, column) share a head as 32:48:48 of 128 in the published models.
        "axes_dims": [head_dim // 4, head_dim * 3 // 8, head_dim * 3 // 8],
        "axes_lens": [1024, 512, 512],
    }


Z_IMAGE = Architecture(
    name="z-image",
    title="Z-Image",
    model_class="ZImageTransformer2DModel",
    pipeline_class="ZImagePipeline",
    component="transformer",
    base_repo="Tongyi-MAI/Z-Image-Turbo",
    licence="apache-2.0",
    # `cap_pad_token` tells it from Lumina 2, whose layers have the same names.
    signature=(
        "x_embedder.weight",
        "cap_pad_token",
        "layers.0.attention.qkv.weight",
        "noise_refiner.0.attention.qkv.weight",
    ),
    config=_z_image_config,
    never_quantized={
        r"^t_embedder\.": "its forward casts the timestep to the weight's dtype, which must not be FP8",
    },
    sensitive=(r"embedder", r"adaLN_modulation", r"final_layer"),
    keep_ratio=0.10,
    steps=9,
    guidance=0.0,
    size=1024,
)

ARCHITECTURES = {row.name: row for row in (Z_IMAGE,)}

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "")
"""Prefixes seen on the denoiser's keys in single files, longest first."""


OTHER_COMPONENTS = (
    "vae.",
    "first_stage_model.",
    "text_encoders.",
    "text_encoder.",
    "cond_stage_model.",
    "conditioner.",
)
"""What the keys of text encoders and VAEs begin with in files that hold more than the denoiser."""


def recognise(keys) -> tuple[Architecture, str]:
    """The architecture of a checkpoint with these keys, and the prefix its denoiser has.

    Raises:
        UnknownArchitectureError: no row matches; the message shows what the keys look like.
    """
    keys = set(keys)
    for prefix in PREFIXES:
        for row in ARCHITECTURES.values():
            if all(prefix + key in keys for key in row.signature):
                return row, prefix
    sample = ", ".join(sorted(keys)[:3]) or "none"
    known = ", ".join(row.title for row in ARCHITECTURES.values())
    raise UnknownArchitectureError(
        f"unknown architecture: {len(keys)} keys such as {sample} match none of those known ({known})"
    )


def architecture_of(model) -> Architecture | None:
    """The architecture of a diffusers model, compiled or of a class of one's own that inherits; None if unknown."""
    model = getattr(model, "_orig_mod", model)
    names = [kind.__name__ for kind in type(model).__mro__]
    return next((row for row in ARCHITECTURES.values() if row.model_class in names), None)


def recognise_class(model_class) -> Architecture:
    """The architecture of a checkpoint in diffusers' own layout, by the class that its configuration names.

    Raises:
        UnknownArchitectureError: no row has that class.
    """
    for row in ARCHITECTURES.values():
        if row.model_class == model_class:
            return row
    known = ", ".join(row.model_class for row in ARCHITECTURES.values())
    raise UnknownArchitectureError(f"unknown architecture: {model_class!r} is none of the classes known ({known})")
