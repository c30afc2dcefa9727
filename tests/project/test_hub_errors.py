"""Each way in which the Hub fails is one sentence with what to do, the same wherever it arises."""

from collections.abc import Callable

import httpx2
import pytest
from huggingface_hub import errors

from hswq_hub.hub.client import AccountError, UploadError
from hswq_hub.hub.client import explained as writing
from hswq_hub.sources import huggingface
from hswq_hub.sources.errors import SourceError
from hswq_runtime import HSWQError
from hswq_runtime.hub_errors import Kind, explained, hub_site, refusal_of

TOKEN = "hf_secret0123456789"
SUBJECT = "alice/model"


def answer(kind: type[errors.HfHubHTTPError], status: int, url: str | None = None, **headers: str) -> Exception:
    """What the client raises for an answer of the Hub, whose words quote the token."""
    request = httpx2.Request("GET", url or f"{hub_site()}/api/models/{SUBJECT}")
    response = httpx2.Response(status, request=request, headers=headers)
    return kind("no", response=response, server_message=f"not with {TOKEN}\x1b[2J")


FAILURES: dict[Kind, Callable[[], Exception]] = {
    Kind.BAD_NAME: lambda: errors.HFValidationError("Repo id must be"),
    Kind.NO_REPO: lambda: answer(errors.RepositoryNotFoundError, 404),
    Kind.GATED: lambda: answer(errors.GatedRepoError, 403),
    Kind.NO_REVISION: lambda: answer(errors.RevisionNotFoundError, 404),
    Kind.NO_FILE: lambda: answer(errors.RemoteEntryNotFoundError, 404),
    Kind.NOT_FOUND: lambda: answer(errors.HfHubHTTPError, 404),
    Kind.TOKEN: lambda: answer(errors.HfHubHTTPError, 401),
    Kind.FORBIDDEN: lambda: answer(errors.HfHubHTTPError, 403),
    Kind.PAYMENT: lambda: answer(errors.HfHubHTTPError, 402),
    Kind.CONFLICT: lambda: answer(errors.HfHubHTTPError, 412),
    Kind.BUSY: lambda: answer(errors.HfHubHTTPError, 429, **{"Retry-After": "7"}),
    Kind.SERVER: lambda: answer(errors.HfHubHTTPError, 503),
    Kind.STORAGE: lambda: answer(errors.HfHubHTTPError, 403, "https://storage.example/x?signature=abc"),
    Kind.REFUSED: lambda: answer(errors.HfHubHTTPError, 418),
    Kind.OFFLINE: lambda: errors.OfflineModeIsEnabled("offline"),
    Kind.NOT_CACHED: lambda: errors.LocalEntryNotFoundError("not here"),
    Kind.XET: lambda: ConnectionError("xet: no route"),
    Kind.UNREACHABLE: lambda: httpx2.ConnectError("no route"),
    Kind.DAMAGED: lambda: errors.SafetensorsParsingError("bad header"),
    Kind.CARD: lambda: ValueError("README.md: license must be a string"),
}
each_kind = pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name.lower())


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def raised(block, kind: Kind) -> HSWQError:
    with pytest.raises(HSWQError) as caught, block:
        raise FAILURES[kind]()
    assert caught.value.__suppress_context__, "the client's own error, which may hold an address, is not shown"
    return caught.value


@each_kind
def test_each_failure_is_of_its_kind_and_one_sentence(kind):
    refusal = refusal_of(FAILURES[kind]())
    assert refusal.kind is kind
    sentence = refusal.sentence(SUBJECT)
    assert TOKEN not in sentence and sentence.isprintable() and len(sentence) <= 300
    assert "signature" not in sentence
    assert ";" in sentence or ":" in sentence or kind in (Kind.REFUSED, Kind.BAD_NAME), "it says what to do"


@each_kind
def test_the_sentence_is_the_same_wherever_it_arises(kind):
    blocks = {
        UploadError: writing(SUBJECT),
        SourceError: explained(SUBJECT, huggingface.error_of),
        HSWQError: explained(SUBJECT, lambda _: HSWQError),
    }
    said = set()
    for family, block in blocks.items():
        error = raised(block, kind)
        assert isinstance(error, family)
        said.add(str(error))
    assert said == {refusal_of(FAILURES[kind]()).sentence(SUBJECT)}


@pytest.mark.parametrize("kind", [Kind.TOKEN, Kind.FORBIDDEN, Kind.NO_REPO])
def test_what_an_account_may_not_is_its_own_error(kind):
    assert isinstance(raised(writing(SUBJECT), kind), AccountError)


def test_a_place_may_say_something_else_of_a_kind():
    block = explained(SUBJECT, lambda _: HSWQError, {Kind.PAYMENT: "a free account has two"})
    assert str(raised(block, Kind.PAYMENT)) == "a free account has two"


def test_an_answer_that_another_error_wraps_is_found():
    try:
        try:
            raise FAILURES[Kind.BUSY]()
        except errors.HfHubHTTPError as inner:
            raise RuntimeError("upload failed") from inner
    except RuntimeError as error:
        refusal = refusal_of(error)
    assert (refusal.kind, refusal.wait) == (Kind.BUSY, 8.0)
    assert "again in 8 seconds" in refusal.sentence(SUBJECT)


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(28, "No space left on device"), KeyError("x")])
def test_what_is_not_the_hubs_comes_through(error):
    assert refusal_of(error) is None
    with pytest.raises(type(error)), explained(SUBJECT, lambda _: HSWQError):
        raise error


def test_our_own_errors_come_through():
    with pytest.raises(HSWQError, match="ours"), writing(SUBJECT):
        raise HSWQError("ours")


def test_every_kind_is_tried():
    assert FAILURES.keys() == set(Kind)
