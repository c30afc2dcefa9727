"""Finds the one checkpoint in a folder or Hub repo, and fetches a base's other components.

Checkpoints are recognised by their headers, never by their names. On the Hub only headers are fetched until one file is
chosen.
"""

import os
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from ..errors import FormatError, UnknownArchitectureError
from ..formats import Format, format_of
from ..hub_errors import Kind, explained
from ..text import several, shown
from .checkpoint import Checkpoint
from .configuration import CONFIG
from .header import recognise_header

MODEL_INDEX = "model_index.json"
PUBLISHED_SUFFIXES = (".safetensors", ".json", ".txt", ".jinja", ".model")
"""Suffixes of the weights, configurations and vocabularies of a diffusers folder; no pickles, no code."""

OTHER_PRECISIONS = ["*.fp16.*", "*.bf16.*", "*.non_ema.*"]
"""Patterns of second copies of the weights in another precision, which are not fetched."""

_REPO_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_HUB_HOST = "huggingface.co"
_URL = re.compile(
    r"https?://(?P<host>[^/]+)/(?P<repo>[^/]+/[^/]+)/(?:blob|resolve)/(?P<revision>[^/]+)/(?P<file>[^?#]+)(?:[?#].*)?"
)


@dataclass(frozen=True)
class HubOptions:
    """How to reach the Hub: the arguments of the same names in huggingface_hub."""

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False

    def for_another_repo(self) -> "HubOptions":
        """The options for another repo: without the revision, which belongs to this one."""
        return HubOptions(None, self.token, self.cache_dir, self.local_files_only)


@dataclass(frozen=True)
class Located:
    """A checkpoint or a saved pipeline on this disk.

    Attributes:
        file: the checkpoint; None if the reference is a saved diffusers pipeline.
        folder: that pipeline, or the folder that holds the file.
        repo: the Hub repo that it was fetched from; None if the reference was local.
        hub: how that repo was reached.
    """

    file: Path | None
    folder: Path
    repo: str | None = None
    hub: HubOptions = HubOptions()


def is_repo_id(text: str) -> bool:
    """Whether `text` has the form "owner/name"."""
    return _REPO_ID.fullmatch(text) is not None


def locate(reference: str | Path, variant: str | None, weight_name: str | None, hub: HubOptions) -> Located:
    """The checkpoint or saved pipeline that `reference` names, fetched from the Hub if it is not local.

    Args:
        reference: a file, a folder, "owner/repo", "owner/repo/path/in/it.safetensors", or such a file's URL.
        variant: "v1" or "v2", which of several files. None: V2 if there is one, since it is closer to the original.
        weight_name: which of several files, by name (a path within the folder or repo).

    Raises:
        FormatError: there is no such folder, repo, file or variant, or several files fit.
    """
    if variant is not None and variant not in {format.value for format in Format}:
        raise FormatError(
            f"there is no variant {shown(variant)!r}; choose {' or '.join(format.value for format in Format)}"
        )
    path = Path(reference)
    if os.path.isfile(path):  # Path.is_file raises for names that no file can have
        return Located(path, path.parent)
    if os.path.isdir(path):
        return Located(_in_folder(path, variant, weight_name), path)
    return _on_hub(str(reference), variant, weight_name, hub)


def _in_folder(folder: Path, variant: str | None, weight_name: str | None) -> Path | None:
    names = [file.name for file in sorted(folder.glob("*.safetensors"))]
    if weight_name is None and not names and (folder / MODEL_INDEX).is_file():
        return None

    def read_format(name: str) -> Format | None:
        return Checkpoint(folder / name).format

    name = weight_name or _choose(names, variant, read_format, where=str(folder))
    if not (folder / name).is_file():
        raise FormatError(f"{folder} has no file {shown(name)}; it holds {several(names) or 'no safetensors file'}")
    return folder / name


