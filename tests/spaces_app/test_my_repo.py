"""HSWQ my repo without a browser: who may act, what is told of a link, what an order checks, and its Space."""

import asyncio
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from support.hub_server import HubServer, Repo, account
from support.jobs_server import machine

import spaces_app
from hswq_hub.cli.publish import publish
from hswq_hub.common.retry import Patience
from hswq_hub.hub.client import VerificationError, api
from hswq_hub.hub.destination import Destination
from hswq_hub.hub.settings import UploadSettings
from hswq_hub.hub.space import fill_space
from hswq_hub.jobs.jobs import Need, Offer
from hswq_hub.sources.components import vae_of
from hswq_hub.sources.http.credentials import civitai_token
from hswq_hub.sources.http.tokens import Tokens, client_token, given_tokens, hub_options, hub_token, on_behalf_of
from hswq_hub.sources.huggingface import Hub
from hswq_runtime.errors import HSWQError
from spaces_app.my_repo import view
from spaces_app.my_repo.app import main
from spaces_app.my_repo.login import SCOPES, Login
from spaces_app.my_repo.look import FORMATS, LinkError, Look, gpu_of, look_at
from spaces_app.my_repo.order import Order, OrderError
from spaces_app.my_repo.visitor import OwnMachine, Unframed, Visitor

OF_THIS_MACHINE = "hf_of_this_machine_0123456789"
HERE = ("127.0.0.1:7860", "localhost")
ATTACK = '"><img src=x onerror=alert(1)>'


@pytest.fixture
def machine_tokens(monkeypatch):
    """This machine has both tokens."""
    monkeypatch.setenv("HF_TOKEN", OF_THIS_MACHINE)
    monkeypatch.setenv("CIVITAI_API_TOKEN", "civitai-of-this-machine")


def hardware(name: str = "l40sx1", vram: str | None = "48 GB", model: str = "L40S"):
    listed = machine(name, vram)
    gpu = None if listed["accelerator"] is None else SimpleNamespace(**listed["accelerator"] | {"model": model})
    return SimpleNamespace(
        name=name, ram="62 GB", cpu="8 vCPU", unit_cost_usd=0.03, unit_label="minute", accelerator=gpu
    )


def look(**changes) -> Look:
    facts = (("model", "Z-Image"),)
    return Look(**{"reference": "a/b", "name": "b", "facts": facts, "need": Need(1, True), "licence": "mit"} | changes)


def order(**changes) -> Order:
    return Order(**{"reference": "a/b", "format": "both", "repo": "ada/b-HSWQ", "private": False, "flavor": "l40sx1",
                    "hours": 3} | changes)  # fmt: skip


def test_for_a_visitor_nothing_of_this_machine_is_used(machine_tokens):
    assert (hub_token(), client_token(), civitai_token()) == (OF_THIS_MACHINE, None, "civitai-of-this-machine")
    with on_behalf_of(Tokens()):
        assert (hub_token(), client_token(), civitai_token()) == (None, False, None)
        assert api().token is False
        with on_behalf_of(Tokens("hf_ada", "civitai-ada")):
            assert (hub_token(), client_token(), civitai_token()) == ("hf_ada", "hf_ada", "civitai-ada")
            assert civitai_token(stored=False) is None, "a stranger's host gets no token"
        assert hub_token() is None
    assert given_tokens() is None and hub_token() == OF_THIS_MACHINE


