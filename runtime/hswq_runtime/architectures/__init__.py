"""One row of facts for each architecture; nothing else in the project asks which architecture it has.

A row says how to recognise a checkpoint from its keys, which diffusers classes it becomes, how the model's
configuration follows from tensor shapes (so that nothing has to be downloaded to open a file), which layers
can never be FP8 and why, and the defaults that its model card recommends. To add an architecture, add a row.
"""

from collections.abc import Iterable, Mapping

from ..errors import UnknownArchitectureError
from .aura_flow import AURA_FLOW
from .chroma import CHROMA
from .flux import FLUX_DEV, FLUX_SCHNELL
from .flux2 import FLUX2_KLEIN_4B, FLUX2_KLEIN_9B
from .look import look
from .qwen_image import QWEN_IMAGE
from .row import Architecture, Shapes
from .stable_diffusion import SD_15, SDXL
from .stable_diffusion_3 import SD35_LARGE, SD35_MEDIUM
from .z_image import Z_IMAGE

__all__ = [
    "ARCHITECTURES",
    "OTHER_COMPONENTS",
    "PREFIXES",
    "Architecture",
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
"""What the keys of text encoders, VAEs, averages and marks begin with in files that hold more than the denoiser."""


def recognise(tensors: Iterable[str]) -> tuple[Architecture, str]:
    """The architecture of a checkpoint with these keys, and the prefix its denoiser has.

    Of several rows with the same keys it is the first; :func:`of_class` tells them apart.

    Args:
        tensors: the keys, or what a header says of each, by key.

    Raises:
        UnknownArchitectureError: no row matches; the message says what the keys look like.
    """
    keys = set(tensors)
    for prefix in PREFIXES:
        for row in ARCHITECTURES.values():
            if all(prefix + key in keys for key in row.signature):
                return row, prefix
    raise UnknownArchitectureError(f"unknown architecture: {look(tensors, ARCHITECTURES.values(), PREFIXES)}")


def of_class(model_class: str, config: Mapping) -> Architecture | None:
    """The architecture of a diffusers class with this configuration; None if no row has it."""
    rows = [row for row in ARCHITECTURES.values() if row.model_class == model_class]
    return rows[0] if len(rows) == 1 else next((row for row in rows if row.fits(config)), None)


def architecture_of(model) -> Architecture | None:
    """The architecture of a diffusers model, compiled or of a class of one's own that inherits; None if unknown."""
    model = getattr(model, "_orig_mod", model)
    found = (of_class(kind.__name__, getattr(model, "config", {})) for kind in type(model).__mro__)
    return next((row for row in found if row is not None), None)


def recognise_class(config: Mapping) -> Architecture:
    """The architecture of a checkpoint in diffusers' own layout, by its configuration.

    Raises:
        UnknownArchitectureError: no row has its class, or none that has it fits the rest.
    """
    name = config.get("_class_name")
    if (found := of_class(name, config)) is not None:
        return found
    known = ", ".join(sorted({row.model_class for row in ARCHITECTURES.values()}))
    raise UnknownArchitectureError(
        f"unknown architecture: {name!r}, configured as it is, is none of the classes known ({known})"
    )


def base_named(architecture: Architecture, host_name: str | None) -> str | None:
    """The base repo of that model of `architecture` which a host calls `host_name`; None if it names none of them."""
    named = (host_name or "").casefold()
    models = (model for model in architecture.models if named in map(str.casefold, model.host_names))
    return next((model.base_repo for model in models), None)
