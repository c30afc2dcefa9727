"""A comparison as a link, and back: `?prompt=…&seed=…`."""

from collections.abc import Mapping
from urllib.parse import urlencode

from ..request import FIRST_SEED, Limits, Request, RequestError, validated_request

_SEPARATOR = "|"


def link(reference: str, request: Request) -> str:
    """The query string that reproduces this comparison."""
    fields = {
        "model": reference,
        "prompt": request.prompt,
        "negative": request.negative,
        "seed": request.seed,
        "steps": request.steps,
        "guidance": f"{request.guidance:g}",
        "size": request.size,
        "variants": _SEPARATOR.join(request.variants),
        "lora": request.lora,
    }
    return "?" + urlencode({name: value for name, value in fields.items() if value != ""})


def request_from_query(query: Mapping[str, str], limits: Limits) -> Request | None:
    """The request of a link, with defaults for missing fields; None for a link without a prompt.

    Raises:
        RequestError: a field is invalid.
    """
    if "prompt" not in query:
        return None
    variants = query.get("variants")
    return validated_request(
        limits,
        query["prompt"],
        query.get("negative", ""),
        _number(query, "seed", FIRST_SEED),
        _number(query, "steps", limits.steps),
        _number(query, "guidance", limits.guidance),
        _number(query, "size", limits.size),
        limits.variants if variants is None else variants.split(_SEPARATOR),
        query.get("lora", ""),
    )


def _number(query: Mapping[str, str], name: str, default: float) -> float:
    try:
        return float(query.get(name, default))
    except ValueError:
        raise RequestError(f"the link's {name} is not a number") from None
