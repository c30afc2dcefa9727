"""Hugging Face, through its own client: finds which file of a repo is meant, its licence, and fetches it.

The client manages its own cache (`HF_HOME`) and token (`hf auth login`). Weights go into our cache, by our own
download: the client's does not resume after a crash, and does not compare a file with the SHA-256 that the Hub lists.
A file in the client's cache is used once its SHA-256 was compared.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, hf_hub_url, try_to_load_from_cache
from huggingface_hub.hf_api import ModelInfo, RepoSibling

from hswq_runtime.checkpoints.configuration import CONFIG
from hswq_runtime.checkpoints.locate import MODEL_INDEX, OTHER_PRECISIONS, PUBLISHED_SUFFIXES
from hswq_runtime.hub_errors import Kind, Refusal, explained
from hswq_runtime.text import several, shown

from ..common.layout import LICENCE_FILE
from ..common.text import plain
from .components import check_configurations
from .diffusers_folder import (
    DENOISERS,
    OTHER_COMPONENTS,
    STEM,
    WEIGHTS,
    architecture_of,
    is_shard,
    join,
    joined_header,
    joined_sha256,
    weights_of,
)
from .errors import (
    AccessError,
    AmbiguousReferenceError,
    DownloadError,
    SourceError,
    UnknownReferenceError,
    UnsuitableSourceError,
)
from .http import cache
from .http.download import Explain, cached, download
from .http.header import CheckHeader, stand_in
from .http.ranges import fetch_header
from .http.tokens import client_cache, client_token, hub_token
from .http.web import Web
from .licence import licence_of_card
from .listing import NSFW_TAG, Listing, Provenance, RemoteFile, safe_name
from .prompts.examples import Examples
from .prompts.pages import widget_examples
from .reference import HubRef

Choose = Callable[[str, list[str]], int]
"""(question, answers) -> index of the chosen answer."""

_LICENCES = ("license", "license.md", "license.txt", "licence", "licence.md", "licence.txt")
_SITE = "https://huggingface.co"
"""What cards link to: `HF_ENDPOINT` may be a mirror, or private."""
_LONGEST_LICENCE = 1 << 20
_MALFORMED = (AttributeError, KeyError, RecursionError, TypeError, ValueError)


class Hub:
    """The Hub at `HF_ENDPOINT`. choose: asked when a repo holds several models; None: that is an error."""

    def __init__(self, choose: Choose | None = None):
        self._choose = choose
        self._api = HfApi(library_name="hswq-hub", token=client_token())

    def listing(self, reference: HubRef) -> Listing:
        """What `reference` leads to.

        Raises:
            UnknownReferenceError: there is no such repo, revision or file.
            AmbiguousReferenceError: there are several models, and `choose` is None.
            AccessError: it is gated or private.
            UnsuitableSourceError: no model in it is a safetensors file.
            DownloadError: the Hub cannot be reached.
        """
        info = self._info(reference.repo, reference.revision)
        found = _models(info, reference)
        if not found:
            raise UnsuitableSourceError(f"{shown(reference)} holds no safetensors file of a model; look at its files")
        names = list(found)
        in_repo, tags, card = set(_files(info)), _texts(info.tags), info.card_data
        name = names[0] if len(names) == 1 else self._ask(reference, names)
        repo_name, files = safe_name(reference.repo.split("/")[1]), tuple(found[name])
        stem = safe_name(PurePosixPath(name).stem, repo_name) if len(files) == 1 else repo_name
        licence, text = licence_of_card(card), self._licence_text(info)
        if licence and licence.name and not licence.link and text is not None:
            licence = replace(licence, link=LICENCE_FILE)
        objections = (f"its licence {licence} forbids derivatives",) if licence and licence.forbids_derivatives else ()
        return Listing(
            name=stem,
            reference=str(HubRef(reference.repo, name, reference.revision)),
            version=str(info.sha),
            origin=f"{reference.repo} on Hugging Face",
            files=files,
            licence=licence,
            licence_text=text,
            objections=objections,
            base=reference.repo if MODEL_INDEX in in_repo else None,
            families=_families(info),
            examples=Examples() if NSFW_TAG in tags else widget_examples(getattr(card, "widget", None)),
            provenance=Provenance(
                url=f"{_SITE}/{reference.repo}",
                title=reference.repo,
                version=info.sha,
                creator=reference.repo.split("/")[0],
                creator_url=f"{_SITE}/{reference.repo.split('/')[0]}",
                base_model=plain(getattr(card, "base_model", None)),
                repo=reference.repo,
                nsfw=NSFW_TAG in tags,
                gated=plain(info.gated),
                private=info.private is True,
            ),
        )

    def components_size(self, repo: str) -> int:
        """Bytes of the components that a pipeline takes from a base repo, whether or not they are here; no denoiser.

        Raises:
            UnsuitableSourceError: a configuration in it is larger than any is.
            SourceError: see :meth:`listing`.
        """
        sizes = {name: _size(file) or 0 for name, file in _files(self._info(repo)).items()}
        check_configurations(repo, sizes)
        return sum(size for name, size in sizes.items() if _is_component(name))

    def _info(self, repo: str, revision: str | None = None) -> ModelInfo:
        """What the Hub says of a repo, and of each of its files.

        Raises:
            DownloadError: what it says is not of a repo.
            SourceError: see :meth:`listing`.
        """
        try:
            with _explained(repo):
                info = self._api.model_info(repo, revision=revision, files_metadata=True)
        except _MALFORMED as error:  # the client takes an answer as it comes
            raise DownloadError(_no_repo(repo)) from error
        if not isinstance(info.id, str) or not isinstance(info.sha, str | None):
            raise DownloadError(_no_repo(repo))
        return info

    def fetch(self, listing: Listing, check_header: CheckHeader, *, verify: bool = False) -> tuple[Path, str | None]:
        """Path of one file with the whole model, and its SHA-256. Downloads are compared with the listed digests.

        Raises:
            DownloadError: a file does not arrive, or is not what is listed.
            AccessError: it is gated or private.
            HSWQError: `check_header` refuses a single file.
        """
        repo, revision = _place(listing)
        if len(listing.files) == 1:
            return self._fetch(repo, revision, listing.files[0], check_header, verify)
        config, *weights = listing.files
        config_path = self._config(repo, revision, config)
        paths = [self._fetch(repo, revision, file, _any_header, verify)[0] for file in weights]
        return join(config_path, paths, listing.name, verify=verify)

    def known_sha256(self, listing: Listing) -> str | None:
        """SHA-256 of the file that :meth:`fetch` gives: the listed one, or that of shards that are here and were joined
        before. No weight is read.
        """
        if len(listing.files) == 1:
            return listing.files[0].sha256
        if (here := self.weights_here(listing)) is None:
            return None
        return joined_sha256(self._config(*_place(listing), listing.files[0]), here)

    def weights_here(self, listing: Listing) -> list[Path] | None:
        """Paths of all listed weights, in the client's cache or ours; None if one of them would have to be fetched.

        No file is read in full: one in the client's cache that was never hashed is judged by its size.
        """
        repo, revision = _place(listing)
        weights = listing.files if len(listing.files) == 1 else listing.files[1:]
        found = [path for file in weights if (path := self._here(repo, revision, file)) is not None]
        return found if len(found) == len(weights) else None

    def _here(self, repo: str, revision: str, file: RemoteFile) -> Path | None:
        known = try_to_load_from_cache(repo, str(file.id), client_cache(), revision)
        if file.sha256 is not None and isinstance(known, str):
            path = Path(known)
            digest = cache.known_sha256(path)
            if digest == file.sha256 or (digest is None and path.stat().st_size == file.size):
                return path
        return cached(self._web(), self._address(repo, revision, file), file)

    def header(self, listing: Listing) -> bytes:
        """Fetch the header of the whole model, that of shards merged; no tensor is fetched.

        Raises:
            SourceError: see :func:`hswq_hub.sources.http.ranges.fetch_header`.
            FormatError: the shards do not belong together.
        """
        repo, revision = _place(listing)
        web, explain = self._web(), _explain(repo)

        def of(file: RemoteFile) -> bytes:
            return fetch_header(web, self._address(repo, revision, file), file, explain)

        if len(listing.files) == 1:
            return of(listing.files[0])
        config, *weights = listing.files
        config_path = self._config(repo, revision, config)
        with ExitStack() as stack:
            return joined_header(config_path, [stack.enter_context(stand_in(of(f), f.name)) for f in weights])

    def _config(self, repo: str, revision: str, file: RemoteFile) -> Path:
        """The denoiser's configuration, of a known architecture."""
        check_configurations(repo, {str(file.id): file.size or 0})
        with _explained(repo):
            path = Path(self._api.hf_hub_download(repo, str(file.id), revision=revision, cache_dir=client_cache()))
        architecture_of(path)
        return path

    def _ask(self, reference: HubRef, names: list[str]) -> str:
        if self._choose is None:
            raise AmbiguousReferenceError(
                f"{shown(reference)} holds {len(names)} models: {several(names, length=40)}; name one of them, as in "
                f"{shown(HubRef(reference.repo, names[0], reference.revision))}"
            )
        return names[self._choose(f"{reference} holds several models", names)]

    def _fetch(
        self, repo: str, revision: str, file: RemoteFile, check_header: CheckHeader, verify: bool
    ) -> tuple[Path, str]:
        """Path and SHA-256 of a weight file, from the client's cache, ours, or the Hub."""
        if file.sha256 and (found := self._of_client(repo, revision, file, verify)):
            return found, file.sha256
        url = self._address(repo, revision, file)
        return download(self._web(), url, file, _explain(repo), check_header, verify=verify)

    def _web(self) -> Web:
        return Web(self._api.endpoint, hub_token(asked=False))

    def _address(self, repo: str, revision: str, file: RemoteFile) -> str:
        return hf_hub_url(repo, str(file.id), revision=revision, endpoint=self._api.endpoint)

    def _of_client(self, repo: str, revision: str, file: RemoteFile, verify: bool) -> Path | None:
        """The file in the client's cache, if its SHA-256 is the listed one."""
        known = try_to_load_from_cache(repo, str(file.id), client_cache(), revision)
        if file.sha256 is None or not isinstance(known, str):
            return None
        path = Path(known)
        return path if cache.sha256_of(path, verify=verify) == file.sha256 else None

    def _licence_text(self, info: ModelInfo) -> str | None:
        """The licence text in the repo, from the file that the card links to or one named like a licence; else None."""
        files = _files(info)
        linked = str(getattr(info.card_data, "license_link", None) or "")
        linked = re.sub(rf"^{_SITE}/{re.escape(info.id)}/(blob|resolve|raw)/[^/]+/", "", linked)
        by_name = {name.casefold(): name for name in files}
        names = (linked.removeprefix("./"), *(by_name.get(name) for name in _LICENCES))
        shipped = next((files[name] for name in names if name in files and not name.endswith(WEIGHTS)), None)
        if shipped is None or (_size(shipped) or 0) > _LONGEST_LICENCE:
            return None
        with _explained(info.id):
            path = self._api.hf_hub_download(info.id, shipped.rfilename, revision=info.sha, cache_dir=client_cache())
        return Path(path).read_text(encoding="utf-8", errors="replace")


