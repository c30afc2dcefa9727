"""`hf hswq`: the extension's folder, installed and run by the `hf` that is installed here."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from hswq_hub import __version__

EXTENSION = Path(__file__).parents[2] / "extensions/hf-hswq"
PROGRAMS = sysconfig.get_path("scripts")
INSTALL = """
import sys
from pathlib import Path

import httpx2
import huggingface_hub
from huggingface_hub.cli.hf import main

def github(request):
    name = request.url.path.removeprefix("/alice/hf-hswq").removeprefix("/HEAD/")
    if request.url.host == "github.com":
        return httpx2.Response(404 if name else 200)
    file = Path(folder, name)
    return httpx2.Response(200, content=file.read_bytes()) if file.is_file() else httpx2.Response(404)

folder = sys.argv.pop()
huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(github)))
main()
"""


def run(home: Path, *command: object, programs: str = PROGRAMS) -> subprocess.CompletedProcess:
    variables = {
        **os.environ,
        "HOME": str(home),
        "PATH": os.pathsep.join([programs, "/usr/bin", "/bin"]),
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }
    return subprocess.run([str(word) for word in command], env=variables, capture_output=True, text=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A home where `hf extensions install alice/hf-hswq` was run, GitHub being the folder."""
    home = tmp_path_factory.mktemp("home")
    result = run(home, sys.executable, "-c", INSTALL, "extensions", "install", "alice/hf-hswq", EXTENSION)
    assert result.returncode == 0, result.stdout + result.stderr
    return home


def test_it_is_listed_with_what_it_is_for(installed):
    listed = run(installed, Path(PROGRAMS, "hf"), "--help").stdout
    assert "hswq" in listed and "Quantize diffusion checkpoints" in " ".join(listed.split())


def test_every_argument_reaches_hswq_hub(installed):
    assert run(installed, Path(PROGRAMS, "hf"), "hswq", "--version").stdout == f"hswq-hub, version {__version__}\n"
    result = run(installed, Path(PROGRAMS, "hf"), "hswq", "inspect", "a file with spaces.safetensors")
    assert result.returncode == 2 and "a file with spaces.safetensors" in result.stderr


def test_without_hswq_hub_it_says_how_to_get_it(installed):
    result = run(installed, Path(PROGRAMS, "hf"), "hswq", "models", programs="")
    assert result.returncode == 2 and result.stdout == ""
    assert "hswq-hub is not installed" in result.stderr and "pip install hswq-hub" in result.stderr
