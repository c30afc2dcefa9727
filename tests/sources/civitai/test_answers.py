"""What Civitai answers: a verified file, or one sentence for every refusal; the token leaves no origin."""

import time
from email.utils import formatdate

import pytest
from support.civitai import REFERENCE, nothing_kept, pull
from support.civitai_server import FILE, MODEL, STATES, TOKEN, VERSION, Fault

from hswq_hub import __version__
from hswq_hub.sources.errors import (
    AccessError,
    DownloadError,
    UnknownReferenceError,
    UnsuitableSourceError,
)
from hswq_hub.sources.find import resolve
from hswq_runtime.errors import HSWQError


def test_a_reference_becomes_a_verified_file(server, content):
    source = pull(server)
    assert source.path.read_bytes() == content and source.sha256 == server.sha256
    assert (source.name, source.reference) == ("tiny", REFERENCE)
    assert source.base == "Tongyi-MAI/Z-Image-Turbo"
    assert (source.provenance.creator, source.provenance.version) == ("alice_01", "v8")
    assert source.provenance.url == f"https://civitai.com/models/{MODEL}?modelVersionId={VERSION}"
    assert source.licence.id == "apache-2.0"
    assert source.provenance.permissions.commercial_use == ("Image", "RentCivit")


@pytest.mark.parametrize(
    "form",
    ["civitai:{model}", "https://civitai.red/model-versions/{version}", "civitai:sha256:{digest}",
     "https://civitai.com/api/download/models/{version}?fileId={file}",
     "https://civitai.com/api/v1/model-versions/by-hash/{short}"],
)  # fmt: skip
def test_every_form_leads_to_the_same_file(server, form):
    text = form.format(model=MODEL, version=VERSION, file=FILE, digest=server.sha256, short=server.sha256[:10])
    source = pull(server, text)
    assert (source.sha256, source.reference) == (server.sha256, REFERENCE)


def test_no_token_crosses_an_origin_and_nobody_is_a_browser(server):
    pull(server)
    home, storage = [seen for seen in server.seen if seen.origin == server.url], server.stored
    assert storage and [seen.headers.get("Authorization") for seen in storage] == [None] * len(storage)
    assert {seen.headers.get("Authorization") for seen in home} == {f"Bearer {TOKEN}"}
    assert {seen.headers["User-Agent"] for seen in server.seen} == {f"hswq-hub/{__version__}"}
    assert not any(TOKEN in seen.path or TOKEN in str(seen.headers) for seen in storage)
    assert not any(TOKEN in seen.path for seen in home)


def test_a_token_that_has_left_home_is_not_sent_when_a_redirect_leads_back(server):
    server.faults = [Fault(status=307, headers={"Location": f"{server.url}/api/v1/me"})]
    with pytest.raises(HSWQError):
        pull(server)
    assert "Authorization" not in server.seen[-1].headers and server.seen[-1].path == "/api/v1/me"


REFUSALS = {
    "no token": "does not accept the token",
    "login page": "does not accept the token",
    "early access": "early access until 2031-05-01 12:00 UTC",
    "no grant": "this account may not download",
    "disabled": "disabled downloads",
    "blacklisted": "refuses this account or this network",
    "archived": "archived",
    "missing": "deleted or unpublished",
    "bad request": "answers 400",
    "region": "does not serve this region",
    "too many": "answers 429, 6 times in a row",
}


@pytest.mark.parametrize("state", [*STATES, "login page"])
def test_every_refusal_has_its_own_sentence(server, state):
    server.state = state
    with pytest.raises((AccessError, DownloadError)) as error:
        pull(server)
    sentence = str(error.value)
    assert REFUSALS[state] in sentence and TOKEN not in sentence and "abc123" not in sentence
    assert nothing_kept(server) and server.stored == []
    asked = [seen for seen in server.seen if "/download/" in seen.path]
    assert len(asked) == (6 if state == "too many" else 1), "what is permanent is not asked twice"


