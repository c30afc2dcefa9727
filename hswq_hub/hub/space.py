"""Creates a Hugging Face Space of one of the pages: to show a published model with the code that published it, or for
visitors to have theirs published.

A page is a folder with an app.py and a README.md. The installed packages are copied beside it, so the Space needs no
release on PyPI.
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

README, REQUIREMENTS, APP = "README.md", "requirements.txt", "app.py"
MODELS, PACKAGE = "models.txt", "package.txt"
_EXTRAS = ("demo", "oauth")
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


def deploy_space(
    space: str,
    repo: str | None,
    page: Path,
    *,
    package: str | None = None,
    private: bool | None = None,
    client: HfApi | None = None,
) -> str:
    """Create or update `space`, in one commit; returns its address.

    Args:
        space: "owner/name" on the Hub.
        repo: the published model that it shows, "owner/name"; None: the page shows none.
        page: folder with the Space's README.md and app.py, in the package of pages or that package itself.
        package: requirement that the page's jobs install; None: it starts none.
        private: who may see a new Space; None: the account's default.

    Raises:
        SpaceError: it is no name of a Space, or the Hub refuses.
    """
    for name in (space, *([] if repo is None else [repo])):
        if not is_repo_id(name):
            raise SpaceError(f"{address(name)!r} is not spelled like owner/name")
    client = client or api()
    with tempfile.TemporaryDirectory(prefix="hswq-space-") as scratch:
        folder = Path(scratch)
        fill_space(folder, repo, page, package)
        quota = f"the account may not have another Space like {space}: a free one has two, and only on ZeroGPU"
        with explained(f"the Space {space}", lambda _: SpaceError, {Kind.PAYMENT: quota}):
            client.create_repo(space, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
            client.upload_folder(
                repo_id=space,
                repo_type="space",
                folder_path=folder,
                commit_message=f"{f'Show {repo}, with' if repo else 'Update to'} hswq-hub {hswq_hub.__version__}",
                delete_patterns=[MODELS, PACKAGE, *(f"{source.name}/*" for source in _packages(page))],
            )
    return f"{client.endpoint}/spaces/{space}"


def fill_space(folder: Path, repo: str | None, page: Path, package: str | None = None) -> None:
    """Write all files of the Space into `folder`."""
    text = (page / README).read_text(encoding="utf-8")
    (folder / README).write_text(text if repo is None else _readme(text, repo), encoding="utf-8")
    (folder / REQUIREMENTS).write_text("\n".join(_requirements()) + "\n", encoding="utf-8")
    if repo is not None:
        (folder / MODELS).write_text(f"{repo}\n", encoding="utf-8")
    if package is not None:
        (folder / PACKAGE).write_text(f"{package}\n", encoding="utf-8")
    shutil.copyfile(page / APP, folder / APP)
    for source in _packages(page):
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def _packages(page: Path) -> Iterable[Path]:
    """The folders of our packages, with the one that `page` is or is in."""
    pages = page
    while (pages.parent / "__init__.py").is_file():
        pages = pages.parent
    return (Path(hswq_hub.__file__).parent, Path(hswq_runtime.__file__).parent, pages)


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
        extra = re.fullmatch(r"extra == ['\"](\w+)['\"]", marker)
        wanted = not marker or (extra and extra[1] in _EXTRAS)
        if wanted and name not in (*_BUILT_IN, "torch"):
            lines.append(requirement)
    return [_TORCH, *sorted(lines)]
