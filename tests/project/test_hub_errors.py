"""Each way in which the Hub's client fails has one sentence, wherever it arises; a part only names its exception."""

import json
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    SafetensorsParsingError,
)
from huggingface_hub.utils import hf_raise_for_status

import spaces_app
from hswq_hub.hub.client import AccountError, UploadError
from hswq_hub.hub.client import explained as explained_for_uploads
from hswq_hub.hub.space import SpaceError, deploy_space
from hswq_hub.jobs.jobs import JobError, Jobs
from hswq_hub.sources.errors import AccessError, DownloadError, UnknownReferenceError
from hswq_hub.sources.huggingface import Hub
from hswq_hub.sources.reference import HubRef
from hswq_runtime.checkpoints.locate import HubOptions, fetch_components
from hswq_runtime.errors import FormatError, HSWQError
from hswq_runtime.hub_errors import Kind, refusal_of
from spaces_app.models.remote import check_size
from spaces_app.request import RequestError

TOKEN = "hf_" + "secret" * 5
REPO = "alice/model"


def answer(status, code=None, said=None, headers=(), site=constants.ENDPOINT, query=""):
    """The error that the client makes of an HTTP answer. code, said: the Hub's own headers, by which it knows them."""
    request = httpx2.Request("GET", f"{site}/api/models/{REPO}{query}")
    said_so = {"X-Error-Code": code, "X-Error-Message": said}
    headers = dict(headers) | {name: value for name, value in said_so.items() if value}
    response = httpx2.Response(status, headers=headers, request=request)
    with pytest.raises(httpx2.HTTPError) as caught:
        hf_raise_for_status(response)
    return caught.value


ERRORS = {
    Kind.BAD_NAME: lambda: HFValidationError("Repo id must be in the form 'repo_name'"),
    Kind.NO_REPO: lambda: answer(404, "RepoNotFound"),
    Kind.GATED: lambda: answer(403, "GatedRepo"),
    Kind.DISABLED: lambda: answer(403, said="Access to this resource is disabled."),
    Kind.NO_REVISION: lambda: answer(404, "RevisionNotFound"),
    Kind.NO_FILE: lambda: answer(404, "EntryNotFound"),
    Kind.NOT_FOUND: lambda: answer(404),
    Kind.TOKEN: lambda: answer(401, said="Invalid credentials in Authorization header"),
    Kind.FORBIDDEN: lambda: answer(403, said=f"{TOKEN} may only read"),
    Kind.PAYMENT: lambda: answer(402, said="No credit\x1bleft"),
    Kind.CONFLICT: lambda: answer(412),
    Kind.BUSY: lambda: answer(429, headers={"Retry-After": "41"}),
    Kind.SERVER: lambda: answer(503),
    Kind.STORAGE: lambda: answer(403, site="https://storage.example", query="?signature=abc"),
    Kind.REFUSED: lambda: answer(422, said="Tags are too long"),
    Kind.OFFLINE: lambda: OfflineModeIsEnabled("HF_HUB_OFFLINE"),
    Kind.NOT_CACHED: lambda: LocalEntryNotFoundError("no snapshot"),
    Kind.XET: lambda: ConnectionError("error of xet-core"),
    Kind.UNREACHABLE: lambda: httpx2.ConnectTimeout("timed out"),
    Kind.DAMAGED: lambda: SafetensorsParsingError("the header is cut"),
    Kind.CARD: lambda: ValueError("Invalid metadata in README.md: license"),
}
"""Each kind, as the client raises it."""

NEXT_STEP = {
    Kind.BAD_NAME: "owner/name is",
    Kind.NO_REPO: "run `hf auth login` if it is private",
    Kind.GATED: "accept its terms",
    Kind.DISABLED: "or choose another repo",
    Kind.NO_REVISION: "look at its branches and tags",
    Kind.NO_FILE: "look at its files",
    Kind.NOT_FOUND: "check its name",
    Kind.TOKEN: "run `hf auth login` again",
    Kind.FORBIDDEN: "(… may only read); make one that may",
    Kind.PAYMENT: "(No credit\\x1bleft); add some at",
    Kind.CONFLICT: "run the same command again",
    Kind.BUSY: "run the same command again in 42 seconds",
    Kind.SERVER: "answers 503 for alice/model; run the same command again later",
    Kind.STORAGE: "answers 403 for alice/model; run the same command again",
    Kind.REFUSED: "(answer 422) what is to be done on alice/model (Tags are too long)",
    Kind.OFFLINE: "HF_HUB_OFFLINE is set; unset it",
    Kind.NOT_CACHED: "check the connection and HF_HUB_OFFLINE",
    Kind.XET: "HF_HUB_DISABLE_XET=1",
    Kind.UNREACHABLE: "the connection broke (ConnectTimeout); check it",
    Kind.DAMAGED: "the header is cut",
    Kind.CARD: "license",
}
"""What each sentence says on top of what is wrong."""


