"""From a Civitai reference to a verified file, against a server that answers as Civitai does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import save
from support import tiny
from support.civitai_server import DEADLINE, FILE, MODEL, STATES, TOKEN, VERSION, CivitaiServer, Fault

from hswq_hub import __version__
from hswq_hub.cards.card import Card
from hswq_hub.cards.facts import licence_facts, source_facts
from hswq_hub.cli.main import main
from hswq_hub.common.targets import TargetError
from hswq_hub.settings import SourceSettings
from hswq_hub.sources.errors import (
    AccessError,
    DownloadError,
    NotPermittedError,
    UnknownReferenceError,
    UnsuitableSourceError,
)
from hswq_hub.sources.find import find, resolve
from hswq_hub.sources.http import cache, credentials
from hswq_hub.sources.licence import licence_of_base_model
from hswq_runtime.errors import AlreadyQuantizedError, FormatError, HSWQError, UnknownArchitectureError

ROOT = Path(__file__).parents[2]
REFERENCE = f"civitai:{MODEL}@{VERSION}"


def locate(reference: str, endpoint: str):
    """What the API at `endpoint` lists of `reference`."""
    return find(reference, SourceSettings(civitai_endpoint=endpoint)).listing


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    return tiny.checkpoint(tmp_path_factory.mktemp("tiny")).read_bytes()


@pytest.fixture
def server(content):
    with CivitaiServer(content) as server:
        yield server


@pytest.fixture
def waits(monkeypatch):
    """No test waits; what would have been waited is here."""
    waited = []
    monkeypatch.setattr("hswq_hub.common.retry.sleep", waited.append)
    return waited


@pytest.fixture(autouse=True)
def token(monkeypatch, waits):
    monkeypatch.setenv("CIVITAI_API_TOKEN", TOKEN)
    monkeypatch.setitem(sys.modules, "keyring", None)


def pull(server, reference=REFERENCE, **options):
    return resolve(reference, civitai_endpoint=server.url, **options)


def nothing_kept(server) -> bool:
    return cache.contents() == []


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
    monkeypatch.setattr("hswq_hub.sources.http.web._TIMEOUT", 0.4)
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


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server, content):
    cuts = [Fault(cut=len(content) // 10) for _ in range(8)]
    server.faults = list(cuts)
    assert pull(server).path.read_bytes() == content
    assert sum(seen.sent for seen in server.stored) == len(content), "nothing was sent twice"
    assert len(server.stored) > 6, "as long as something arrives it goes on"


def test_a_server_that_ignores_the_range_sends_all_once_more(server, content):
    server.faults = [Fault(cut=len(content) // 2), Fault(ignore_range=True)]
    assert pull(server).path.read_bytes() == content


def test_a_file_that_changed_meanwhile_is_not_mixed_with_the_old_one(server, content):
    server.faults = [Fault(cut=len(content) // 2)] * 20
    server.faults[1:] = [Fault(status=500)] * 10
    with pytest.raises(DownloadError):
        pull(server)
    (begun,) = cache.contents()
    assert begun.sha256 is None and begun.size == len(content) // 2
    server.faults, server.etag = [], '"second"'
    assert pull(server).path.read_bytes() == content
    assert server.stored[-1].sent == len(content) and "If-Range" in server.stored[-1].headers


def test_all_had_arrived_but_the_last_word(server, content):
    part = cache.partial(server.sha256)
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    part.with_name(f"{part.name}.json").write_text(json.dumps({"name": "tiny", "tag": server.etag}))
    assert pull(server).path.read_bytes() == content
    assert [seen.sent for seen in server.stored] == [0]


def test_a_part_longer_than_the_file_starts_over(server, content):
    part = cache.partial(server.sha256)
    part.parent.mkdir(parents=True)
    part.write_bytes(content + b"more")
    part.with_name(f"{part.name}.json").write_text(json.dumps({"name": "tiny", "tag": server.etag}))
    assert pull(server).path.read_bytes() == content


def test_a_foreign_beginning_is_found_out_by_the_hash_and_replaced(server, content):
    part = cache.partial(server.sha256)
    part.parent.mkdir(parents=True)
    part.write_bytes(content[:20_000] + bytes(10_000))
    part.with_name(f"{part.name}.json").write_text(json.dumps({"name": "tiny", "tag": server.etag}))
    assert pull(server).path.read_bytes() == content


PAGE = {"Content-Type": "text/html; charset=utf-8"}
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("fault", "error", "sentence"),
    [
        (Fault(status=200, body=b"<html>Sorry</html>", headers=PAGE), DownloadError, "something that is no model"),
        (Fault(status=200, body=b'{"error":"x"}', headers=JSON), DownloadError, "something that is no model"),
        (Fault(length=50_000), DownloadError, "are listed"),
        (Fault(length=-50_000), DownloadError, "are listed"),
        (Fault(status=200, body=b"<html>" * 9999), DownloadError, "are listed"),
    ],
    ids=["html", "json", "longer", "shorter", "untyped page"],
)  # fmt: skip
def test_what_is_no_model_is_never_saved_as_one(server, fault, error, sentence):
    server.faults = [fault] * 10
    with pytest.raises(error, match=sentence):
        pull(server)
    assert nothing_kept(server)


def test_a_length_that_lies_within_the_tolerance_is_a_broken_connection(server, content):
    server.faults = [Fault(length=100)] * 3
    assert pull(server).path.read_bytes() == content


@pytest.mark.parametrize(
    "begin",
    [b"PK\x03\x04", b"\x80\x02ccollections\n", b"GGUF", b"<!doctype html>", b'{"error": "no"}'],
    ids=["zip", "pickle", "gguf", "html", "json"],
)
def test_a_file_that_is_no_safetensors_is_refused_at_its_first_bytes(server, begin):
    server.content = body = begin + bytes(200_000)
    server.file |= {"sizeKB": len(body) / 1024, "hashes": {"SHA256": server.sha256}}
    server.chunk, server.pause = 1000, 0.001
    with pytest.raises(UnsuitableSourceError, match="not a safetensors file"):
        pull(server)
    assert nothing_kept(server) and server.stored[0].sent < len(body) / 2


HOSTILE = ["no", 3, [], [0], [0, 1, 2], {"0": 1}, ["0", "9"], [0, 8.0], [0, None], [False, True], [-8, 8], [8, 0]]
TOO_LONG = [[0, 10**30], [0, 2**63 - 1]]


@pytest.mark.parametrize(
    ("offsets", "listed"),
    [(value, listed) for value in HOSTILE + TOO_LONG for listed in (True, False)] + [([0, 10**7], True)],
    ids=str,
)
def test_a_hostile_header_leaves_nothing_behind(server, offsets, listed):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": offsets}}).encode()
    server.content = len(header).to_bytes(8, "little") + header + bytes(200_000)
    server.file |= {"sizeKB": len(server.content) / 1024 if listed else None, "hashes": {"SHA256": server.sha256}}
    with pytest.raises(FormatError, match=r"^tiny\.safetensors has (no header|a header that is of)"):
        pull(server)
    assert nothing_kept(server)
    assert {path.suffix for path in cache.partial("x").parent.iterdir()} <= {".lock"}


def test_a_wrong_hash_is_never_kept(server):
    server.file["hashes"]["SHA256"] = "0" * 64
    with pytest.raises(DownloadError, match=f"has the SHA-256 {server.sha256}, but 0000"):
        pull(server)
    assert nothing_kept(server)


def test_hashes_are_compared_without_case_and_may_be_absent(server, content):
    server.file["hashes"] = {"AutoV2": "12345678"}
    assert pull(server).sha256 == server.sha256
    pull(server)
    assert len(server.stored) == 1, "its digest was found out and is remembered"


def changed_content(server, change):
    tensors = tiny.original_layout(tiny.model().state_dict())
    change(tensors)
    server.content = save(tensors)
    server.file |= {"sizeKB": len(server.content) / 1024, "hashes": {"SHA256": server.sha256}}
    server.chunk, server.pause = 1000, 0.001


def quantize_one(tensors):
    key = f"{tiny.PREFIX}layers.0.feed_forward.w1.weight"
    tensors[key] = tensors[key].to(torch.float8_e4m3fn)


def lose_one(tensors):
    del tensors[f"{tiny.PREFIX}layers.0.feed_forward.w1.weight"]


def become_unknown(tensors):
    del tensors[f"{tiny.PREFIX}cap_pad_token"]


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (quantize_one, AlreadyQuantizedError, "tiny.safetensors is quantized already"),
        (lose_one, FormatError, "tiny.safetensors does not fit"),
        (become_unknown, UnknownArchitectureError, "tiny.safetensors: unknown architecture"),
    ],
    ids=["quantized", "incomplete", "unknown"],
)
def test_a_file_of_no_use_is_refused_as_soon_as_its_header_is_there(server, change, error, sentence):
    changed_content(server, change)
    with pytest.raises(error, match=f"^{sentence}"):
        pull(server)
    assert nothing_kept(server) and server.stored[0].sent < len(server.content) / 2


def another(server, id, **changes):
    digest = {"SHA256": f"{id:064d}"}
    return {**server.file, "id": id, "primary": False, "hashes": digest, "name": f"other{id}.safetensors", **changes}


def precise(fp, **more):
    return {"metadata": {"format": "SafeTensor", "fp": fp}, **more}


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ([{}, {"primary": True}], 1),
        ([precise("fp32"), precise("fp16")], 1),
        ([precise("fp32", primary=True), precise("fp16")], 0),
        ([precise("fp8", primary=True), precise("bf16")], 1),
        ([{"type": "VAE", "primary": True}, {"type": "Diffusion Model"}], 1),
        ([{"metadata": {"format": "GGUF"}, "name": "q4.gguf", "primary": True}, {}], 1),
        ([{"metadata": None}, {"metadata": {"format": "PickleTensor"}, "name": "x.ckpt", "primary": True}], 0),
    ],
    ids=["primary", "half before full", "primary before half", "fp8", "type", "gguf", "pickle"],
)
def test_which_file_is_taken(server, changes, chosen):
    server.version["files"] = [another(server, i + 1, **change) for i, change in enumerate(changes)]
    assert locate(REFERENCE, server.url).files[0].id == chosen + 1


HASHES = {"SHA256": "A" * 63 + "1", "BLAKE3": "B" * 64, "AutoV1": "C" * 8, "AutoV2": "A" * 10, "AutoV3": "D" * 12}


@pytest.mark.parametrize("algorithm", HASHES)
def test_a_hash_names_one_file_of_a_version(server, algorithm):
    server.version["files"] = [
        another(server, 1, primary=True, hashes={"SHA256": "E" * 64, "BLAKE3": "F" * 64}),
        another(server, 2, hashes=HASHES),
    ]
    address = f"https://civitai.com/api/v1/model-versions/by-hash/{HASHES[algorithm].lower()}"
    assert locate(address, server.url).files[0].id == 2
    form = "sha256" if algorithm == "SHA256" else "hash"
    assert locate(f"civitai:{form}:{HASHES[algorithm]}", server.url).files[0].id == 2


def test_a_hash_that_no_file_lists_leaves_those_that_it_may_be_of(server):
    digest = "9" * 64
    server.version["files"] = [another(server, 1), another(server, 2, hashes={}, primary=False)]
    server.known_hashes = {digest}
    assert locate(f"civitai:hash:{digest}", server.url).files[0].id == 1
    (file,) = locate(f"civitai:sha256:{digest}", server.url).files
    assert (file.id, file.sha256) == (2, digest), "it has to be that in the end"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (precise("fp8"), "quantized already (fp8)"),
        (precise("nf4"), "quantized already (nf4)"),
        ({"metadata": {"format": "GGUF"}, "name": "q.gguf"}, "no safetensors file but GGUF"),
        ({"metadata": {"format": "PickleTensor"}}, "no safetensors file but PickleTensor"),
        ({"metadata": {}, "name": "model.ckpt"}, "no safetensors file"),
        ({"type": "Text Encoder"}, "is a Text Encoder"),
        ({"pickleScanResult": "Danger"}, "pickle scan (Danger)"),
        ({"virusScanResult": "Pending"}, "virus scan (Pending)"),
        ({"virusScanResult": None}, "virus scan (no result)"),
    ],
)
def test_why_a_file_is_not_taken(server, change, reason):
    server.file |= change
    with pytest.raises(UnsuitableSourceError) as error:
        pull(server)
    assert reason in str(error.value) and server.stored == []


def test_a_download_address_that_names_a_file_gets_that_one_or_none(server):
    address = f"https://civitai.com/api/download/models/{VERSION}"
    assert pull(server, f"{address}?type=Model&format=SafeTensor&fp=bf16").sha256 == server.sha256
    with pytest.raises(UnknownReferenceError, match="no such file"):
        pull(server, f"{address}?fp=fp32")
    with pytest.raises(UnknownReferenceError, match="no such file"):
        pull(server, f"{address}?fileId=78")


@pytest.mark.parametrize("digest", ["2" * 64, None])
def test_a_file_that_is_not_the_first_choice_is_referred_to_by_itself(server, digest):
    hashes = {"SHA256": digest.upper()} if digest else {}
    full, half = another(server, 2, **precise("fp32", hashes=hashes)), another(server, 1, primary=True)
    server.version["files"] = [full, half]
    for asked in ("fp=fp32", "fileId=2"):
        listing = locate(f"https://civitai.com/api/download/models/{VERSION}?{asked}", server.url)
        assert (listing.files[0].id, listing.version) == (2, VERSION)
        assert listing.reference.startswith("civitai:sha256:2222" if digest else "https://civitai.com/api/download/")
        again = locate(listing.reference, server.url)
        assert (again.files, again.reference) == (listing.files, listing.reference)
    assert locate(REFERENCE, server.url).reference == REFERENCE


@pytest.mark.parametrize(
    "wire",
    ["{Image,Rent}", ["Image", "Rent"], ["Rent", "Image", "Unheard"], '{"Image","Rent"}'],
    ids=["postgres", "list", "unknown", "quoted"],
)
def test_permissions_in_every_shape(server, wire):
    server.model["allowCommercialUse"] = wire
    assert pull(server).provenance.permissions.commercial_use == ("Image", "Rent")


@pytest.mark.parametrize(("wire", "meant"), [("Sell", ("Sell",)), ("None", ()), ([], ()), ("{}", ()), (7, None)])
def test_permissions_of_old_and_of_nothing(server, wire, meant):
    server.model["allowCommercialUse"] = wire
    assert pull(server).provenance.permissions.commercial_use == meant


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.model.update(allowDerivatives=False), "does not allow derivatives"),
        (lambda s: s.model.pop("allowDerivatives"), "does not say whether derivatives"),
        (lambda s: s.model.update(availability="Private"), "not public but Private"),
        (lambda s: s.version.update(availability="Unsearchable"), "not public but Unsearchable"),
        (
            lambda s: s.model["modelVersions"][0].update(availability="EarlyAccess", earlyAccessDeadline=DEADLINE),
            "EarlyAccess until 2031-05-01 12:00 UTC",
        ),
        (lambda s: s.version.update(usageControl="Generation"), "downloads are disabled"),
        (lambda s: s.model.update(poi=True), "depicts a real person"),
    ],
)
def test_what_its_creator_would_not_want_needs_a_permission(server, change, sentence):
    change(server)
    with pytest.raises(NotPermittedError, match=sentence) as error:
        pull(server)
    assert "--i-have-permission" in str(error.value) and server.stored == []
    assert pull(server, permitted=True).sha256 == server.sha256


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/cron.d/x.safetensors",
        "/root/x.safetensors",
        "..\\x.safetensors",
        ".hidden.safetensors",
        "a b\x1b[31m\n|`.safetensors",
        "x" * 5000 + ".safetensors",
    ],
    ids=["above", "absolute", "windows", "hidden", "odd", "long"],
)
def test_names_from_the_api_are_never_paths(server, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server.file["name"] = name
    source = pull(server)
    assert source.path.parent == cache.folder() / server.sha256
    assert set(source.path.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert not source.path.name.startswith(".") and len(source.path.name) < 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("模型.safetensors", f"civitai-{VERSION}.safetensors"),
        ("模型 v2.safetensors", "v2.safetensors"),
        (".safetensors", f"civitai-{VERSION}.safetensors"),
        ("a.b.safetensors", "a.b.safetensors"),
    ],
)
def test_a_name_of_which_nothing_is_left_is_not_its_suffix(server, name, kept):
    server.file["name"] = name
    listing = locate(REFERENCE, server.url)
    assert (listing.files[0].name, listing.name) == (kept, kept.removesuffix(".safetensors"))


def test_a_full_disk_is_noticed_before_anything_is_sent(server, monkeypatch):
    monkeypatch.setattr("hswq_hub.common.targets.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(TargetError, match="GB free"):
        pull(server)
    assert sum(entry.size for entry in cache.contents()) == 0


def test_what_is_in_the_cache_is_not_fetched_again(server, content):
    path = pull(server).path
    server.file["name"] = "renamed.safetensors"
    again = pull(server)
    assert again.path == path and again.name == "renamed" and len(server.stored) == 1


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(server, content):
    path = pull(server).path
    path.write_bytes(bytes(len(content)))
    assert pull(server).path.read_bytes() == content and len(server.stored) == 2
    stat = path.stat()
    path.write_bytes(bytes(len(content)))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(FormatError):
        pull(server)
    assert pull(server, verify=True).path.read_bytes() == content, "damage without a trace is found by --verify"


def test_a_file_that_was_only_touched_is_hashed_and_kept(server):
    path = pull(server).path
    os.utime(path)
    assert pull(server).path == path and len(server.stored) == 1


CHILD = """
import sys
from hswq_hub.sources.find import resolve
print(resolve(sys.argv[1], civitai_endpoint=sys.argv[2]).path)
"""


def test_a_killed_download_goes_on_where_it_was(server, content, tmp_path):
    server.chunk, server.pause = 10_000, 0.05
    command = [sys.executable, "-c", CHILD, REFERENCE, server.url]
    process = subprocess.Popen(command, start_new_session=True)
    limit = time.monotonic() + 60
    while not (server.stored and server.stored[0].sent > len(content) // 3):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (begun,) = cache.contents()
    assert begun.sha256 is None and 0 < begun.size < len(content)
    server.pause = 0
    source = pull(server)
    assert source.path.read_bytes() == content
    last = server.stored[-1]
    assert last.headers["Range"] == f"bytes={begun.size}-" and last.headers["If-Range"] == server.etag
    assert last.sent == len(content) - begun.size, "only the rest was sent"
    assert [entry.sha256 for entry in cache.contents()] == [server.sha256]


def test_two_runs_at_once_download_once(server, content):
    server.chunk, server.pause = 20_000, 0.02
    command = [sys.executable, "-c", CHILD, REFERENCE, server.url]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    limit = time.monotonic() + 60
    while not (server.stored and server.stored[0].sent):
        assert other.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    path = pull(server).path
    assert other.communicate(timeout=60)[0].strip() == str(path) and path.read_bytes() == content
    assert sum(seen.sent for seen in server.stored) == len(content)


@pytest.fixture
def run(server):
    def run(*arguments, **more):
        return CliRunner().invoke(main, [*arguments, "--civitai-endpoint", server.url], **more)

    return run


def test_dry_run_says_what_would_be_fetched(run, server):
    server.model["allowDerivatives"] = False
    result = run("pull", REFERENCE, "--dry-run")
    assert result.exit_code == 0, result.output
    said = [REFERENCE, "Dark Beast v8", "alice_01", "apache-2.0", "tiny.safetensors", server.sha256]
    said += [f"{len(server.content) / 1e6:.1f} MB", "share derivatives: no", "sell images", "use without credit: no"]
    for part in [*said, "does not allow derivatives", "base repo"]:
        assert part in result.output
    assert server.stored == [] and TOKEN not in result.output and nothing_kept(server)
    result = run("pull", REFERENCE, "--dry-run", "--i-have-permission")
    assert "you have permission" in result.output and "refused" not in result.output


def test_every_command_that_takes_a_reference_takes_the_endpoint():
    for name, command in main.commands.items():
        parameters = {parameter.name for parameter in command.params}
        wanted = {"civitai_endpoint"} if name == "inspect" else {"civitai_endpoint", "permitted", "verify", "base"}
        assert "reference" not in parameters or wanted <= parameters, name


def test_cache_is_listed_and_pruned(run, server):
    pull(server)
    listed = CliRunner().invoke(main, ["cache", "list"])
    assert "tiny.safetensors" in listed.output and server.sha256[:12] in listed.output
    assert "tiny" not in CliRunner().invoke(main, ["cache", "prune"]).output, "used today"
    assert "tiny.safetensors" in CliRunner().invoke(main, ["cache", "prune", "--older-than", "0"]).output
    assert nothing_kept(server)


def test_what_is_pruned_is_locked_until_it_is_gone(server, monkeypatch):
    from filelock import FileLock, Timeout

    pull(server)
    lock, remove, locked = cache.partial(f"{server.sha256}.lock"), shutil.rmtree, []

    def look(path):
        with pytest.raises(Timeout):
            FileLock(lock, timeout=0, is_singleton=False).acquire()
        locked.append(path.name)
        remove(path)

    monkeypatch.setattr("hswq_hub.sources.http.cache.shutil.rmtree", look)
    with cache.locked(server.sha256):
        assert cache.prune(0) == []
    assert [entry.sha256 for entry in cache.prune(0)] == locked == [server.sha256]


def test_signed_addresses_are_in_no_log(server, caplog):
    caplog.set_level("INFO")
    pull(server)
    assert server.stored and "abc123" not in caplog.text and TOKEN not in caplog.text


@pytest.mark.parametrize(
    ("base_model", "id", "name"),
    [
        ("ZImageTurbo", "apache-2.0", None),
        ("Flux.1 S", "apache-2.0", None),
        ("Flux.2 Klein 4B", "apache-2.0", None),
        ("zimagebase", "apache-2.0", None),
        ("SDXL 1.0", "openrail++", None),
        ("Pony", "openrail++", None),
        ("SD 1.5", "creativeml-openrail-m", None),
        ("Flux.1 D", "other", "flux-1-dev-non-commercial-license"),
        ("Flux.2 Klein 9B", "other", "flux-non-commercial-license"),
        ("Flux.2 D", "other", "flux-non-commercial-license"),
        ("Illustrious", "other", "faipl-1.0-sd"),
        ("NoobAI", "other", "faipl-1.0-sd"),
        ("SDXL Turbo", "other", "sai-nc-community"),
        ("Pony V7", "other", "pony-v7"),
    ],
)
def test_licence_of_a_base_model(base_model, id, name):
    licence = licence_of_base_model(base_model)
    assert (licence.id, licence.name, licence.link is not None) == (id, name, name is not None)


@pytest.mark.parametrize("base_model", ["Other", "", None, "Flux"])
def test_no_licence_is_made_up(base_model):
    assert licence_of_base_model(base_model) is None


def test_models_lists_the_catalog():
    result = CliRunner().invoke(main, ["models"])
    assert result.exit_code == 0
    for part in ("harukiMIX_zit2603", "856375@2815582", "apache-2.0", "0.9678", "unstableRevolution_V2Fp16"):
        assert part in result.output


def test_a_source_from_civitai_is_credited_in_the_card(server, tmp_path):
    server.model |= {
        "nsfwLevel": 28,
        "name": "Dark *Beast*](http://evil.example)",
        "creator": {"username": "<b>bob</b>"},
    }
    server.version["baseModel"] = "Illustrious"
    source = pull(server)
    shutil.copytree(ROOT / "model_cards/demo-hswq", tmp_path / "out")
    record = json.loads((tmp_path / "out/hswq.json").read_text())
    record |= {**licence_facts(source.licence), "source": source_facts(source)}
    (tmp_path / "out/hswq.json").write_text(json.dumps(record))
    front, body = Card.from_folder(tmp_path / "out").render().split("---\n", 2)[1:]
    data = yaml.safe_load(front)
    assert data["license"] == "other" and data["license_name"] == "faipl-1.0-sd" and data["license_link"]
    assert "not-for-all-audiences" in data["tags"]
    assert r"creator: \<b\>bob\</b\>" in body and "](http://evil.example)" not in body.replace("\\]", "")
    assert source.provenance.url in body and "share derivatives: yes" in body and source.sha256 in body


def test_publish_from_a_reference_with_a_token_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo = resolve("demo")
    with CivitaiServer(demo.path.read_bytes(), "darkBeast.safetensors") as server:
        address = f"https://civitai.com/api/download/models/{VERSION}?fp=bf16&token={TOKEN}"
        quick = ["--samples", "1", "--steps", "1", "--pairs", "1", "--picture-steps", "1", "--size", "32"]
        options = ["--civitai-endpoint", server.url, "--base", demo.base, "--folder", "out", *quick]
        result = CliRunner().invoke(main, ["publish", address, *options])
        assert result.exit_code == 0, result.output
        published = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
        for secret in (TOKEN, server.url, os.environ["HSWQ_HOME"], "abc123"):
            assert secret.encode() not in published and secret not in result.output
    card = (tmp_path / "out/README.md").read_text()
    assert f"hswq-hub publish {REFERENCE} --base components" in card
    assert "creator: [alice\\_01](https://civitai.com/user/alice_01)" in card
    assert (tmp_path / "out/darkBeast-hswq-v2.safetensors").is_file()


@pytest.fixture
def no_token(monkeypatch):
    monkeypatch.delenv("CIVITAI_API_TOKEN")


def test_login_keeps_the_token_where_only_its_owner_reads_it(run, server, no_token):
    result = run("login", "civitai", input=f"{TOKEN}\n")
    assert result.exit_code == 0 and "as alice_01" in result.output and TOKEN not in result.output
    (path,) = Path(os.environ["HSWQ_HOME"]).glob("civitai*")
    assert path.stat().st_mode & 0o777 == 0o600
    assert pull(server).sha256 == server.sha256


def test_login_prefers_a_keyring(run, server, no_token, monkeypatch):
    kept = {}
    keyring, errors = ModuleType("keyring"), ModuleType("keyring.errors")
    keyring.errors, errors.KeyringError = errors, RuntimeError
    keyring.set_password = lambda service, account, token: kept.update({(service, account): token})
    keyring.get_password = lambda service, account: kept.get((service, account))
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    monkeypatch.setitem(sys.modules, "keyring.errors", errors)
    assert "keyring" in run("login", "civitai", input=f"{TOKEN}\n").output
    assert not list(Path(os.environ["HSWQ_HOME"]).glob("civitai*"))
    assert credentials.civitai_token() == TOKEN


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}),
        (200, ["alice_01"]),
        (200, {"username": None}),
        (200, {"username": 7}),
        (404, {}),
        (206, {"username": "x"}),
    ],
)
def test_only_an_answer_with_a_name_is_a_login(run, server, no_token, answer):
    server.me = answer
    result = run("login", "civitai", input=f"{TOKEN}\n")
    assert result.exit_code == 2 and "does not say whose token this is" in result.output
    assert credentials.civitai_token() is None and TOKEN not in result.output


ELSEWHERE = "https://civitai.com.mirror.example"


def test_a_kept_token_goes_to_civitai_alone_and_one_of_this_run_anywhere(no_token, monkeypatch):
    from hswq_hub.sources.civitai import Civitai
    from hswq_hub.sources.reference import CivitaiRef

    credentials.store_civitai_token(TOKEN)
    for endpoint in (None, "https://www.civitai.com", "https://civitai.red", "http://127.0.0.1:9", "http://[::1]:9"):
        assert Civitai.of(CivitaiRef(1), endpoint).web.token == TOKEN
    assert Civitai.of(CivitaiRef(1), ELSEWHERE).web.token is None
    monkeypatch.setenv("CIVITAI_API_TOKEN", "of-this-run")
    assert Civitai.of(CivitaiRef(1), ELSEWHERE).web.token == "of-this-run"


def test_no_token_is_kept_for_another_endpoint(no_token):
    result = CliRunner().invoke(main, ["login", "civitai", "--civitai-endpoint", ELSEWHERE], input=f"{TOKEN}\n")
    assert result.exit_code == 2 and "for Civitai alone" in result.output and TOKEN not in result.output
    assert credentials.civitai_token() is None


@pytest.mark.parametrize("endpoint", ["https://me:SECRET@civitai.com", "http://me:SECRET@[::1", "ftp://x?token=SECRET"])
def test_an_endpoint_with_a_password_is_refused_and_not_shown(endpoint):
    with pytest.raises(UnknownReferenceError, match="check --civitai-endpoint") as error:
        resolve(REFERENCE, civitai_endpoint=endpoint)
    assert "SECRET" not in str(error.value)


@pytest.mark.parametrize("bad", ["wrong-token-999", "two words", "umläut-token"])
def test_a_token_that_is_none_is_not_kept_and_not_shown(run, no_token, bad):
    result = run("login", "civitai", input=f"{bad}\n")
    assert result.exit_code == 2 and bad not in result.output
    assert not list(Path(os.environ["HSWQ_HOME"]).glob("civitai*"))


def test_a_malformed_token_in_the_environment_is_not_shown(server, monkeypatch):
    monkeypatch.setenv("CIVITAI_API_TOKEN", "secret\nX-Evil: 1")
    with pytest.raises(AccessError) as error:
        pull(server)
    assert "secret" not in str(error.value) and server.seen == []
