"""The example prompts on a model's page: of Civitai's pictures, and of the widget of a card on the Hub.

    GET /api/v1/images?modelVersionId={id}    pictures made with a version, with what they were made with

A version lists its own pictures, with or without their prompts. Where it only says that there are some, that request
is made, and of its pictures those are taken that the version lists: what others show changes from day to day.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .examples import Examples

CIVITAI_PAGE, HUB_PAGE = "the model's own page on Civitai", "the model's own card on Hugging Face"
_MOST_PICTURES = 100
_SAFE_LEVELS, _SAFE_NAMES = range(1, 4), (False, "None", "Soft")
"""PG, PG13 and both of them, as bits and as names."""
_NOT_THERE = (400, 404)
"""What a server says that has no such endpoint, or none for this version."""
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_FILE_ID = re.compile(r"/(\d{4,})\.\w+$")

Answer = tuple[int, Mapping[str, Any]]
Explain = Callable[[int, Mapping[str, Any], bool], Exception]


def civitai_examples(
    version: Mapping[str, Any],
    get: Callable[[str], Answer],
    explain: Callable[[int, Mapping[str, Any], bool], Exception],
) -> Examples:
    """The prompts of a version's own pictures, but of those that are for adults.

    Args:
        version: as the API answers it.
        get: status and body of a path.
        explain: status and body of any other answer than a list of pictures, or that there is none -> what to raise.

    Raises:
        SourceError: the API kept failing, or refuses.
    """
    pictures = [picture for picture in _mappings(version.get("images")) if _is_safe(picture)]
    found = [meta for picture in pictures if (meta := _meta(picture))]
    if not found and any(picture.get("hasMeta") is True for picture in pictures):
        asked = f"modelVersionId={version['id']}&limit={_MOST_PICTURES}&withMeta=true&flatMeta=true"
        status, body = get(f"/api/v1/images?{asked}")
        if status not in (200, *_NOT_THERE):
            raise explain(status, body, True)
        listed = set[str]().union(*map(_names, pictures))
        shown = _mappings(body.get("items"))
        found = [_meta(picture) for picture in shown if _is_safe(picture) and not listed.isdisjoint(_names(picture))]
    return Examples.of(
        (meta.get("prompt") for meta in found), (meta.get("negativePrompt") for meta in found), CIVITAI_PAGE
    )


def widget_examples(widget: object) -> Examples:
    """The prompts of a Hub card's widget: `text`, and `negative_prompt` of the `parameters`."""
    entries = _mappings(widget)
    parameters = [entry.get("parameters") for entry in entries]
    negatives = [part.get("negative_prompt") for part in parameters if isinstance(part, Mapping)]
    return Examples.of((entry.get("text") for entry in entries), negatives, HUB_PAGE)


def _meta(picture: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a picture was made with; {} if that is not said. Some answers have it within itself."""
    meta = picture.get("meta")
    inner = meta.get("meta") if isinstance(meta, Mapping) else None
    return inner if isinstance(inner, Mapping) else meta if isinstance(meta, Mapping) else {}


def _is_safe(picture: Mapping[str, Any]) -> bool:
    """Whether everybody may see it; one that nobody has rated yet is not taken."""
    for level in (picture.get("browsingLevel"), picture.get("nsfwLevel")):
        if isinstance(level, int) and not isinstance(level, bool):
            return level in _SAFE_LEVELS
    named = picture.get("nsfwLevel", picture.get("nsfw"))
    return any(named is name if isinstance(name, bool) else named == name for name in _SAFE_NAMES)


def _names(picture: Mapping[str, Any]) -> set[str]:
    """What tells a picture from others, in every answer that lists it: its id, and those in its address."""
    address = str(picture.get("url", ""))
    own = {str(picture["id"])} if isinstance(picture.get("id"), int) else set[str]()
    return own | {found.lower() for found in _UUID.findall(address)} | set(_FILE_ID.findall(address))


def _mappings(value: object) -> list[Mapping[str, Any]]:
    entries: Iterable[object] = value if isinstance(value, list) else []
    return [entry for entry in entries if isinstance(entry, Mapping)]
