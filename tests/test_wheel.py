"""The built wheel, in an environment that knows nothing of this checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory):
    """Runs hswq-hub from the installed wheel. The dependencies are this environment's, by their path alone, so that
    an editable install of the checkout is not seen."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    install = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)

    def run(*arguments, cwd):
        environment = {**os.environ, "HSWQ_HOME": str(cwd / "home")}
        environment.pop("PYTHONPATH", None)
        return subprocess.run(
            [folder / "bin/hswq-hub", *arguments], cwd=cwd, env=environment, capture_output=True, text=True
        )

    return run


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