def _on_hub(reference: str, variant: str | None, weight_name: str | None, hub: HubOptions) -> Located:
    from huggingface_hub import HfApi
    from huggingface_hub.constants import ENDPOINT

    if match := _URL.fullmatch(reference):
        if match["host"] not in (_HUB_HOST, urlsplit(ENDPOINT).netloc):
            raise FormatError(f"{shown(reference)} is not on the Hub; download it and give its path")
        hub = HubOptions(unquote(match["revision"]), hub.token, hub.cache_dir, hub.local_files_only)
        reference = f"{match['repo']}/{unquote(match['file'])}"
    parts = PurePosixPath(reference).parts
    repo = "/".join(parts[:2])
    if not is_repo_id(repo) or ".." in parts:
        raise FormatError(f"{shown(reference)} is neither a file nor a folder here, nor a Hub repo")
    weight_name = weight_name or "/".join(parts[2:]) or None
    if hub.local_files_only:
        folder = _download(repo, [MODEL_INDEX, weight_name or ""], hub)
        return Located(_in_folder(folder, variant, weight_name), folder, repo, hub)
    names = _list_files(repo, hub)
    candidates = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if weight_name is None and not candidates and MODEL_INDEX in names:
        return Located(None, _download(repo, [f"**{suffix}" for suffix in PUBLISHED_SUFFIXES], hub), repo, hub)

    def read_format(name: str) -> Format | None:
        with _explained(repo, hub):
            header = HfApi().parse_safetensors_file_metadata(repo, name, revision=hub.revision, token=hub.token)
        recognise_header(header.tensors, header.metadata)
        return format_of(header.metadata)

    name = weight_name or _choose(candidates, variant, read_format, where=repo)
    if name not in names:
        raise FormatError(
            f"{shown(repo)} has no file {shown(name)}; it holds {several(candidates) or 'no safetensors file'}"
        )
    folder = _download(repo, [name], hub)
    return Located(folder / name, folder, repo, hub)


def _choose(names: list[str], variant: str | None, read_format: Callable[[str], Format | None], where: str) -> str:
    """The one checkpoint among `names` of this variant; None: V2 if there is one. Only headers are read."""
    if len(names) == 1:
        return names[0]
    found: dict[Format | None, list[str]] = {}
    for name in names:
        try:
            found.setdefault(read_format(name), []).append(name)
        except UnknownArchitectureError:  # another kind of file, such as a LoRA
            continue
    if variant:
        wanted = found.get(Format(variant), [])
    else:
        wanted = found.get(Format.V2) or [name for names_of_format in found.values() for name in names_of_format]
    if len(wanted) == 1:
        return wanted[0]
    wish = f" of variant {variant}" if variant else ""
    held = several(names) or "no safetensors file"
    raise FormatError(f"{shown(where)} does not hold just one model{wish}: it holds {held}; choose with weight_name")


def fetch_components(repo: str, names: Iterable[str], hub: HubOptions, without_weights: Iterable[str] = ()) -> Path:
    """Fetch the index of a Hub repo and some of its components; returns their folder on this disk.

    Args:
        names: components to fetch.
        without_weights: components of which only the configuration is fetched.

    Raises:
        FormatError: the repo cannot be reached.
    """
    patterns = [f"{name}/*{suffix}" for name in sorted(names) for suffix in PUBLISHED_SUFFIXES]
    patterns += [f"{name}/{CONFIG}" for name in sorted(without_weights)]
    return _download(repo, [MODEL_INDEX, *patterns], hub)


def _download(repo: str, patterns: list[str], hub: HubOptions) -> Path:
    """The folder of what fits `patterns`. If the Hub cannot be reached, what is in the cache is enough."""
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetch(hub: HubOptions) -> Path:
        return Path(snapshot_download(repo, allow_patterns=patterns, ignore_patterns=OTHER_PRECISIONS, **asdict(hub)))

    with _explained(repo, hub):
        try:
            return fetch(hub)
        except httpx2.TransportError:  # the client itself looks there only if no connection was made at all
            with suppress(LocalEntryNotFoundError):
                return fetch(replace(hub, local_files_only=True))
            raise


def _list_files(repo: str, hub: HubOptions) -> set[str]:
    from huggingface_hub import HfApi

    with _explained(repo, hub):
        return set(HfApi().list_repo_files(repo, revision=hub.revision, token=hub.token))


def _explained(repo: str, hub: HubOptions) -> AbstractContextManager[None]:
    """Turn what the Hub's client raises into a FormatError about `repo`."""
    cached = f"the Hub repo {repo} is not in the cache; load it once without local_files_only"
    return explained(repo, lambda _: FormatError, {Kind.NOT_CACHED: cached} if hub.local_files_only else None)