def _place(listing: Listing) -> tuple[str, str]:
    """Repo and commit of a listing that :class:`Hub` made."""
    return str(listing.provenance.repo), str(listing.version)


def _families(info: ModelInfo) -> tuple[str, ...]:
    """Base models, tags and name of a repo, each without the owner that is no part of the name."""
    bases = getattr(info.card_data, "base_model", None)
    named = [base for base in (bases if isinstance(bases, list) else [bases]) if isinstance(base, str)]
    return tuple(name.rpartition("/")[2] for name in (*named, *_texts(info.tags), info.id))


def _texts(value: object) -> list[str]:
    """The texts in a list from the Hub; whatever else is in it is left out."""
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _size(file: RepoSibling) -> int | None:
    """Bytes of a file, None if that is not listed, or is more than any file can have."""
    return file.size if isinstance(file.size, int) and 0 <= file.size < 1 << 63 else None


def _no_repo(repo: str) -> str:
    return f"the Hub answers with something that is no model for {shown(repo)}; try again later"


def _files(info: ModelInfo) -> dict[str, Any]:
    """The Hub's facts on each file, by path; paths that lead out of the repo are left out."""
    named = (file for file in info.siblings or () if isinstance(file.rfilename, str))
    return {file.rfilename: file for file in named if ".." not in file.rfilename.split("/")}


