"""A look before the download: some kilobytes, nothing hashed; and a file of this machine, which is hashed once."""

import os
import shutil
import sys

import pytest
from support import tiny
from support.civitai_server import MODEL, TOKEN, VERSION, CivitaiServer
from support.hub_server import HubServer, Repo

from hswq_hub.common.files import file_sha256
from hswq_hub.settings import SourceSettings
from hswq_hub.sources.find import find, resolve
from hswq_hub.sources.http import cache
from hswq_hub.sources.source import NOT_LISTED

CIVITAI = f"civitai:{MODEL}@{VERSION}"
FIRST_REQUEST = 1 << 16
"""Bytes that a header is looked for in, at most: the first request."""
DIGEST = "hswq_hub.sources.http.cache.file_sha256"


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("CIVITAI_API_TOKEN", TOKEN)
    monkeypatch.setitem(sys.modules, "keyring", None)


@pytest.fixture
def model(tmp_path):
    return tiny.checkpoint(tmp_path)


@pytest.fixture
def civitai(model):
    with CivitaiServer(model.read_bytes()) as server:
        server.chunk = 1 << 12
        yield server


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer() as server:
        server.adopt(monkeypatch, tmp_path / "hf")
        yield server


@pytest.fixture
def hashed(monkeypatch):
    """The files that are read in full, in order."""
    names = []
    monkeypatch.setattr(DIGEST, lambda path: names.append(path.name) or file_sha256(path))
    return names


def sent(server) -> int:
    return sum(seen.sent for seen in server.stored)


def test_a_look_at_a_file_elsewhere_fetches_its_header(civitai, hashed):
    found = find(CIVITAI, SourceSettings(civitai_endpoint=civitai.url))
    assert not civitai.stored, "only the listing"
    with found.look() as source:
        assert (source.architecture.title, source.sha256) == ("Z-Image", civitai.sha256)
        assert source.path.stat().st_size == len(civitai.content)
    assert 0 < sent(civitai) < len(civitai.content) / 2
    assert hashed == [] and cache.contents() == []


def test_a_look_at_shards_fetches_their_headers(hub, tmp_path, hashed):
    folder = tmp_path / "model"
    tiny.model().save_pretrained(folder / "transformer", max_shard_size="150KB")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    weights = {name: len(data) for name, data in files.items() if name.endswith(".safetensors")}
    assert len(weights) > 1
    hub.repos["alice/shards"] = Repo(files)
    found = find("alice/shards")
    assert not found.is_here
    with found.look() as source:
        assert (source.name, source.sha256, source.architecture.title) == ("shards", NOT_LISTED, "Z-Image")
    fetched = hub.fetched("alice/shards")
    assert all(0 < fetched[name] <= FIRST_REQUEST for name in weights), fetched
    assert sum(fetched[name] for name in weights) < sum(weights.values()) and hashed == []
    assert resolve("alice/shards").sha256 != NOT_LISTED and find("alice/shards").is_here


def test_what_was_fetched_is_here_and_is_looked_at_without_its_host(civitai, hashed):
    settings = SourceSettings(civitai_endpoint=civitai.url)
    found = find(CIVITAI, settings)
    assert not found.is_here
    fetched = found.fetch()
    count, read = len(civitai.stored), list(hashed)
    assert found.is_here
    with found.look() as source:
        assert (source.path, source.sha256) == (fetched.path, fetched.sha256)
    assert len(civitai.stored) == count and hashed == read


def test_whether_it_is_here_reads_and_removes_nothing(civitai, hashed):
    found = find(CIVITAI, SourceSettings(civitai_endpoint=civitai.url))
    path = found.fetch().path
    os.utime(path, ns=(1, 1))
    hashed.clear()
    assert not found.is_here, "it may be another file by now"
    assert path.is_file() and hashed == []
    assert found.fetch().path == path and hashed == [path.name] and found.is_here


def test_a_file_of_the_hubs_client_is_here_unread(hub, model, hashed):
    from huggingface_hub import hf_hub_download

    hub.repos["alice/single"] = Repo({"my.safetensors": model.read_bytes()})
    found = find("alice/single")
    assert not found.is_here
    theirs = hf_hub_download("alice/single", "my.safetensors", endpoint=hub.url)
    assert found.is_here and hashed == []
    assert str(found.fetch().path) == theirs and hashed == ["my.safetensors"]


def test_a_local_file_is_hashed_once(model, hashed):
    first = resolve(str(model))
    assert resolve(str(model)).sha256 == first.sha256 == file_sha256(model)
    assert hashed == [model.name]
    with find(str(model)).look() as source:
        assert source.sha256 == first.sha256
    assert hashed == [model.name]


@pytest.mark.parametrize("verify", [True, False], ids=["verify", "touched"])
def test_a_local_file_is_hashed_again(model, hashed, verify):
    resolve(str(model))
    if not verify:
        os.utime(model, ns=(1, 1))
    resolve(str(model), verify=verify)
    assert hashed == [model.name] * 2


def test_a_file_that_changes_while_it_is_hashed_is_hashed_again(model, monkeypatch):
    def change(path):
        digest = file_sha256(path)
        os.utime(path, ns=(1, 1))
        return digest

    monkeypatch.setattr(DIGEST, change)
    cache.sha256_of(model)
    assert cache.known_sha256(model) is None


def test_a_look_at_a_local_file_hashes_nothing(model, hashed):
    with find(str(model)).look() as source:
        assert source.sha256 == NOT_LISTED
    assert hashed == [] and not cache.folder().exists()


def test_a_source_knows_all_that_it_says(model, hashed, tmp_path):
    copy = tmp_path / "copy.safetensors"
    shutil.copyfile(model, copy)
    source, digest = resolve(str(copy)), file_sha256(copy)
    hashed.clear()
    copy.unlink()
    assert (source.sha256, source.architecture.title) == (digest, "Z-Image")
    assert source.as_dict()["digest"] == digest and hashed == []
