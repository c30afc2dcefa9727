"""Checks the size of files on the Hub before they are fetched for a visitor."""

from collections.abc import Sequence

from huggingface_hub import HfApi

from hswq_runtime.hub_errors import explained

from ..request import RequestError


def check_size(repo: str, names: Sequence[str], most: int) -> None:
    """Check that the files `names` are public, and have at most `most` bytes together. No token is sent.

    Raises:
        RequestError: they are not.
    """
    with explained(repo, lambda _: RequestError):
        found = HfApi(token=False).get_paths_info(repo, list(names))
    missing = set(names) - {file.path for file in found}
    if missing:
        raise RequestError(f"{repo} has no file {sorted(missing)[0]}")
    size = sum(file.size for file in found)
    if size > most:
        raise RequestError(f"{repo} has {size / 1e9:.1f} GB of what would be fetched; {most / 1e9:.1f} GB are the most")