def _is_component(path: str) -> bool:
    folder, _, name = path.partition("/")
    if path == MODEL_INDEX:
        return True
    if folder in DENOISERS or not name.endswith(PUBLISHED_SUFFIXES):
        return False
    return not any(fnmatch(name, pattern) for pattern in OTHER_PRECISIONS)


def _models(info: ModelInfo, reference: HubRef) -> dict[str, list[RemoteFile]]:
    """The files of each model in a repo, or in the part of it that `reference` names.

    The keys are what a reference would name: the path of a single file, the folder of a diffusers model, or the first
    weight file of one at the root.
    """
    files = _files(info)
    wanted = reference.path
    if wanted is not None and wanted.endswith(WEIGHTS):
        if wanted not in files:
            near = difflib.get_close_matches(wanted, [name for name in files if name.endswith(WEIGHTS)], n=1)
            hint = f"did you mean {shown(near[0])}?" if near else "look at its files"
            raise UnknownReferenceError(f"{shown(reference.repo)} has no file {shown(wanted)}; {hint}")
        folder, _, name = wanted.rpartition("/")
        if name.startswith(STEM) and (model := _diffusers(files, folder, name)):
            return {folder if folder and model == _diffusers(files, folder) else wanted: model}
        return {wanted: [_remote(files[wanted])]}
    found: dict[str, list[RemoteFile]] = {}
    for path in sorted(files):
        folder, _, name = path.rpartition("/")
        if wanted is not None and not path.startswith(f"{wanted}/"):
            continue
        if any(part.startswith(OTHER_COMPONENTS) for part in path.split("/")[:-1]):
            continue
        is_denoiser = folder == wanted or folder.split("/")[-1] in DENOISERS or (not folder and name.startswith(STEM))
        if is_denoiser and _at(folder, CONFIG) in files:
            if model := _diffusers(files, folder):
                found[folder or str(model[1].id)] = model
        elif name.endswith(WEIGHTS) and not is_shard(name):
            found[path] = [_remote(files[path])]
    return found


