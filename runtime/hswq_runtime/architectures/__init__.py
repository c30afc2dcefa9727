"""One row of facts for each architecture; no other code names an architecture.

A row says how to recognise a checkpoint from its keys, which diffusers classes it becomes, how the model's
configuration follows from tensor shapes (so that a file can be opened without downloading a configuration), which
layers can never be FP8 and why, and the defaults that its model card recommends. To add an architecture, add a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import UnknownArchitectureError
from ..text import written
from .aura_flow import AURA_FLOW
from .chroma import CHROMA
from .flux import FLUX_DEV, FLUX_SCHNELL
from .flux2 import FLUX2_KLEIN_4B, FLUX2_KLEIN_9B
from .qwen_image import QWEN_IMAGE
from .row import Architecture, Config, Shapes
from .stable_diffusion import SD_15, SDXL
from .stable_diffusion_3 import SD35_LARGE, SD35_MEDIUM
from .unknown import describe_unknown
from .z_image import Z_IMAGE

if TYPE_CHECKING:
    import torch

__all__ = [
    "ARCHITECTURES",
    "OTHER_COMPONENTS",
    "PREFIXES",
    "Architecture",
    "Config",
    "Shapes",
    "architecture_of",
    "base_named",
    "of_class",
    "recognise",
    "recognise_class",
]

ARCHITECTURES = {
    row.name: row
    for row in (
        Z_IMAGE,
        SDXL,
        SD_15,
        FLUX_DEV,
        FLUX_SCHNELL,
        FLUX2_KLEIN_4B,
        FLUX2_KLEIN_9B,
        SD35_MEDIUM,
        SD35_LARGE,
        CHROMA,
        QWEN_IMAGE,
        AURA_FLOW,
    )
}

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "")
"""Prefixes seen on the denoiser's keys in single files, longest first."""

OTHER_COMPONENTS = (
    "vae.",
    "first_stage_model.",
    "text_encoders.",
    "text_encoder.",
    "cond_stage_model.",
    "conditioner.",
    "model_ema.",
    "v_pred",
    "ztsnr",
    "edm_",
)
"""Prefixes of keys that are not the denoiser's: of text encoders, VAEs, weight averages and marker tensors."""


def recognise(tensors: Iterable[str]) -> tuple[Architecture, str]:
    """The architecture of a checkpoint with these keys, and the prefix of its denoiser's keys.

    Of several rows with the same keys it is the first; :func:`of_class` tells them apart.

    Args:
        tensors: the keys; a mapping from key to something with a `shape` gives a better error message.

    Raises:
        UnknownArchitectureError: no row matches; the message describes the keys.
    """
    keys = set(tensors)
    for prefix in PREFIXES:
        for row in ARCHITECTURES.values():
            if all(prefix + key in keys for key in row.signature):
                return row, prefix
    raise UnknownArchitectureError(
        f"unknown architecture: {describe_unknown(tensors, ARCHITECTURES.values(), PREFIXES)}"
    )


def of_class(model_class: str | None, config: Mapping[str, Any]) -> Architecture | None:
    """The architecture of a diffusers class with this configuration; None if no row fits."""
    rows = [row for row in ARCHITECTURES.values() if row.model_class == model_class]
    return rows[0] if len(rows) == 1 else next((row for row in rows if row.fits(config)), None)


def architecture_of(model: torch.nn.Module) -> Architecture | None:
    """The architecture of a diffusers model, of a compiled one, or of a subclass; None if unknown."""
    model = getattr(model, "_orig_mod", model)
    found = (of_class(kind.__name__, getattr(model, "config", {})) for kind in type(model).__mro__)
    return next((row for row in found if row is not None), None)


def recognise_class(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a checkpoint in diffusers' own layout, by its configuration.

    Raises:
        UnknownArchitectureError: no row has its class and fits its configuration.
    """
    name = config.get("_class_name")
    if (found := of_class(name, config)) is not None:
        return found
    known = ", ".join(sorted({row.model_class for row in ARCHITECTURES.values()}))
    raise UnknownArchitectureError(
        f"unknown architecture: {written(name)}, configured as it is, is none of the classes known ({known})"
    )


def base_named(architecture: Architecture, base_model: str | None) -> str | None:
    """The base repo of the model of `architecture` that Civitai calls `base_model`; None if it is none of them."""
    named = (base_model or "").casefold()
    models = (model for model in architecture.models if named in map(str.casefold, model.civitai_base_models))
    return next((model.base_repo for model in models), None)
