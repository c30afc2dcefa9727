"""The prompts of a version's own pictures: which are taken, and what happens to the one request for them."""

import pytest
from support.civitai import REFERENCE, locate, pull
from support.civitai_server import VERSION

from hswq_hub.sources.errors import AccessError, DownloadError
from hswq_hub.sources.prompts.pages import CIVITAI_PAGE

ADDRESS = "https://image.civitai.com/xG1nkqKTMzGDvpLrqFT7WA/{}/original=true/{}.jpeg"
UUID = "0b9a1e5c-7f7a-4d0e-9f43-0123456789{:02d}"


def picture(number: int, prompt: str | None = None, negative: str | None = None, **more) -> dict:
    """A picture as a version lists it; without a prompt it only says that there is one."""
    said = {"meta": {"prompt": prompt, "negativePrompt": negative}} if prompt else {}
    return {"url": ADDRESS.format(UUID.format(number), 1000 + number), "nsfwLevel": 1, "hasMeta": True, **said, **more}


def requests_for_pictures(server) -> list[str]:
    return [seen.path for seen in server.seen if seen.path.startswith("/api/v1/images")]


def examples(server):
    return locate(REFERENCE, server.url).examples


def test_the_versions_own_prompts_are_taken_without_a_further_request(server):
    server.version["images"] = [
        picture(1, "a (fox:1.3), <lora:x:1>", "ugly"), picture(2, "a fox", "bad"), picture(3, "a hen", "bad"),
    ]  # fmt: skip
    found = examples(server)
    assert (found.prompts, found.negative, found.page) == (("a fox", "a hen"), "bad", CIVITAI_PAGE)
    assert requests_for_pictures(server) == []
    prompts = pull(server).prompts
    assert prompts.calibration[:2] == ("a fox", "a hen") and prompts.negative == "bad"


@pytest.mark.parametrize(
    ("flags", "taken"),
    [
        ({"nsfwLevel": 1}, True),
        ({"nsfwLevel": 3}, True),
        ({"nsfwLevel": 4}, False),
        ({"nsfwLevel": 5}, False),
        ({"nsfwLevel": 0}, False),
        ({"nsfwLevel": "None"}, True),
        ({"nsfwLevel": "Soft", "nsfw": True}, True),
        ({"nsfwLevel": "Mature"}, False),
        ({"nsfwLevel": "X", "browsingLevel": 16}, False),
        ({"nsfwLevel": "Soft", "browsingLevel": 4}, False),
        ({"nsfwLevel": None}, False),
        ({"nsfw": False}, True),
        ({"nsfw": "Soft"}, True),
        ({"nsfw": True}, False),
        ({"nsfw": "X"}, False),
        ({}, False),
    ],
    ids=str,
)
def test_prompts_of_pictures_for_adults_are_not_shown_to_everybody(server, flags, taken):
    shown = picture(1, "a prompt")
    del shown["nsfwLevel"]
    server.version["images"] = [shown | flags]
    assert examples(server).prompts == (("a prompt",) if taken else ())


def test_prompts_that_are_only_said_to_be_there_are_asked_for_once(server):
    server.version["images"] = [picture(1), picture(2), picture(3, nsfwLevel=16)]
    server.gallery = 200, {
        "items": [
            {"id": 1001, "url": "https://elsewhere/1.jpeg", "nsfwLevel": "None", "meta": {"prompt": "by its id"}},
            {"id": 7, "url": ADDRESS.format(UUID.format(2), 7), "nsfwLevel": "Soft",
             "meta": {"id": 7, "meta": {"prompt": "by its address", "negativePrompt": "dull"}}},
            {"id": 1003, "url": "https://elsewhere/3.jpeg", "nsfwLevel": "X", "meta": {"prompt": "not for everybody"}},
            {"id": 9999, "url": "https://elsewhere/9.jpeg", "nsfwLevel": "None", "meta": {"prompt": "of a stranger"}},
            {"id": 1001, "nsfwLevel": "None", "meta": None},
            "no picture",
        ]
    }  # fmt: skip
    found = examples(server)
    assert (found.prompts, found.negative) == (("by its id", "by its address"), "dull")
    (path,) = requests_for_pictures(server)
    assert f"modelVersionId={VERSION}&" in path and "withMeta=true" in path


@pytest.mark.parametrize(
    "answer", [(404, {}), (400, {}), (200, {}), (200, {"items": None}), (200, {"items": [{"meta": 1}]})], ids=str
)
def test_a_server_without_them_has_none(server, answer):
    server.version["images"] = [picture(1)]
    server.gallery = answer
    assert examples(server).prompts == () and len(requests_for_pictures(server)) == 1


@pytest.mark.parametrize(("status", "error"), [(403, AccessError), (451, AccessError), (500, DownloadError)])
def test_a_refusal_is_not_taken_for_no_prompts(server, status, error):
    server.version["images"] = [picture(1)]
    server.gallery = status, {"error": "no"}
    with pytest.raises(error):
        examples(server)


@pytest.mark.parametrize("images", [None, [], "x", [1, None], [{"meta": "x"}], [picture(1, hasMeta=False)]], ids=str)
def test_a_page_without_prompts_asks_for_none(server, images):
    server.version["images"] = images
    assert examples(server).prompts == () and requests_for_pictures(server) == []


def test_hostile_prompts_are_one_line_of_text(server):
    server.version["images"] = [
        picture(1, "a\x1b[2Jb\n\n# Heading"),
        {"nsfwLevel": 1, "meta": {"prompt": ["list"]}},
        {"nsfwLevel": 1, "meta": {"prompt": "x" * 10**5}},
    ]
    found = examples(server).prompts
    assert len(found) == 2 and all(prompt.isprintable() and len(prompt) <= 2000 for prompt in found)
