"""Creates a Hugging Face Space that shows a published model with the code that published it.

The page is given as a folder with an app.py. The installed packages are copied beside it, so the Space needs no release
on PyPI.
"""

import re
import shutil
import tempfile
from collections.abc import Iterable
from importlib.metadata import requires
from pathlib import Path

import yaml
from huggingface_hub import HfApi

import hswq_hub
import hswq_runtime
from hswq_runtime.checkpoints.locate import is_repo_id
from hswq_runtime.errors import HSWQError
from hswq_runtime.hub_errors import Kind, explained
from hswq_runtime.text import address

from . import client as hub_client
from .account import check_account
from .client import api

README, REQUIREMENTS, MODELS, APP = "README.md", "requirements.txt", "models.txt", "app.py"
_EXTRA = "demo"
_BUILT_IN = ("gradio",)
"""Packages that the Space's `sdk_version` installs."""
_TORCH = "torch>=2.8,<2.12"
"""The versions that ZeroGPU supports."""


class SpaceError(HSWQError):
    """The Space cannot be made or filled."""


def check_space(space: str) -> None:
    """Check, before anything costs time, that the account may make or update `space`.

    Raises:
        SpaceError: it is no name of a Space.
        AccountError: no token, or one that may not write there.
        UploadError: the Hub cannot be reached.
    """
    if not is_repo_id(space):
        raise SpaceError(f"{address(space)!r} is not spelled like owner/name")
    with hub_client.explained(space):
        check_account(space.split("/")[0])


def deploy_space(space: str, repo: str, app: Path, *, private: bool | None = None, client: HfApi | None = None) -> str:
    """Create or update `space` to show the published `repo`, in one commit; returns its address.

    Args:
        space, repo: "owner/name" on the Hub.
        app: folder of the page's package, with the Space's README.md and app.py.
        private: who may see a new Space; None: the account's default.

    Raises:
        SpaceError: it is no name of a Space, or the Hub refuses.
    """
    for name in (space, repo):
        if not is_repo_id(name):
            raise SpaceError(f"{address(name)!r} is not spelled like owner/name")
    client = client or api()
    with tempfile.TemporaryDirectory(prefix="hswq-space-") as scratch:
        folder = Path(scratch)
        fill_space(folder, repo, app)
        quota = f"the account may not have another Space like {space}: a free one has two, on ZeroGPU"
        with explained(f"the Space {space}", lambda _: SpaceError, {Kind.PAYMENT: quota}):
            client.create_repo(space, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
            client.upload_folder(
                repo_id=space,
                repo_type="space",
                folder_path=folder,
                commit_message=f"Show {repo}, with hswq-hub {hswq_hub.__version__}",
                delete_patterns=[f"{package.name}/*" for package in _packages(app)],
            )
    return f"{client.endpoint}/spaces/{space}"


def fill_space(folder: Path, repo: str, app: Path) -> None:
    """Write all files of the Space into `folder`."""
    (folder / README).write_text(_readme((app / README).read_text(encoding="utf-8"), repo), encoding="utf-8")
    (folder / REQUIREMENTS).write_text("\n".join(_requirements()) + "\n", encoding="utf-8")
    (folder / MODELS).write_text(f"{repo}\n", encoding="utf-8")
    shutil.copyfile(app / APP, folder / APP)
    for package in _packages(app):
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def _packages(app: Path) -> Iterable[Path]:
    return (Path(hswq_hub.__file__).parent, Path(hswq_runtime.__file__).parent, app)


def _readme(text: str, repo: str) -> str:
    """The page's README with the front matter filled in for `repo`."""
    _, front, body = text.split("---\n", 2)
    fields = yaml.safe_load(front) | {
        "title": f"{repo.split('/')[1]}: what quantization did",
        "models": [repo],
        "preload_from_hub": [repo],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n{body}"


def _requirements() -> list[str]:
    """The requirements of the installed packages, with a version of torch that ZeroGPU supports."""
    lines = []
    for line in requires("hswq-hub") or ():
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        name = re.split(r"[^\w-]", requirement)[0].lower()
        wanted = not marker or re.fullmatch(rf"extra == ['\"]{_EXTRA}['\"]", marker)
        if wanted and name not in (*_BUILT_IN, "torch"):
            lines.append(requirement)
    return [_TORCH, *sorted(lines)]
