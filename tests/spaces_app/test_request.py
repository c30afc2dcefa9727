"""What a visitor may ask for, and how it becomes a link."""

import math
from urllib.parse import parse_qsl

import pytest

from spaces_app.page.links import link, request_from_query
from spaces_app.request import PROMPT_LENGTH, Limits, RequestError, default_request, validated_request

LIMITS = Limits(("original", "naive FP8", "V1", "V2"), steps=9, guidance=0.0, size=64)
FIELDS = {
    "prompt": "a star",
    "negative": "",
    "seed": 3,
    "steps": 9,
    "guidance": 0,
    "size": 64,
    "variants": ["V1", "V2"],
}


def test_a_request_is_put_in_order():
    request = validated_request(
        LIMITS, **FIELDS | {"prompt": "  a\n star ", "seed": 3.0, "variants": ["V2", "original"]}
    )
    assert (request.prompt, request.seed, request.variants) == ("a star", 3, ("original", "V2"))
    assert type(request.seed) is int and request.reference == "original"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompt": ""}, "write a prompt"),
        ({"prompt": " \n "}, "write a prompt"),
        ({"prompt": "x" * (PROMPT_LENGTH + 1)}, "601 characters"),
        ({"prompt": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}}, "has to be text"),
        ({"prompt": "a\x00b"}, "cannot be printed"),
        ({"seed": math.nan}, "seed has to be a number"),
        ({"seed": "1"}, "seed has to be a number"),
        ({"seed": True}, "seed has to be a number"),
        ({"seed": 1.5}, "whole number"),
        ({"seed": -1}, "seed has to be from 0"),
        ({"steps": 10**9}, "steps has to be from 1 to 60"),
        ({"steps": 0}, "steps has to be from 1"),
        ({"guidance": math.inf}, "guidance has to be a number"),
        ({"size": 10**6}, "size has to be from 32 to 96"),
        ({"size": 50}, "multiple of 16"),
        ({"size": None}, "size has to be a number"),
        ({"variants": ["V1"]}, "at least two"),
        ({"variants": ["V1", "V1"]}, "at least two"),
        ({"variants": ["V1", "../V2"]}, "there is no variant"),
        ({"variants": "V1"}, "a list of names"),
        ({"lora": ["x"]}, "LoRA has to be text"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_had_is_a_sentence(change, sentence):
    with pytest.raises(RequestError, match=sentence):
        validated_request(LIMITS, **FIELDS | change)


def test_a_link_leads_back_to_its_request():
    request = validated_request(LIMITS, **FIELDS | {"prompt": "50% & a “star”?", "negative": "rings", "guidance": 1.5})
    assert request_from_query(dict(parse_qsl(link("demo", request)[1:])), LIMITS) == request


def test_a_link_may_leave_everything_out_but_the_prompt():
    assert request_from_query({"prompt": "a star"}, LIMITS) == default_request(LIMITS, "a star")
    assert request_from_query({"__theme": "dark"}, LIMITS) is None


@pytest.mark.parametrize(
    "query", [{"seed": "one"}, {"steps": "nan"}, {"size": "1e9"}, {"variants": "original|/etc"}], ids=str
)
def test_a_broken_link_is_a_sentence(query):
    with pytest.raises(RequestError):
        request_from_query({"prompt": "a star"} | query, LIMITS)
