"""Tokens: kept for their owner alone, sent to Civitai alone, shown to nobody."""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from support.civitai import REFERENCE, pull
from support.civitai_server import TOKEN

from hswq_hub.cli.main import main
from hswq_hub.sources.errors import (
    AccessError,
    UnknownReferenceError,
)
from hswq_hub.sources.find import resolve
from hswq_hub.sources.http import credentials


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
