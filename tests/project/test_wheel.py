"""The built wheel, in an environment that knows nothing of this checkout."""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import httpx2
import pytest
from gradio_client import Client

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def build(folder: Path) -> Path:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"})
    return next(folder.glob("*.whl"))


def test_built_again_it_has_the_same_bytes(wheel, tmp_path):
    assert build(tmp_path).read_bytes() == wheel.read_bytes()


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A virtual environment with the installed wheel. The dependencies are this environment's, by their path alone, so
    that an editable install of the checkout is not seen."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    install = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)
    return folder


@pytest.fixture(scope="module")
def command(environment):
    """Runs hswq-hub from the installed wheel."""

    def run(*arguments, cwd):
        variables = {**os.environ, "HSWQ_HOME": str(cwd / "home")}
        variables.pop("PYTHONPATH", None)
        return subprocess.run(
            [environment / "bin/hswq-hub", *arguments], cwd=cwd, env=variables, capture_output=True, text=True
        )

    return run


def test_every_list_of_prompts_is_in_it(wheel):
    data = ROOT / "hswq_hub/data"
    lists = {str(path.relative_to(ROOT)) for path in data.rglob("prompts/**/*.txt")}
    assert len(lists) == 8 and lists <= set(zipfile.ZipFile(wheel).namelist())


def test_nothing_with_a_generic_name_is_installed(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"hswq_hub", "hswq_runtime", "spaces_app"}


def test_the_catalog_is_installed(command, tmp_path):
    result = command("models", cwd=tmp_path)
    assert result.returncode == 0 and "harukiMIX_zit2603" in result.stdout, result.stderr


def test_help(command, tmp_path):
    result = command("--help", cwd=tmp_path)
    assert result.returncode == 0 and "publish" in result.stdout


def test_demo_is_published_from_the_wheel(command, tmp_path):
    result = command("publish", "demo", "--samples", "2", "--steps", "4", "--pairs", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "hswq-published/demo-hswq/demo-hswq-v2.safetensors").is_file()
    assert "naive FP8" in result.stdout


def test_the_page_runs_as_a_script_from_a_copy_of_its_folder(environment, tmp_path):
    """As in a Space: no HF_HOME, no token, no GPU, nothing but the folder and what is installed."""
    shutil.copytree(ROOT / "spaces_app", tmp_path / "space", ignore=shutil.ignore_patterns("__pycache__"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    kept = {name: os.environ[name] for name in ("PATH", "HF_HUB_OFFLINE", "OMP_NUM_THREADS") if name in os.environ}
    variables = kept | {"HOME": str(tmp_path), "GRADIO_SERVER_PORT": port}
    server = subprocess.Popen([environment / "bin/python", "app.py"], cwd=tmp_path / "space", env=variables)
    try:
        client = _connect(f"http://127.0.0.1:{port}/", server)
        answer = client.predict("a star", steps=1, size=64, api_name="/compare")
    finally:
        server.terminate()
        server.wait()
    assert [variant["label"] for variant in answer["variants"]] == ["original", "naive FP8", "V1", "V2", "INT8"]
    assert (tmp_path / ".cache/hswq-hub").is_dir()


def _connect(url: str, server: subprocess.Popen) -> Client:
    for _ in range(240):
        assert server.poll() is None, "the page stopped"
        try:
            httpx2.get(url)
            return Client(url, verbose=False)
        except httpx2.TransportError:
            time.sleep(0.5)
    raise AssertionError("the page did not come up")
