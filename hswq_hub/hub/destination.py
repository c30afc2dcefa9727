"""The Hub repo that an upload goes to, checked before anything costs time: may we write, and is it free or ours."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo

from hswq_runtime.errors import FormatError
from hswq_runtime.hub_errors import hub_site as site
from hswq_runtime.text import address, shown

from ..common.layout import METRICS, RECORD
from ..common.targets import TargetError
from .account import check_account
from .client import AccountError, UploadError, VerificationError, api, explained, patiently
from .history import read_json
from .settings import UploadSettings

PULL = "refs/pr/"
"""Prefix of a pull request's branch; its number follows."""
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COLLECTION = re.compile(r"(?:https?://[^/]+/collections/)?(?P<slug>[\w.-]+/[\w.-]+)")
_MADE_BY_THE_HUB = {".gitattributes"}


@dataclass(frozen=True)
class Destination:
    """The state of the repo that an upload goes to.

    account: the name behind the token. head: the commit to build on; None: the repo does not exist yet. record,
    metrics: hswq.json and metrics.json of our last version there; None: nothing of ours.
    """

    settings: UploadSettings
    account: str
    head: str | None = None
    files: Mapping[str, str | None] = field(default_factory=dict)
    """SHA-256 of each file in the repo, by path; None for a small one, which is not stored as LFS."""
    record: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    private: bool = False
    gated: bool = False

    @property
    def repo(self) -> str:
        """ "owner/name"."""
        return self.settings.repo

    @property
    def summary(self) -> str:
        """One line for people."""
        if self.head is None:
            return f"{site()}/{self.repo}, a new repo, as {self.account}"
        kind = "made by hswq-hub, is updated" if self.record else "is there already"
        return f"{site()}/{self.repo}, {kind}, as {self.account}"

    def check_files(self) -> int:
        """Compare the SHA-256 of each quantized file that the repo's record lists with the Hub's; their number.

        Raises:
            VerificationError: there is no record, a file is missing, or one is another.
        """
        listed = (self.record or {}).get("files")
        files = [file for file in listed.values() if isinstance(file, dict)] if isinstance(listed, dict) else []
        for file in files:
            made, there = file.get("sha256"), self.files.get(str(file.get("file")))
            if made is None or made != there:
                raise VerificationError(f"{shown(file.get('file'))} in {self.repo} is not the file that was made")
        if not files:
            raise VerificationError(f"{self.repo} holds nothing that hswq-hub made")
        return len(files)

    def check_free(self) -> None:
        """Check that the repo is free or ours, or that `settings.force` is set.

        Raises:
            TargetError: it holds what we did not make.
            UploadError: a pull request to a repo that is not there.
        """
        if self.head is None and self.settings.create_pr:
            raise UploadError(f"there is no repo {self.repo} that a pull request could be for; leave out --pr")
        foreign = self.files.keys() - _MADE_BY_THE_HUB
        if foreign and self.record is None and not self.settings.force:
            raise TargetError(
                f"{self.repo} holds something that hswq-hub did not make ({min(foreign)}); choose another --repo, or "
                "say --force to add to it"
            )


def check_upload(settings: UploadSettings) -> Destination:
    """Check that the token may upload there and that the repo is free or ours. Takes seconds and changes nothing.

    Raises:
        AccountError: no token, or one that may not write there.
        TargetError: the repo holds what we did not make, and `force` was not said.
        UploadError: an impossible name or combination, or the Hub cannot be reached.
    """
    repo = settings.repo
    if not _REPO_ID.fullmatch(repo):
        raise UploadError(f"{address(repo)} is no name of a Hub repo: owner/name is, as in --repo alice/my-model-hswq")
    if settings.create_pr and settings.revision:
        raise UploadError("a pull request is always to main; leave out --revision or --pr")
    with explained(repo):
        account = check_account(repo.split("/")[0], proposing=settings.create_pr)
        if settings.collection is not None:
            _check_collection(settings.collection)
        found = find(settings, account)
    found.check_free()
    return found


def find(settings: UploadSettings, account: str) -> Destination:
    """The current state of the destination. The client's errors come through: use it in `client.explained`."""
    client, repo = api(), settings.repo
    try:
        info = patiently(client.model_info, repo, files_metadata=True)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return Destination(settings, account)
    if not settings.create_pr:
        try:
            patiently(client.auth_check, repo, write=True)
        except HfHubHTTPError as error:
            if error.response.status_code != 403:
                raise
            raise AccountError(
                f"{account} may not write to {repo}; choose another --repo, or offer it with --pr"
            ) from error
    head = info
    if settings.revision is not None:
        refs = patiently(client.list_repo_refs, repo)
        if settings.revision in {tag.name for tag in refs.tags}:
            raise UploadError(f"{settings.revision} is a tag of {repo}, and tags stay where they are; name a branch")
        if settings.revision in {branch.name for branch in refs.branches} or settings.revision.startswith(PULL):
            head = patiently(client.model_info, repo, revision=settings.revision, files_metadata=True)
    record = _published(head, RECORD)
    return Destination(
        settings,
        account,
        head.sha,
        {file.rfilename: file.lfs.sha256 if file.lfs else None for file in head.siblings or ()},
        record,
        _published(head, METRICS) if record else None,
        bool(info.private),
        bool(info.gated),
    )


def _published(info: ModelInfo, name: str) -> dict[str, Any] | None:
    """One of our JSON files in a repo; None if it is missing or not ours."""
    if name not in {file.rfilename for file in info.siblings or ()}:
        return None
    with tempfile.TemporaryDirectory() as cache:  # of a repo that others may write to, nothing stays here
        try:
            path = patiently(api().hf_hub_download, info.id, name, revision=info.sha, cache_dir=cache)
            found = read_json(Path(path))
        except (FormatError, EntryNotFoundError):
            return None
    return found if name != RECORD or str(found.get("tool", "")).startswith("hswq-hub") else None


def _check_collection(wanted: str) -> None:
    try:
        patiently(api().get_collection, collection_slug(wanted))
    except HfHubHTTPError as error:
        if error.response.status_code != 404:
            raise
        raise UploadError(
            f"there is no collection {address(wanted)}; its name is the end of its address, owner/title-id"
        ) from error


def collection_slug(wanted: str) -> str:
    """The slug "owner/title-id" of a collection, given as such or by its address."""
    match = _COLLECTION.fullmatch(wanted)
    if match is None:
        raise UploadError(f"{address(wanted)} is no name of a collection; it is the end of its address, owner/title-id")
    return match["slug"]
