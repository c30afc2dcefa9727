"""Licences, in the terms of the Hub's model cards.

On Civitai the base model decides the licence of the weights. The creator's permissions apply on top of it: see
`permissions.py`.
"""

import re
from dataclasses import dataclass

from huggingface_hub import ModelCardData

from hswq_runtime.architectures import ARCHITECTURES


@dataclass(frozen=True)
class Licence:
    """The Hub's licence fields. `name` and `link` go with the id "other"."""

    id: str
    name: str | None = None
    link: str | None = None

    @property
    def forbids_derivatives(self) -> bool:
        """Whether it is a Creative Commons "no derivatives" licence: a quantized copy may not be shared."""
        return any(re.search(r"(^|-)nd(-|$)", text.casefold()) for text in (self.id, self.name) if text)

    def __str__(self) -> str:
        return f"{self.id} ({self.name})" if self.name else self.id


_OPENRAIL_M = Licence("creativeml-openrail-m")
_OPENRAIL_PLUS = Licence("openrail++")
_FAIPL = Licence("other", "faipl-1.0-sd", "https://freedevproject.org/faipl-1.0-sd/")
_FLUX_2 = Licence(
    "other",
    "flux-non-commercial-license",
    "https://github.com/black-forest-labs/flux2/blob/main/model_licenses/LICENSE-FLUX-NON-COMMERICAL",
)
_SDXL_TURBO = Licence("other", "sai-nc-community", "https://huggingface.co/stabilityai/sdxl-turbo/blob/main/LICENSE.md")

_OF_CIVITAI_BASE_MODEL = {
    **dict.fromkeys(("SDXL 1.0", "SDXL Lightning", "SDXL Hyper", "SDXL 1.0 LCM", "Pony"), _OPENRAIL_PLUS),
    **dict.fromkeys(("SD 1.4", "SD 1.5", "SD 1.5 LCM", "SD 1.5 Hyper"), _OPENRAIL_M),
    **dict.fromkeys(("Illustrious", "NoobAI"), _FAIPL),
    "Flux.2 D": _FLUX_2,
    "SDXL Turbo": _SDXL_TURBO,
}
"""Base models that no row of `ARCHITECTURES` names."""


def licence_of_base_model(base_model: str | None) -> Licence | None:
    """The licence of a base model by its name on Civitai; None if it has none, as "Other"."""
    named = _OF_CIVITAI_BASE_MODEL | {
        name: Licence(model.licence, model.licence_name, model.licence_link)
        for row in ARCHITECTURES.values()
        for model in row.models
        for name in model.civitai_base_models
    }
    return {name.casefold(): licence for name, licence in named.items()}.get((base_model or "").casefold())


def licence_of_card(card: ModelCardData | None) -> Licence | None:
    """The licence that a Hub repo's card states; None if it states none.

    A link to a file of the repo is left out: that file's text is published with the model.
    """
    named = getattr(card, "license", None)
    if isinstance(named, list):
        named = named[0] if len(named) == 1 else None
    id = _if_it_is(r"[\w.+-]+", named)
    if id is None:
        return None
    name, link = getattr(card, "license_name", None), getattr(card, "license_link", None)
    return Licence(id, _if_it_is(r"[\w.+ -]+", name), _if_it_is(r"https://[\w.~/?#&=%+-]+", link))


def _if_it_is(pattern: str, value: object) -> str | None:
    """`value` if it is a text that matches `pattern`, else None: it comes from strangers and goes into the card."""
    return value if isinstance(value, str) and re.fullmatch(pattern, value) else None
