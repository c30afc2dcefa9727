"""The prompts of a card's widget on the Hub, and the family that a repo is of."""

import pytest
from support import tiny
from support.hub_server import HubServer, Repo

from hswq_hub.sources.find import find
from hswq_hub.sources.listing import NSFW_TAG
from hswq_hub.sources.prompts.pages import HUB_PAGE

WIDGET = [
    {"text": "a red fox", "output": {"url": "1.png"}, "parameters": {"negative_prompt": "blurry"}},
    {"text": "-"},
    {"text": "a (grey:1.2) heron", "parameters": {"negative_prompt": "(blurry:1.1)"}},
    {"src": "no text"},
    "no mapping",
]


@pytest.fixture
def look(monkeypatch, tmp_path):
    """A repo with this card -> what is listed of it."""
    model = tiny.checkpoint(tmp_path).read_bytes()
    with HubServer() as server:
        server.adopt(monkeypatch, tmp_path / "hf")

        def listing(card: dict, name: str = "alice/model", tags: tuple[str, ...] = ()):
            server.repos[name] = Repo({"my.safetensors": model}, card, tags=list(tags))
            return find(name).listing

        yield listing


def test_the_widgets_prompts_are_taken(look):
    found = look({"license": "mit", "widget": WIDGET}).examples
    assert (found.prompts, found.negative, found.page) == (("a red fox", "a grey heron"), "blurry", HUB_PAGE)


@pytest.mark.parametrize("widget", [None, "x", {"text": "x"}, [], [{"text": 1, "parameters": 2}]], ids=str)
def test_a_card_without_any(look, widget):
    assert look({"license": "mit", "widget": widget}).examples.prompts == ()


def test_those_of_a_model_for_adults_are_not_shown_to_everybody(look):
    assert look({"widget": WIDGET}, tags=(NSFW_TAG,)).examples.prompts == ()


@pytest.mark.parametrize(
    ("card", "first"),
    [
        ({"base_model": "OnomaAIResearch/Illustrious-xl-early-release-v0"}, "Illustrious-xl-early-release-v0"),
        ({"base_model": ["Laxhar/noobai-XL-1.1", "x/y"]}, "noobai-XL-1.1"),
        ({"base_model": 7}, "model"),
        ({}, "model"),
    ],
    ids=str,
)
def test_the_base_model_is_the_clearest_name_and_owners_are_none(look, card, first):
    assert look(card, "pony/model").families[0] == first and "pony" not in look(card, "pony/model").families
