"""A published demo, and a Hub to upload it to that is searched for the token afterwards."""

import json
import logging
import shutil
import time
from types import SimpleNamespace

import pytest
from support.hub_server import TOKEN, HubServer
from support.uploading import QUICK, metrics_of, record_of

from hswq_hub.cards.card import write_card
from hswq_hub.settings import DEFAULT_FORMATS
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.publish import publish
from hswq_runtime import Format


@pytest.fixture(scope="module")
def published(home, tmp_path_factory):
    target = tmp_path_factory.mktemp("published") / "demo-hswq"
    publish(resolve("demo"), target, QUICK, command="hswq-hub publish demo")
    return target


@pytest.fixture
def make(published, tmp_path_factory):
    """The published demo, or only one format of it: each time a copy, since an upload completes record and card."""

    def make(wanted: Format | None = None):
        folder = shutil.copytree(published, tmp_path_factory.mktemp("copy") / "demo-hswq")
        for other in {*DEFAULT_FORMATS} - {wanted} if wanted else ():
            record, metrics = record_of(folder), metrics_of(folder)
            name = record["files"].pop(other.value)["file"]
            del record["layers"][other.value]
            record["contents"].remove(name)
            metrics["variants"] = [variant for variant in metrics["variants"] if variant["label"] != other.label]
            (folder / name).unlink()
            (folder / "hswq.json").write_text(json.dumps(record))
            (folder / "metrics.json").write_text(json.dumps(metrics))
            write_card(folder)
        return folder

    return make


@pytest.fixture
def folder(make):
    return make()


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were to be waited between tries."""
    waits: list[float] = []
    clock = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=waits.append)
    monkeypatch.setattr("hswq_hub.common.retry.sleep", waits.append)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    return waits


@pytest.fixture
def hub(tmp_path, monkeypatch, waits, capfd, caplog):
    """A Hub for this process. Afterwards all that was said and sent is searched for the token."""
    caplog.set_level("DEBUG")
    caplog.set_level("DEBUG", logger="huggingface_hub")
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [])  # which would print what is for DEBUG
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer(xet=tmp_path / "xet-store") as server:
        server.adopt(monkeypatch, tmp_path / "hf")
        yield server
        check_nothing_leaks(server)
    printed, logged = "".join(capfd.readouterr()), caplog.get_records("call")
    said = printed + "\n".join(record.getMessage() for record in logged)
    assert TOKEN not in said
    assert server.url in said or not server.seen, "requests are logged, and that is searched"
    signed = [record for record in logged if "signature=" in record.getMessage()]
    assert "signature=" not in printed
    assert not [record for record in signed if record.levelno > logging.DEBUG], "what is on the wire is for DEBUG"


def check_nothing_leaks(server):
    home = server.url.removeprefix("http://")
    for seen in server.seen:
        assert TOKEN not in seen.path and TOKEN.encode() not in seen.body
        carrying = {name for name, value in seen.headers.items() if TOKEN in value}
        assert carrying <= ({"Authorization"} if seen.host == home else set())
    for repo in server.repos.values():
        assert not any(TOKEN.encode() in content for content in repo.files.values())
