"""A Civitai with one model, a token for it, and no waits."""

import sys

import pytest
from click.testing import CliRunner
from support import tiny
from support.civitai_server import TOKEN, CivitaiServer

from hswq_hub.cli.main import main


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


@pytest.fixture
def run(server):
    def run(*arguments, **more):
        return CliRunner().invoke(main, [*arguments, "--civitai-endpoint", server.url], **more)

    return run


@pytest.fixture
def no_token(monkeypatch):
    monkeypatch.delenv("CIVITAI_API_TOKEN")