class Failing:
    """In place of the Hub's client: every call of it raises `error`."""

    def __init__(self, error):
        self.error = error

    def __getattr__(self, name):
        def call(*arguments, **options):
            raise self.error

        return call


def upload(error, monkeypatch):
    with explained_for_uploads(REPO):
        raise error


def read_a_source(error, monkeypatch):
    monkeypatch.setattr(HfApi, "model_info", Failing(error).model_info)
    Hub().listing(HubRef(REPO))


def look_at_a_job(error, monkeypatch):
    monkeypatch.setattr(HfApi, "inspect_job", Failing(error).inspect_job)
    Jobs("alice").look("12")


def deploy_a_space(error, monkeypatch):
    deploy_space("alice/page", REPO, Path(spaces_app.__file__).parent, client=Failing(error))


def load_a_model(error, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Failing(error).snapshot_download)
    fetch_components(REPO, ["vae"], HubOptions())


def load_from_the_cache(error, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Failing(error).snapshot_download)
    fetch_components(REPO, ["vae"], HubOptions(local_files_only=True))


def fetch_for_a_visitor(error, monkeypatch):
    monkeypatch.setattr(HfApi, "get_paths_info", Failing(error).get_paths_info)
    check_size(REPO, ["a.safetensors"], 1)


def always(error):
    return lambda kind: error


def of_an_upload(kind):
    account = (Kind.NO_REPO, Kind.GATED, Kind.TOKEN, Kind.FORBIDDEN, Kind.PAYMENT)
    return AccountError if kind in account else UploadError


def of_a_source(kind):
    if kind in (Kind.GATED, Kind.DISABLED, Kind.TOKEN, Kind.FORBIDDEN):
        return AccessError
    unknown = (Kind.NO_REPO, Kind.NO_REVISION, Kind.NO_FILE, Kind.NOT_FOUND, Kind.BAD_NAME)
    return UnknownReferenceError if kind in unknown else DownloadError


ROOMS = {
    upload: (REPO, of_an_upload),
    read_a_source: (REPO, of_a_source),
    look_at_a_job: ("job 12", always(JobError)),
    deploy_a_space: ("the Space alice/page", always(SpaceError)),
    load_a_model: (REPO, always(FormatError)),
    load_from_the_cache: (REPO, always(FormatError)),
    fetch_for_a_visitor: (REPO, always(RequestError)),
}
"""Where the client is called: what the sentence is about, and the exception of each kind."""

ELSEWHERE = {
    (look_at_a_job, Kind.NOT_FOUND): "`hswq-hub jobs` lists those there are",
    (look_at_a_job, Kind.NO_REPO): "`hswq-hub jobs` lists those there are",
    (deploy_a_space, Kind.PAYMENT): "may not have another Space",
    (load_from_the_cache, Kind.NOT_CACHED): "load it once without local_files_only",
}
"""The only kinds that mean something else somewhere."""


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
def test_each_kind_is_told_from_the_others_and_says_what_to_do(kind):
    refusal = refusal_of(ERRORS[kind]())
    assert refusal is not None and refusal.kind is kind
    sentence = refusal.sentence(REPO)
    assert NEXT_STEP[kind] in sentence
    assert sentence.isprintable() and ". " not in sentence and not sentence.endswith(".") and len(sentence) <= 300
    assert TOKEN not in sentence and "signature" not in sentence


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
def test_it_is_the_same_sentence_everywhere(kind, room, monkeypatch):
    error, (subject, becomes) = ERRORS[kind](), ROOMS[room]
    with pytest.raises(HSWQError) as caught:
        room(error, monkeypatch)
    assert type(caught.value) is becomes(kind)
    if (room, kind) in ELSEWHERE:
        assert ELSEWHERE[room, kind] in str(caught.value)
    else:
        assert str(caught.value) == refusal_of(error).sentence(subject)
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__  # the client's own words stay inside


def test_an_answer_that_another_error_wraps_is_found():
    try:
        try:
            raise ERRORS[Kind.BUSY]()
        except httpx2.HTTPError as inner:
            raise RuntimeError("upload failed") from inner
    except RuntimeError as error:
        refusal = refusal_of(error)
    assert (refusal.kind, refusal.wait) == (Kind.BUSY, 42.0)


def test_a_page_in_place_of_an_answer_is_a_broken_connection():
    """As a hotel's login page is, which answers every address."""
    assert refusal_of(json.JSONDecodeError("no JSON", "<html>", 0)).kind is Kind.UNREACHABLE


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyError("x"), OSError(28, "No space left on device")], ids=lambda e: type(e).__name__
)
def test_what_is_not_the_hubs_comes_through(error, monkeypatch):
    assert refusal_of(error) is None
    with pytest.raises(type(error)) as caught:
        upload(error, monkeypatch)
    assert caught.value is error


def test_our_own_errors_come_through(monkeypatch):
    error = HSWQError("ours")
    with pytest.raises(HSWQError) as caught:
        upload(error, monkeypatch)
    assert caught.value is error


def test_every_kind_is_tried():
    assert ERRORS.keys() == NEXT_STEP.keys() == set(Kind)
