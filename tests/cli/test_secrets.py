"""Tokens are planted wherever one can come from, and all that was said, written and sent is searched for them."""

import json
import sys
import traceback
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import civitai_server, hub_store, jobs_server
from support.civitai_server import FILE, MODEL, STATES, VERSION, CivitaiServer, Fault
from support.hub_server import HubServer, Repo
from support.jobs_server import JobsServer

from hswq_hub.cli import main as command_line
from hswq_hub.cli.main import main
from hswq_hub.sources.find import resolve

PLANTED = {
    name: f"planted-{name}-0123456789"
    for name in ("hub", "hub-file", "civitai", "civitai-file", "address", "password", "netrc")
}
"""Where from -> a token that can be recognised."""
ADDRESS = f"https://civitai.com/models/{MODEL}?modelVersionId={VERSION}&token={PLANTED['address']}"
DOWNLOAD = f"https://civitai.com/api/download/models/{VERSION}?fileId={FILE}&token={PLANTED['address']}"
HUB_PAGE = f"https://me:{PLANTED['password']}@huggingface.co/alice/missing?token={PLANTED['address']}"
ELSEWHERE = f"https://me:{PLANTED['password']}@example.com/x?token={PLANTED['address']}"
QUICK = "--samples 1 --steps 1 --pairs 1 --picture-steps 1 --recipe hswq --format v1 --no-noise-floor --metrics none"


def found_in(text: str) -> set[str]:
    return {name for name, token in PLANTED.items() if token in text}


