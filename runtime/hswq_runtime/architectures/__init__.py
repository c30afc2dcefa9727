"""One row of facts for each architecture; nothing else in the project asks which architecture it has.

A row says how to recognise a checkpoint from its keys, which diffusers classes it becomes, how the model's
configuration follows from tensor shapes (so that nothing has to be downloaded to open a file), which layers
can never be FP8 and why, and the defaults that its model card recommends. To add an architecture, add a row.
"""

from collections.abc import Mapping

from ..errors import UnknownArchitectureError
from .row import Architecture, Shapes
from .stable_diffusion import SD_15, SDXL
from .z_image import Z_IMAGE

__all__ = [
    "ARCHITECTURES",
    "OTHER_COMPONENTS",
    "PREFIXES",
    "Architecture",
    "Shapes",
    "architecture_of",
    "recognise",
    "recognise_class",
]

ARCHITECTURES = {row.name: row for row in (Z_IMAGE, SDXL, SD_15)}

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
    rows = (row for row in ARCHITECTURES.values() if row.model_class in names)
    return next((row for row in rows if row.fits(model.config)), None)


def recognise_class(config: Mapping) -> Architecture:
    """The architecture of a checkpoint in diffusers' own layout, by its configuration.

    Raises:
        UnknownArchitectureError: no row has that class and such a configuration.
    """
    model_class = config.get("_class_name")
    rows = [row for row in ARCHITECTURES.values() if row.model_class == model_class]
    if not rows:
        known = ", ".join(dict.fromkeys(row.model_class for row in ARCHITECTURES.values()))
        raise UnknownArchitectureError(f"unknown architecture: {model_class!r} is none of the classes known ({known})")
    for row in rows:
        if row.fits(config):
            return row
    titles = " nor ".join(row.title for row in rows)
    raise UnknownArchitectureError(f"unknown architecture: the {model_class} is neither {titles} by its configuration")
