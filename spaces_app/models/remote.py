"""Checks the size of files on the Hub before they are fetched for a visitor. No token is sent."""

from collections.abc import Sequence

from huggingface_hub import HfApi

from hswq_runtime.hub_errors import explained

from ..request import RequestError


def check_size(repo: str, names: Sequence[str], most: int) -> None:
    """Check that the files `names` are public, and have at most `most` bytes together.

    Raises:
        RequestError: they are not.
    """
    with explained(repo, lambda _: RequestError):
        found = HfApi(token=False).get_paths_info(repo, list(names))
    missing = set(names) - {file.path for file in found}
    if missing:
        raise RequestError(f"{repo} has no file {sorted(missing)[0]}")
    _check(repo, sum(file.size for file in found), most)


def check_components_size(repo: str, most: int) -> None:
    """Check that all that `repo` has in folders, where a pipeline's components are, has at most `most` bytes.

    Raises:
        RequestError: it has more, or the repo is not public.
    """
    with explained(repo, lambda _: RequestError):
        found = HfApi(token=False).model_info(repo, files_metadata=True).siblings or []
    _check(repo, sum(file.size or 0 for file in found if "/" in file.rfilename), most)


def _check(repo: str, size: int, most: int) -> None:
    if size > most:
        raise RequestError(f"{repo} has {size / 1e9:.1f} GB of what would be fetched; {most / 1e9:.1f} GB are the most")