def files_with_tokens(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and found_in(path.read_bytes().decode("latin-1"))
    }


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A user's machine, and where he keeps his tokens."""
    home = tmp_path / "user"
    for folder in (home, tmp_path / "hf", tmp_path / "work", tmp_path / "hswq"):
        folder.mkdir()
    hosts = ("127.0.0.1", "localhost", "civitai.com", "huggingface.co")
    (home / ".netrc").write_text("".join(f"machine {host} login me password {PLANTED['netrc']}\n" for host in hosts))
    (home / ".netrc").chmod(0o600)
    (tmp_path / "hf/token").write_text(PLANTED["hub-file"])
    (tmp_path / "hswq/civitai-token").write_text(PLANTED["civitai-file"])
    kept_there = {"user/.netrc", "hf/token", "hswq/civitai-token"}
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HSWQ_HOME", str(tmp_path / "hswq"))
    monkeypatch.setenv("HF_TOKEN", PLANTED["hub"])
    monkeypatch.setenv("CIVITAI_API_TOKEN", PLANTED["civitai"])
    monkeypatch.setattr("hswq_hub.common.retry.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "hf/token"))
    monkeypatch.setitem(sys.modules, "keyring", None)
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path
    assert files_with_tokens(tmp_path) - {"work/models.yaml"} == kept_there


@pytest.fixture
def say(place, monkeypatch, caplog):
    """Runs a command, once more with HSWQ_DEBUG if it fails; searches what it says, and returns its exit code."""
    caplog.set_level("INFO")

    def once(words, debug: str) -> int:
        monkeypatch.setenv(command_line.DEBUG_VARIABLE, debug)
        caplog.clear()
        result = CliRunner().invoke(main, [str(word) for word in words])
        said = result.output + "\n".join(record.getMessage() for record in caplog.records)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            assert debug, "an error is a sentence"
            said += "".join(traceback.format_exception(result.exception))
        assert not found_in(said) and "Signature=" not in said, said
        return result.exit_code

    def run(*words) -> int:
        code = once(words, "")
        if code:
            once(words, "1")
        return code

    return run


@pytest.fixture
def civitai(place, monkeypatch):
    """A Civitai that knows the token of the environment, or that of the file."""
    monkeypatch.setattr(civitai_server, "TOKEN", PLANTED["civitai"])
    with CivitaiServer(Path(resolve("demo").path).read_bytes(), name="demo.safetensors") as server:
        server.model |= {"allowDerivatives": True, "allowCommercialUse": ["Image"]}
        yield server
    for seen in server.seen:
        allowed = {"civitai", "civitai-file"} if seen.origin == server.url else set()
        assert found_in(json.dumps([seen.path, seen.headers])) <= allowed, seen


@pytest.fixture
def hub(place, monkeypatch):
    """A Hub with a private repo, whose storage has another origin."""
    with HubServer() as server:
        server.accounts = {PLANTED["hub"]: hub_store.account("alice")}
        server.adopt(monkeypatch, place / "hf")
        yield server
    for seen in server.seen:
        at_home = seen.host == server.url.partition("//")[2]
        found = found_in(json.dumps([seen.path, seen.headers]) + seen.body.decode("latin-1"))
        assert found <= ({"hub", "hub-file"} if at_home else set()), seen


def test_what_is_typed_is_shown_without_tokens(say, hub, civitai):
    there = ("--civitai-endpoint", civitai.url)
    assert say("pull", ADDRESS, *there, "--base", resolve("demo").base) == 0
    for reference in (HUB_PAGE, ELSEWHERE, f"alice/x?token={PLANTED['address']}", f"x?token={PLANTED['address']}"):
        for command in ("inspect", "status"):
            say(command, reference)
    for base in (HUB_PAGE, f"alice/x?token={PLANTED['address']}"):
        assert say("publish", ADDRESS, "--dry-run", "--base", base, *there) == 2
    for endpoint in (f"{civitai.url}?token={PLANTED['address']}", ELSEWHERE, f"ftp://{PLANTED['password']}@x"):
        say("pull", DOWNLOAD, "--civitai-endpoint", endpoint)
    for option in ("--repo", "--collection", "--space"):
        repo = () if option == "--repo" else ("--repo", "alice/x")
        assert say("publish", "demo", "--dry-run", *repo, option, HUB_PAGE) == 2


def test_no_answer_of_a_host_makes_it_say_a_token(say, civitai, hub, monkeypatch):
    words = ("pull", DOWNLOAD, "--civitai-endpoint", civitai.url, "--base", resolve("demo").base)
    echo = {"error": f"Bearer {PLANTED['civitai']}", "message": f"the token {PLANTED['civitai']} is odd"}
    monkeypatch.setitem(STATES, "echo", (403, echo))
    for state in STATES:
        civitai.state = state
        assert say(*words) == 2
    civitai.state = "ok"
    for fault in (Fault(status=500), Fault(status=403, body=b"<Error/>"), Fault(status=429)):
        civitai.faults = [fault] * 40
        assert say(*words) == 2
    for broken in (f"{PLANTED['civitai']}\x01", f"{PLANTED['civitai']} é"):
        monkeypatch.setenv("CIVITAI_API_TOKEN", broken)
        assert say(*words) == 2
    for broken in (f"{PLANTED['hub']}\x01", f"{PLANTED['hub']} é", f"{PLANTED['hub']}\x7f"):
        monkeypatch.setenv("HF_TOKEN", broken)
        assert say("inspect", "alice/private") == say("publish", "demo", "--repo", "alice/x", "--dry-run") == 2


def test_a_private_repo_is_read_with_the_token_and_its_storage_without(say, hub):
    path = "model.safetensors"
    hub.repos["alice/private"] = Repo({path: Path(resolve("demo").path).read_bytes()}, private=True)
    assert say("pull", f"alice/private/{path}", "--base", resolve("demo").base) == 0
    origins = {seen.host.partition(":")[0] for seen in hub.seen}
    assert origins == {"127.0.0.1", "localhost"}, "what is searched has to be there"
    assert any(found_in(str(seen.headers)) == {"hub"} for seen in hub.seen)


def test_what_is_published_holds_none(say, civitai, place, monkeypatch):
    """With the stored token; afterwards the workspace, the folder, its card, record and metadata are searched."""
    monkeypatch.delenv("CIVITAI_API_TOKEN")
    monkeypatch.setattr(civitai_server, "TOKEN", PLANTED["civitai-file"])
    words = ("--civitai-endpoint", civitai.url, "--base", resolve("demo").base, "--licence", "mit", "--folder", "out")
    assert say("publish", DOWNLOAD, *words, *QUICK.split()) == 0
    record = json.loads((place / "work/out/hswq.json").read_text())
    assert f"civitai:{MODEL}@{VERSION}" in record["command"] and (place / "work/out/README.md").exists()


def test_a_list_of_models_is_told_without_tokens(say, place, civitai):
    models = place / "work/models.yaml"
    for text in (
        f"- reference: {ADDRESS}\n  civitai-endpoint: {civitai.url}/nothing\n- {ELSEWHERE}\n",
        f"- {ADDRESS}\n- {ADDRESS}\n",
        f"- {ADDRESS}\n: {PLANTED['address']} [\n",
        f"- reference: {ADDRESS}\n  base: {HUB_PAGE}\n  civitai-endpoint: {civitai.url}\n",
    ):
        models.write_text(text)
        assert say("publish-all", models) in (1, 2)


def test_a_job_gets_them_as_secrets_and_its_command_none(say, place, civitai, monkeypatch):
    monkeypatch.setattr(jobs_server, "TOKEN", PLANTED["hub"])
    words = ["publish", ADDRESS, "--repo", "alice/x", "--on", "hf-jobs", "--yes", "--base", "bob/base"]
    there = ["--civitai-endpoint", civitai.url]
    with JobsServer() as server, server.as_the_hub(monkeypatch):
        monkeypatch.setenv("HF_TOKEN", PLANTED["hub"])
        server.repos["bob/base"] = {"model_index.json": 500, "vae/y.safetensors": 1000}
        server.starts["lines"] = [f"HF_TOKEN={PLANTED['hub']}", f"CIVITAI_API_TOKEN={PLANTED['civitai']}"]
        assert say(*words, *there, "--package", "hswq-hub==9.9") == 0
        for package in (
            f"git+https://{PLANTED['password']}@github.com/o/r@abc",
            f"https://x/y.whl?{PLANTED['address']}",
        ):
            assert say(*words, *there, "--package", package) == 2
        assert say(*words, *there, "--package", "git+ssh://git@github.com/o/r@abc") == 0
        for private in (f"{civitai.url}?key={PLANTED['address']}", ELSEWHERE):
            assert say(*words, "--civitai-endpoint", private, "--package", "hswq-hub==9.9") == 2
        assert say("jobs") == 0
        assert len(server.jobs) == 2
        for job in server.jobs.values():
            secrets = job.spec.pop("secrets")
            assert secrets == {"HF_TOKEN": PLANTED["hub"], "CIVITAI_API_TOKEN": PLANTED["civitai"]}
            assert not found_in(json.dumps(job.spec))


def test_processes_that_share_a_calibration_get_no_token_as_an_argument(say, monkeypatch):
    started = []
    monkeypatch.setattr("hswq_hub.calibration.processes.launch", lambda _, words: started.append(words) or 0)
    assert say("calibrate", ADDRESS, "--num-processes", 2, "-o", "statistics.safetensors") == 0
    assert started[0][:2] == ["calibrate", f"civitai:{MODEL}@{VERSION}"] and not found_in(json.dumps(started))