def test_visitors_in_two_threads_do_not_meet():
    found, together = {}, threading.Barrier(2)

    def act(name: str):
        with on_behalf_of(Tokens(f"hf_{name}")):
            together.wait(10)
            found[name] = hub_token()
            together.wait(10)

    threads = [threading.Thread(target=act, args=(name,)) for name in ("ada", "bea")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {"ada": "hf_ada", "bea": "hf_bea"}


def test_tokens_are_not_printed():
    tokens = Tokens("hf_ada", "civitai-ada")
    assert (
        "ada" not in repr(tokens) + repr(Visitor("x", tokens))
        and tokens.hidden_in("a hf_ada b civitai-ada") == "a … b …"
    )


@pytest.mark.parametrize("host", [*HERE, "[::1]:7860", "evil.example", "127.0.0.1.evil.example", ""])
def test_the_machines_own_visitor_comes_by_its_own_name(monkeypatch, tmp_path, host):
    with HubServer() as hub:
        hub.adopt(monkeypatch, tmp_path)
        hub.accounts[OF_THIS_MACHINE] = account("ada")
        monkeypatch.setenv("HF_TOKEN", OF_THIS_MACHINE)
        door = OwnMachine()
    found = door.visitor(SimpleNamespace(headers={"host": host}))
    assert (found is not None) == (host in HERE)
    for strange in ({"sec-fetch-site": "cross-site"}, {"x-forwarded-for": "9.9.9.9"}, {"forwarded": "for=9.9.9.9"}):
        assert door.visitor(SimpleNamespace(headers={"host": host, **strange})) is None
    assert found is None or (found.name, found.tokens.hub) == ("ada", OF_THIS_MACHINE)


def test_it_is_not_served_to_people_who_could_not_sign_in(monkeypatch):
    monkeypatch.delenv("OAUTH_CLIENT_ID", raising=False)
    with pytest.raises(HSWQError, match="cannot sign in here"):
        main(host="0.0.0.0")


def test_half_a_setting_of_the_sign_in_is_an_error():
    told = {"OAUTH_CLIENT_ID": "a", "OAUTH_CLIENT_SECRET": "b", "OPENID_PROVIDER_URL": "https://hf.example"}
    assert Login.of({}) is None
    with pytest.raises(HSWQError, match="OAUTH_SCOPES"):
        Login.of(told)
    with pytest.raises(HSWQError, match="jobs"):
        Login.of(told | {"OAUTH_SCOPES": "openid profile contribute-repos"})


@pytest.mark.parametrize("link", ["/etc/passwd", "/no/such/file", "~root", "."])
def test_of_this_machines_files_a_link_says_nothing(link):
    with pytest.raises(HSWQError) as told:
        look_at(link)
    assert str(told.value) == (
        f"{link} is no link to a model on Civitai or Hugging Face; paste its page's address, or owner/name"
    )


def test_no_link_is_asked_for():
    with pytest.raises(LinkError, match="paste a link"):
        look_at("  ")


def test_a_link_of_a_stranger_is_looked_at_without_a_token(monkeypatch, tmp_path, machine_tokens):
    with HubServer() as hub:
        hub.adopt(monkeypatch, tmp_path)
        hub.accounts[OF_THIS_MACHINE] = account("ada")
        hub.repos["ada/secret"] = Repo({"x.safetensors": b"not for all"}, private=True)
        with on_behalf_of(Tokens()), pytest.raises(HSWQError):
            look_at("ada/secret")
        assert hub.seen and not [seen for seen in hub.seen if "Authorization" in seen.headers]


@pytest.mark.parametrize(
    ("vram", "model", "name"),
    [("48 GB", "L40S", "L40S"), ("24 GB", "L4", "L4"), ("80 GB", "A100", "A100 80GB"), ("80 GB", "H100", "H100 SXM"),
     ("80 GB", "A100 - large", "A100 80GB"), ("24 GB", "RTX 4090", "RTX 4090"), ("16 GB", "T4", None),
     ("141 GB", "H200", None), ("96 GB", "RTX PRO 6000", None), (None, "", None)],
)  # fmt: skip
def test_a_machines_gpu_is_one_whose_speed_is_known_or_none(vram, model, name):
    found = gpu_of(hardware(vram=vram, model=model))
    assert (found and found.name) == name


def test_what_a_job_runs_is_understood_by_the_command_line():
    for format in FORMATS.values():
        words = order(format=format, private=True, permitted=True, licence="mit").words
        given = publish.make_context("publish", Offer(hardware(), 3600, Need(0, True)).command(words)[2:]).params
        assert (given["reference"], given["format_"], given["repo"]) == ("a/b", format, "ada/b-HSWQ")
        assert (given["private"], given["permitted"], given["licence"], given["yes"]) == (True, True, "mit", True)


def test_an_order_is_refused_before_it_costs():
    visitor = Visitor("ada", Tokens("hf_ada"), time.time() + 3.5 * 3600)
    with pytest.raises(OrderError, match="sign-in ends in"):
        order().start(visitor, look())
    with pytest.raises(OrderError, match="says no derivatives"):
        order().start(Visitor("ada", Tokens("hf_ada")), look(objections=("its creator says no derivatives",)))
    with pytest.raises(OrderError, match="no id of a licence"):
        order(licence="--private").start(Visitor("ada", Tokens("hf_ada")), look())
    with pytest.raises(OrderError, match="Civitai asks for a token"):
        order(reference="civitai:1@2").start(Visitor("ada", Tokens("hf_ada")), look())


def test_the_published_repo_is_compared_with_its_record():
    record = {"files": {"v1": {"file": "x.safetensors", "sha256": "1" * 64}}}

    def destination(record, files):
        return Destination(UploadSettings("ada/b"), "ada", "0" * 40, files, record)

    assert destination(record, {"x.safetensors": "1" * 64}).check_files() == 1
    for files in ({}, {"x.safetensors": "2" * 64}, {"x.safetensors": None}):
        with pytest.raises(VerificationError, match="not the file"):
            destination(record, files).check_files()
    for strange in (None, {}, {"files": []}, {"files": {"v1": 7}}):
        with pytest.raises(VerificationError, match="nothing that hswq-hub made"):
            destination(strange, {}).check_files()
    with pytest.raises(VerificationError):
        destination({"files": {"v1": {}}}, {}).check_files()


def test_what_strangers_wrote_is_text():
    shown = view.facts(look(facts=(("licence", ATTACK),), objections=(ATTACK,)))
    shown += view.account(Visitor(ATTACK, Tokens()), "sign-in") + view.account(None, "login", ATTACK)
    job = SimpleNamespace(status=SimpleNamespace(stage="ERROR", message=ATTACK), url=f"https://x/{ATTACK}")
    watched = SimpleNamespace(job=job, lines=(ATTACK,), repo=ATTACK, succeeded=False, ended=True, matched=None)
    shown += view.progress(watched) + view.progress(SimpleNamespace(**vars(watched) | {"ended": False}))
    watched.problem = ATTACK
    for matched in (None, 2):
        shown += view.progress(SimpleNamespace(**vars(watched) | {"succeeded": True, "matched": matched}))
    shown += view.note(ATTACK) + view.account(Visitor("x", Tokens()), "sign-in", ATTACK)
    assert "<img" not in shown and "onerror" in shown


def test_its_space_carries_the_code_and_says_what_jobs_install(tmp_path):
    page = Path(spaces_app.__file__).parent / "my_repo"
    fill_space(tmp_path, None, page, "hswq-hub==9.9")
    assert (tmp_path / "package.txt").read_text() == "hswq-hub==9.9\n"
    assert not (tmp_path / "models.txt").exists()
    for name in ("app.py", "spaces_app/my_repo/page.py", "spaces_app/page/style.css", "hswq_hub", "hswq_runtime"):
        assert (tmp_path / name).exists(), name
    front = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    assert front["hf_oauth"] is True and front["hf_oauth_scopes"] == list(SCOPES[2:])
    assert "authlib" in (tmp_path / "requirements.txt").read_text()


def test_what_is_fetched_for_one_visitor_is_not_there_for_another(monkeypatch, tmp_path):
    with HubServer() as hub:
        hub.adopt(monkeypatch, tmp_path)
        hub.accounts["hf_ada"] = account("ada")
        stated = b'{"sample_size": 64}'
        hub.repos["ada/secret"] = Repo({"model_index.json": b"{}", "vae/config.json": stated}, private=True)
        with on_behalf_of(Tokens("hf_ada")):
            assert vae_of("ada/secret", hub_options()) == {"sample_size": 64}
        with on_behalf_of(Tokens()):
            assert vae_of("ada/secret", hub_options()) == {}
        assert not [path for path in tmp_path.rglob("config.json")]


def test_of_a_strangers_repo_nothing_large_is_fetched(monkeypatch, tmp_path):
    with HubServer() as hub:
        hub.adopt(monkeypatch, tmp_path)
        big = b" " * (2 << 20) + b"{}"
        hub.repos["eve/base"] = Repo({"model_index.json": b"{}", "vae/config.json": b"{}", "vae/big.json": big})
        with on_behalf_of(Tokens()):
            vae_of("eve/base", hub_options())
        assert sum(hub.fetched("eve/base").values()) < 1000
        hub.repos["eve/base"].files["vae/config.json"] = big
        with on_behalf_of(Tokens()), pytest.raises(HSWQError, match="larger than any configuration"):
            Hub().components_size("eve/base")


def test_nobody_who_watches_waits_long(monkeypatch):
    waits = []
    monkeypatch.setattr("hswq_hub.common.retry.sleep", waits.append)
    with on_behalf_of(Tokens()):
        patience = Patience(tries=6, most=600)
        assert patience.wait() and not patience.wait() and not Patience(most=600).wait(30.0)
    assert waits == [1.0] and Patience(most=600).wait(30.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("It is gated; accept its terms and run `hf auth login`.", "It is gated."),
        ("It holds something; choose another --repo, or say --force to add to it.", "It holds something."),
        ("Civitai asks; run `hswq-hub login civitai`, or set CIVITAI_API_TOKEN", "Civitai asks."),
        ("Run `x`.", "Run `x`."),
        ("One; two; three.", "One; two; three."),
    ],
)
def test_on_a_page_nobody_is_told_to_type_a_command(text, said):
    assert view.without_commands(text) == said


def test_a_page_of_ones_own_is_shown_in_no_frame():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})

    async def send(message):
        sent.append(message)

    asyncio.run(Unframed(app)({"type": "http"}, None, send))
    assert sent[0]["headers"] == [(b"a", b"b"), (b"content-security-policy", b"frame-ancestors 'none'")]