@pytest.mark.parametrize("state", ["ok", "login page"])
def test_without_a_token_the_user_is_told_how_to_get_one(server, monkeypatch, state):
    monkeypatch.delenv("CIVITAI_API_TOKEN")
    server.state = state
    with pytest.raises(AccessError, match="hswq-hub login civitai"):
        pull(server)
    assert not any("Authorization" in seen.headers for seen in server.seen)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda s: s.model.update(mode="Archived"), AccessError, "archived"),
        (lambda s: s.model.update(mode="TakenDown"), AccessError, "taken down"),
        (lambda s: s.version.pop("files"), UnsuitableSourceError, "lists no files"),
        (lambda s: s.version.update(files=[{"name": "x"}, 3]), UnsuitableSourceError, "lists no files"),
        (lambda s: s.model.update(type="LORA"), UnsuitableSourceError, "is a LORA"),
        (lambda s: s.version.update(modelId=5), UnknownReferenceError, "belongs to the model 5"),
        (lambda s: s.version.pop("modelId"), DownloadError, "has no modelId"),
        (lambda s: s.api_failures.extend([(500, {})] * 6), DownloadError, "answers 500, 6 times"),
        (lambda s: s.api_failures.append((451, {})), AccessError, "does not serve this region"),
        (lambda s: s.api_failures.append((404, {})), UnknownReferenceError, "does not know the version"),
        (lambda s: s.api_failures.append((429, {"Retry-After": "9999"})), DownloadError, "asks to wait 167 minutes"),
    ],
    ids=[
        "archived",
        "taken down",
        "no files",
        "odd files",
        "lora",
        "other model",
        "no model",
        "500",
        "451",
        "404",
        "429",
    ],
)
def test_what_the_api_says_instead(server, change, error, sentence):
    change(server)
    with pytest.raises(error, match=sentence):
        pull(server)
    assert server.stored == []


def test_passing_failures_are_waited_for_as_long_as_they_ask(server, waits):
    server.api_failures = [(429, {"Retry-After": "7"}), (503, {})]
    server.faults = [Fault(status=503, headers={"Retry-After": "3"}), Fault(status=500), Fault(status=403)]
    assert pull(server).sha256 == server.sha256
    assert waits == [7, 2, 3, 2, 4]


def test_a_date_to_wait_for_is_understood(server, waits):
    server.api_failures = [(429, {"Retry-After": formatdate(time.time() + 30, usegmt=True)})]
    pull(server)
    assert 20 < waits[0] <= 30


def test_a_server_that_stays_silent_is_given_up(server, monkeypatch):
    monkeypatch.setattr("hswq_hub.sources.http.web.TIMEOUT", 0.4)
    server.faults = [Fault(silent=2)] * 10
    with pytest.raises(DownloadError, match="does not answer, 6 times in a row"):
        pull(server)


def test_a_slow_connection_is_no_broken_one(server, content):
    server.chunk, server.pause = len(content) // 20, 0.02
    assert pull(server).path.read_bytes() == content and len(server.stored) == 1


@pytest.mark.parametrize(
    "endpoint", ["civitai.com", "http://civitai.com", "ftp://127.0.0.1", "https://", "http://[::1"]
)
def test_an_endpoint_is_an_address_that_keeps_a_token_secret(endpoint):
    with pytest.raises(UnknownReferenceError, match="check --civitai-endpoint"):
        resolve(REFERENCE, civitai_endpoint=endpoint)


@pytest.mark.parametrize("target", ["ftp://x/y", "file:///etc/passwd", "http://[::1"])
def test_redirects_lead_to_the_web_or_nowhere(server, target):
    server.faults = [Fault(status=307, headers={"Location": target})]
    with pytest.raises(DownloadError, match="no safe address"):
        pull(server)


def test_an_expired_signature_is_asked_for_anew(server):
    server.faults = [Fault(status=403, body=b"<Error>Expired</Error>", headers={"Content-Type": "application/xml"})]
    pull(server)
    assert sum("/download/" in seen.path for seen in server.seen) == 2
