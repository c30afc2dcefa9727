"""What hostile programs send to the served page: each is refused in a sentence, and nothing is read or fetched."""

import json
import shutil
import threading
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest
from support.hub_server import HubServer, Repo
from support.served_page import FOR_ANYBODY, Refused, Visitor, served

from hswq_hub.sources.find import resolve

ROOT = Path(__file__).parents[2]
SECRET = "a secret that is in a file of the server"
HUGE = 10**12


class Huge(bytes):
    """Content that is listed with a size that no disk has."""

    sha256 = "0" * 64

    def __len__(self):
        return HUGE


@pytest.fixture(scope="module")
def hub():
    with HubServer() as hub:
        yield hub


@pytest.fixture(scope="module")
def page(hub, tmp_path_factory):
    """A page on which any repo may be named; its Hub is on loopback."""
    home = tmp_path_factory.mktemp("served")
    with served(home, "--allow-any-repo", host=FOR_ANYBODY, environment=hub.environment(home / "hf")) as page:
        yield page


@pytest.fixture(scope="module")
def elsewhere():
    """An address that the page has no reason to open, and the requests that came to it."""
    came = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            came.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", came
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def secret(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("server") / "secret.txt"
    path.write_text(SECRET)
    return path


SENSELESS = [
    ({"prompt": "x" * 10**6}, "1000000 characters; 600 are the most"),
    ({"prompt": ["a star"]}, "The prompt has to be text"),
    ({"prompt": "a\x00b"}, "cannot be printed"),
    ({"prompt": None}, "Write a prompt first"),
    ({"steps": 1e308}, "The number of steps has to be from 1 to 60, not 1e\\+308"),
    ({"steps": 0}, "The number of steps has to be from 1 to 60, not 0"),
    ({"steps": "60"}, "The number of steps has to be a number"),
    ({"steps": [60]}, "The number of steps has to be a number"),
    ({"size": 2**60}, "The size has to be from 64 to 192"),
    ({"size": -64}, "The size has to be from 64 to 192"),
    ({"size": 64.5}, "The size has to be a whole number"),
    ({"seed": 2**70}, "The seed has to be from 0"),
    ({"seed": True}, "The seed has to be a number"),
    ({"guidance": {"$gt": 0}}, "The guidance has to be a number"),
    ({"variants": {"original": 1}}, "The variants have to be a list of names"),
    ({"variants": [["original"], {}]}, "There is no variant"),
    ({"variants": ["V2"] * 10**5}, "Choose at least two variants"),
    ({"variants": ["x" * 10**6]}, "There is no variant"),
    ({"model": {"path": "/etc/passwd"}}, "A model is named by a text"),
    ({"model": ["demo"]}, "A model is named by a text"),
    ({"model": "../../etc"}, "A model is named as owner/repo"),
    ({"model": "file:///etc/passwd"}, "A model is named as owner/repo"),
    ({"model": "http://169.254.169.254/latest"}, "A model is named as owner/repo"),
    ({"model": "owner/repo/../../other"}, "A model is named as owner/repo"),
    ({"model": "demo\x00"}, "A model is named as owner/repo"),
    ({"lora": 5}, "The LoRA has to be text"),
    ({"lora": "/etc/passwd"}, "A LoRA is named as"),
    ({"lora": "eve/huge/../../../etc/passwd.safetensors"}, "A LoRA is named as"),
    ({"lora": "https://example.com/a/b/c.safetensors"}, "A LoRA is named as"),
    ({"lora": "eve/nothing/x.safetensors"}, "cannot be reached|does not exist|has no"),
]


@pytest.mark.parametrize(("fields", "sentence"), SENSELESS, ids=[f"{f}"[:40] for f, _ in SENSELESS])
def test_senseless_requests_are_refused_in_a_sentence(page, fields, sentence):
    with pytest.raises(Refused, match=sentence) as refused:
        Visitor(page.url).compare(**{"prompt": "a star", "steps": 1} | fields)
    assert len(str(refused.value)) < 500 and "\n" not in str(refused.value)


def test_a_file_in_place_of_a_text_is_neither_read_nor_fetched(page, elsewhere, secret):
    address, came = elsewhere
    for file in ({"path": str(secret)}, {"path": "../secret.txt"}, {"path": f"{address}/x"}, {"url": f"{address}/y"}):
        file = {"path": "x"} | file | {"meta": {"_type": "gradio.FileData"}}
        for field in ("prompt", "negative", "model", "lora", "variants"):
            visitor = Visitor(page.url)
            visitor.ask(**{"prompt": "a star", "steps": 1} | {field: [file] if field == "variants" else file})
            (end,) = (message for message in visitor.messages() if message["msg"] == "process_completed")
            assert not end["success"] and SECRET not in json.dumps(end)
    assert came == []


def test_no_file_of_the_server_is_served_and_no_address_is_opened(page, elsewhere, secret):
    address, came = elsewhere
    wanted = [str(secret), f"file://{secret}", "/etc/passwd", "../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd"]
    wanted += [str(resolve("demo").path), "pyproject.toml", ".git/config", f"{address}/x"]
    paths = [f"gradio_api/{route}{path}" for route in ("file=", "file/", "proxy=", "stream/") for path in wanted]
    paths += [f"{route}/{path}" for route in ("static", "assets", "svelte") for path in wanted]
    for path in paths:
        answer = httpx2.get(f"{page.url}{path}")
        assert answer.status_code in (400, 403, 404, 405, 422), (path, answer.status_code)
        assert SECRET not in answer.text and "root:" not in answer.text
    assert came == []


def test_nothing_is_taken(page):
    for size in (1, 1000, 10**6):
        answer = httpx2.post(f"{page.url}gradio_api/upload", files={"files": ("../../a.txt", b"x" * size)})
        assert answer.status_code == 413


def test_nobody_goes_past_the_queue(page):
    visitor = Visitor(page.url)
    body = {"data": ["a star", 1, 1], "fn_index": visitor.functions()["compare"], "session_hash": uuid.uuid4().hex}
    for route in ("run/predict", "api/predict", "run/compare", "api/compare"):
        answer = httpx2.post(f"{page.url}gradio_api/{route}", json=body)
        assert answer.status_code == 404 and "join the queue" in answer.json()["detail"]


def strangers(folder: Path, **files: bytes) -> Repo:
    """A published repo whose record and components are the bundled model's, with other files besides."""
    shutil.copytree(resolve("demo").base, folder)
    for name in ("hswq.json", "metrics.json", "README.md"):
        shutil.copy(ROOT / "model_cards/demo-hswq" / name, folder)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    bundled = ROOT / "spaces_app/bundled"
    return Repo(found | {path.name: path.read_bytes() for path in bundled.glob("*.safetensors")} | files)


@pytest.mark.parametrize(
    ("huge", "asked"),
    [
        ("lora.safetensors", {"lora": "eve/huge/lora.safetensors"}),
        ("hswq.json", {"model": "eve/huge"}),
        ("demo-hswq-v2.safetensors", {"model": "eve/huge", "variants": ["V1", "V2"]}),
        ("text_encoder/model.safetensors", {"model": "eve/huge", "variants": ["V1", "V2"]}),
    ],
    ids=["LoRA", "record", "weights", "component"],
)
def test_what_is_huge_is_refused_by_its_size_before_it_is_fetched(hub, page, tmp_path, huge, asked):
    owner = f"eve-{uuid.uuid4().hex[:8]}"  # so that nothing is known of it
    hub.repos[f"{owner}/huge"] = strangers(tmp_path / "repo", **{huge: Huge(b"x")})
    asked = {
        name: value.replace("eve/", f"{owner}/") if isinstance(value, str) else value for name, value in asked.items()
    }
    with pytest.raises(Refused, match=f"{owner}/huge has 1000.* GB of what would be fetched; .* GB are the most"):
        Visitor(page.url).compare("a star", steps=1, **asked)
    assert huge not in hub.fetched(f"{owner}/huge")
    assert not any(huge in seen.path for seen in hub.seen if "/resolve/" in seen.path and owner in seen.path)


def test_a_strangers_repo_of_a_modest_size_is_shown(hub, page, tmp_path):
    """That the above are refused for their size alone."""
    hub.repos["eve/modest"] = strangers(tmp_path / "repo")
    answer = Visitor(page.url).compare("a star", steps=1, model="eve/modest", variants=["V1", "V2"])
    assert [variant["label"] for variant in answer["variants"]] == ["V1", "V2"]
    assert {seen.headers.get("Authorization") for seen in hub.seen} == {None}
