"""A Space for a published model: what is committed to it, against a small Hub on loopback."""

import base64
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi

import spaces_app
from hswq_hub import __version__
from hswq_hub.hub.space import SpaceError, deploy_space, fill_space

APP = Path(spaces_app.__file__).parent
ROOT = Path(__file__).parents[2]
COMMIT = "0" * 40


class SpacesHub(BaseHTTPRequestHandler):
    """Repos of type space: made, looked at, committed to. `refuse`: a status for everything that writes."""

    made: list
    commits: list
    url: str
    refuse: int | None

    def do_GET(self):
        files = [{"type": "file", "path": name, "size": 1, "oid": COMMIT} for name in ("hswq_hub/old.py", "notes.txt")]
        self._answer(files if "/tree/" in self.path else {"id": "alice/page", "sha": COMMIT, "siblings": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.refuse:
            return self._answer({"error": "no"}, self.refuse)
        if self.path == "/api/repos/create":
            self.made.append(json.loads(body))
            return self._answer({"url": f"{self.url}/spaces/alice/page", "name": "alice/page"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return self._answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        if "/commit/" in self.path:
            self.commits.append([json.loads(line) for line in body.splitlines()])
            return self._answer({"commitUrl": f"{self.url}/spaces/alice/page/commit/{COMMIT}", "commitOid": COMMIT})
        return self._answer({"errors": [], "warnings": []})

    def _answer(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    kind = type("Hub", (SpacesHub,), {"made": [], "commits": [], "refuse": None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    kind.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", kind.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    kind.client = HfApi(endpoint=kind.url, token="hf_secret")
    yield kind
    server.shutdown()
    server.server_close()


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_one_commit_makes_a_whole_space(hub):
    url = deploy_space("alice/page", "alice/model-hswq", APP, private=True, client=hub.client)
    assert url.endswith("/spaces/alice/page")
    (made,) = hub.made
    assert (made["type"], made["sdk"], made["name"]) == ("space", "gradio", "page")
    assert made.get("private") is True or made.get("visibility") == "private"
    (commit,) = hub.commits
    files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in commit if line["key"] == "file"
    }
    assert files["models.txt"] == b"alice/model-hswq\n"
    assert {
        "app.py",
        "requirements.txt",
        "hswq_hub/hub/space.py",
        "hswq_runtime/layers/fp8.py",
        "spaces_app/page/page.py",
    } <= set(files)
    assert files["app.py"] == (APP / "app.py").read_bytes()
    front = front_matter(files["README.md"].decode())
    assert front["models"] == front["preload_from_hub"] == ["alice/model-hswq"]
    assert (front["sdk"], front["app_file"], front["python_version"]) == ("gradio", "app.py", "3.12")
    assert not [name for name in files if "__pycache__" in name or name.endswith(".pyc")]
    deleted = {line["value"]["path"] for line in commit if line["key"].startswith("deleted")}
    assert deleted == {"hswq_hub/old.py"}, "what an earlier release left goes, what the owner added stays"
    assert b"hf_secret" not in b"".join(files.values())


@pytest.mark.parametrize(("status", "sentence"), [(402, "ZeroGPU"), (403, "hf auth login"), (400, "refuses")], ids=str)
def test_a_refusal_is_a_sentence(hub, status, sentence):
    hub.refuse = status
    with pytest.raises(SpaceError, match=sentence) as caught:
        deploy_space("alice/page", "alice/model-hswq", APP, client=hub.client)
    assert "hf_secret" not in str(caught.value) and hub.commits == []


@pytest.mark.parametrize("name", ["page", "../page", "alice/page/more", ""])
def test_a_name_that_is_none(hub, name):
    with pytest.raises(SpaceError, match="owner/name"):
        deploy_space(name, "alice/model-hswq", APP, client=hub.client)
    assert hub.made == []


def test_the_folder_and_the_constraints_name_the_same_releases():
    front = front_matter((APP / "README.md").read_text())
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert front["sdk_version"] == pins["gradio"]
    assert f"hswq-hub[demo]=={__version__}" in (APP / "requirements.txt").read_text()
    assert len(front["short_description"]) <= 60


def test_the_space_imports_its_own_code(tmp_path):
    """As a Space does: app.py's folder comes first, nothing of the project is installed."""
    fill_space(tmp_path, "alice/model-hswq", APP)
    lines = (tmp_path / "requirements.txt").read_text().split()
    assert any(line.startswith("diffusers") for line in lines) and not any(line.startswith("gradio") for line in lines)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import spaces_app, hswq_hub, hswq_runtime as r\n"
    code += "print(spaces_app.__file__, hswq_hub.__file__, r.__file__)"
    printed = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(path.startswith(str(tmp_path)) for path in printed.split())
