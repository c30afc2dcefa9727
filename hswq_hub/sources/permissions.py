"""What a creator on Civitai allows. Its API has had three ways to write it, which are all read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOBODY = "None"
COMMERCIAL_USES = {
    "Image": "sell images made with it",
    "RentCivit": "run it on Civitai",
    "Rent": "run it in paid services",
    "Sell": "sell it or merges of it",
}


@dataclass(frozen=True)
class Permissions:
    """The creator's flags. None: the API did not say, which counts as no.

    no_credit: use without naming the creator. commercial_use: the allowed ones, keys of `COMMERCIAL_USES`. derivatives:
    sharing merges and other derivatives. different_licence: sharing those under other terms.
    """

    no_credit: bool | None
    commercial_use: tuple[str, ...] | None
    derivatives: bool | None
    different_licence: bool | None

    @classmethod
    def from_api(cls, model: Mapping[str, Any]) -> "Permissions":
        """Read the `allow…` fields of `GET /models/{id}`."""
        return cls(
            no_credit=_flag(model.get("allowNoCredit")),
            commercial_use=_commercial_use(model.get("allowCommercialUse")),
            derivatives=_flag(model.get("allowDerivatives")),
            different_licence=_flag(model.get("allowDifferentLicense")),
        )

    def lines(self) -> list[str]:
        """One phrase for each flag, for people."""
        uses = [COMMERCIAL_USES[use] for use in self.commercial_use or ()]
        return [
            f"use without credit: {_say(self.no_credit)}",
            f"share derivatives: {_say(self.derivatives)}",
            f"other terms for derivatives: {_say(self.different_licence)}",
            f"commercial use: {'not stated' if self.commercial_use is None else '; '.join(uses) or 'no'}",
        ]


def _say(flag: bool | None) -> str:
    return {True: "yes", False: "no", None: "not stated"}[flag]


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _commercial_use(value: object) -> tuple[str, ...] | None:
    """A Postgres literal "{Image,RentCivit}", a JSON list, or an old single "Sell"."""
    if isinstance(value, str):
        value = re.findall(r"\w+", value)
    elif not isinstance(value, list):
        return None
    named = {str(use).casefold() for use in value}
    return tuple(use for use in COMMERCIAL_USES if use.casefold() in named)