def _diffusers(files: Mapping[str, Any], folder: str, named: str | None = None) -> list[RemoteFile] | None:
    """config.json of `folder` ("": the root) and the weights beside it, None if they are not there.

    named: the weight file, or one of its shards, that is meant.
    """
    inside = [path.removeprefix(_at(folder, "")) for path in files if path.startswith(_at(folder, ""))]
    weights = [named] if named and not is_shard(named) else weights_of(inside)
    if CONFIG not in inside or not weights or named not in (None, *weights):
        return None
    return [_remote(files[_at(folder, name)]) for name in (CONFIG, *weights)]


def _at(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _remote(sibling: RepoSibling) -> RemoteFile:
    digest = sibling.lfs.sha256 if sibling.lfs else None
    known = isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest)
    return RemoteFile(safe_name(sibling.rfilename), _size(sibling), digest if known else None, sibling.rfilename)


def _any_header(path: Path) -> None:
    """Accept any header: a shard alone does not show its architecture."""


def _explain(repo: str) -> Explain:
    """The exception for an answer that is no file."""
    return lambda status, _body, at_home: _refusal(repo, status if at_home else 0)


def _refusal(repo: str, status: int) -> SourceError:
    """The exception for an answer that is no file; status 0: it came from the storage."""
    if status in (401, 403):
        kind = Kind.GATED
    elif status in (404, 410):
        kind = Kind.NO_FILE
    elif status:
        kind = Kind.SERVER
    else:
        return DownloadError(f"the Hub's storage answers with something that is no model for {repo}; try again later")
    return _becomes(kind)(Refusal(kind, status).sentence(repo))


def _becomes(kind: Kind) -> type[SourceError]:
    if kind in (Kind.GATED, Kind.DISABLED, Kind.TOKEN, Kind.FORBIDDEN):
        return AccessError
    if kind in (Kind.NO_REPO, Kind.NO_REVISION, Kind.NO_FILE, Kind.NOT_FOUND, Kind.BAD_NAME):
        return UnknownReferenceError
    return DownloadError


def _explained(repo: str) -> AbstractContextManager[None]:
    """Turn what the Hub's client raises into a SourceError about `repo`."""
    return explained(repo, _becomes)
