"""Uploads a finished folder to a Hub repo in one commit and verifies it; a run that was stopped is simply run again.

    account, repo ─ history ─ commit ─ checksums ─ loaded back ─ tag ─ collection

Files that are on the Hub already are not sent again. Only verified commits are tagged.
"""

import hashlib
import json
from dataclasses import dataclass
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import constants
from huggingface_hub.hf_api import RepoFile

from hswq_runtime.architectures import ARCHITECTURES
from hswq_runtime.errors import FormatError, HSWQError
from hswq_runtime.hub_errors import hub_site as site
from hswq_runtime.pipeline import HSWQPipeline

from ..cards.card import write_card
from ..common.files import file_sha256, write_atomically
from ..common.layout import CONTENTS, EARLIER, METRICS, RECORD
from ..common.targets import check_room
from .client import TRIES, UploadError, VerificationError, api, explained, is_conflict, patiently
from .destination import PULL, Destination, check_upload, collection_slug, find
from .history import description, earlier_versions, mark_lasting, read_json, tag_of, title, version_tag
from .settings import UploadSettings

_TITLE_LENGTH = 190


@dataclass(frozen=True)
class Uploaded:
    """A verified upload.

    verified: number of files whose checksums were compared. loaded: formats that were loaded back. tag: None for a pull
    request or a commit on another branch than main.
    """

    url: str
    commit: str
    tag: str | None
    verified: int
    loaded: tuple[str, ...]


def upload(folder: Path, settings: UploadSettings) -> Uploaded:
    """Upload a folder that `publish` made, and verify what arrived.

    The record and the card in `folder` are completed with the name of the repo and the earlier versions that are on
    the Hub, so that the folder stays equal to the repo.

    Raises:
        FormatError: it is no such folder, or a file of it is missing.
        VerificationError: what the Hub holds afterwards is something else, or cannot be loaded.
        AccountError, TargetError, UploadError: see :func:`hswq_hub.hub.destination.check_upload`.
    """
    list_files(folder)
    return upload_to(folder, check_upload(settings))


def upload_to(folder: Path, destination: Destination) -> Uploaded:
    """:func:`upload` for a destination that was checked before, be it hours ago: the repo is looked at again.

    Raises:
        FormatError, VerificationError, AccountError, TargetError, UploadError: see there.
    """
    local, settings = list_files(folder), destination.settings
    if settings.verify:
        check_room(Path(constants.HF_HUB_CACHE), sum((folder / name).stat().st_size for name in local))
    with explained(settings.repo):
        destination = find(settings, destination.account)
        destination.check_free()
        _open(destination, settings, read_json(folder / RECORD)["source"])
        commit, revision = _commit(folder, local, settings, destination.account)
        _check_listing(folder, local, settings.repo, commit)
        loaded = _load_back(folder, settings.repo, commit) if settings.verify else ()
        tag = None
        if revision == constants.DEFAULT_REVISION:
            tag = version_tag(read_json(folder / RECORD), read_json(folder / METRICS))
            _tag(settings.repo, tag, commit)
        if settings.collection:
            slug = collection_slug(settings.collection)
            patiently(api().add_collection_item, slug, settings.repo, "model", exists_ok=True)
    where = f"{site()}/{settings.repo}"
    if revision != constants.DEFAULT_REVISION:
        pull = revision.removeprefix(PULL)
        where += f"/discussions/{pull}" if settings.create_pr else f"/tree/{revision}"
    return Uploaded(where, commit, tag, len(local), loaded)


def list_files(folder: Path) -> list[str]:
    """The files of `folder` that are uploaded: the record and those that it lists, nothing else.

    Raises:
        FormatError: there is no record, a file is missing, or one is not within the folder.
    """
    record = read_json(folder / RECORD)
    try:
        names = sorted({RECORD, *record[CONTENTS]})
        complete = all(record[key] for key in ("tool", "recipe", "source", "files")) and METRICS in names
    except (KeyError, TypeError):
        complete = False
    if not complete:
        raise FormatError(f"{folder} is no folder that `hswq-hub publish` made; make one with it first")
    for name in names:
        path = folder / name
        inside = path.resolve().is_relative_to(folder.resolve())
        if not inside or not path.is_file() or PurePosixPath(name).as_posix() != name:
            raise FormatError(f"{folder} lacks {name}, which its {RECORD} lists; make it anew with `hswq-hub publish`")
    return names


def _open(destination: Destination, settings: UploadSettings, source: dict[str, Any]) -> None:
    """Create the repo and set who may see it, before it holds a file: as asked for, else as the source's repo."""
    client, repo = api(), settings.repo
    private = bool(source.get("private")) if settings.private is None else settings.private
    gated = bool(source.get("gated")) and not private if settings.gated is None else settings.gated
    if settings.create_pr:
        if (private and not destination.private) or (gated and not (destination.gated or destination.private)):
            raise UploadError(f"a pull request would show to all on {repo} what its source does not; leave out --pr")
        return
    now_private, now_gated = destination.private, destination.gated
    if destination.head is None:
        patiently(client.create_repo, repo, private=private or settings.private, exist_ok=True)
        info = patiently(client.model_info, repo)
        now_private, now_gated = bool(info.private), bool(info.gated)
    if gated != now_gated and (gated or settings.gated is False):
        patiently(client.update_repo_settings, repo, gated=_gate(source) if gated else False)
    if private != now_private and (private or settings.private is False):
        patiently(client.update_repo_settings, repo, private=private)
    if settings.revision is not None and not settings.revision.startswith(PULL):
        patiently(client.create_branch, repo, branch=settings.revision, exist_ok=True)


def _gate(source: dict[str, Any]) -> str:
    return "manual" if source.get("gated") == "manual" else "auto"


def _commit(folder: Path, local: list[str], settings: UploadSettings, account: str) -> tuple[str, str]:
    """Commit the folder's files; returns the commit and its revision.

    Its parent is the commit that the history was read from. If somebody else commits in between, both are done again.
    """
    for attempt in range(1, TRIES + 1):
        destination = find(settings, account)
        record = _complete(folder, settings.repo, destination)
        metrics = read_json(folder / METRICS)
        revision = settings.revision or constants.DEFAULT_REVISION
        published = tag_of(destination.record, destination.metrics)
        if settings.create_pr:
            revision = patiently(_pull_request, settings.repo, account, record, metrics)
        elif revision == constants.DEFAULT_REVISION and published and published != version_tag(record, metrics):
            _tag(settings.repo, published, str(destination.head))  # as a run did that did not die before
        head = destination.head
        if settings.create_pr:
            head = patiently(api().model_info, settings.repo, revision=revision).sha
        try:
            made = patiently(
                api().upload_folder,
                repo_id=settings.repo,
                folder_path=folder,
                commit_message=_title(record, metrics),
                commit_description=description(record, metrics),
                revision=revision,
                parent_commit=head,
                allow_patterns=[escape(name) for name in local],
                delete_patterns=[escape(name) for name in _outdated(destination, record, set(local))],
            )
            return made.oid, revision
        except Exception as error:
            if not is_conflict(error) or attempt == TRIES:
                raise
    raise AssertionError("the last attempt returns or raises")


def _complete(folder: Path, repo: str, destination: Destination) -> dict[str, Any]:
    """Add the repo's name and its earlier versions to the folder's record, and write the card anew."""
    record = read_json(folder / RECORD)
    earlier = earlier_versions(record, read_json(folder / METRICS), destination.record, destination.metrics)
    mark_lasting(record, earlier, destination.files)
    completed = {**record, "repo": repo, "quantized_by": destination.account, EARLIER: earlier}
    if completed != record:
        write_atomically(folder / RECORD, (json.dumps(completed, indent=2, allow_nan=False) + "\n").encode())
    write_card(folder)  # also after a run that died between the two
    return completed


def _outdated(destination: Destination, record: dict[str, Any], local: set[str]) -> set[str]:
    """Files of earlier versions to delete: those that this version neither has nor keeps."""
    listed = (destination.record or {}).get(CONTENTS)
    ours = {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
    ours |= {file["file"] for entry in record[EARLIER] for file in entry["files"].values()}
    lasting = {file["file"] for entry in record[EARLIER] for file in entry["files"].values() if file["here"]}
    return (ours & destination.files.keys()) - local - lasting


def _title(record: dict[str, Any], metrics: dict[str, Any]) -> str:
    return title(record, metrics)[:_TITLE_LENGTH]


def _pull_request(repo: str, account: str, record: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The branch of this version's pull request, which an earlier run opened or which is opened now."""
    version = version_tag(record, metrics)
    for pull in api().get_repo_discussions(repo, author=account, discussion_type="pull_request"):
        if pull.status in ("open", "draft") and pull.title.endswith(f"[{version}]"):
            return f"{PULL}{pull.num}"
    name = f"{_title(record, metrics)[: _TITLE_LENGTH - len(version) - 3]} [{version}]"
    return str(api().create_pull_request(repo, name, description=description(record, metrics)).git_reference)


def _check_listing(folder: Path, local: list[str], repo: str, commit: str) -> None:
    """Compare size and SHA-256 of each file with the Hub's listing; for a small file its git digest."""
    entries = patiently(lambda: list(api().list_repo_tree(repo, revision=commit, recursive=True)))
    listed = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    for name in local:
        entry, path = listed.get(name), folder / name
        if entry is None:
            raise VerificationError(f"{repo} lacks {name} after the upload; run the same command again")
        same = entry.lfs.sha256 == file_sha256(path) if entry.lfs else entry.blob_id == _git_digest(path)
        if entry.size != path.stat().st_size or not same:
            raise VerificationError(
                f"{name} in {repo} is not the file that was uploaded; run the same command again, and if it stays so, "
                "do not use that repo"
            )


def _git_digest(path: Path) -> str:
    """Git's blob id: SHA-1 of a size header and the bytes. The file is read at once, so it has to be small."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _load_back(folder: Path, repo: str, commit: str) -> tuple[str, ...]:
    """Load each published file from the Hub, as its users do, and compare its SHA-256; returns the formats."""
    others: dict[str, Any] = {}
    record = read_json(folder / RECORD)
    for file in record["files"].values():
        try:
            pipeline = patiently(
                HSWQPipeline.from_pretrained, repo, weight_name=file["file"], revision=commit, **others
            )
        except HSWQError as error:
            raise VerificationError(f"{repo} was uploaded, but cannot be loaded from there: {error}") from error
        path = patiently(api().hf_hub_download, repo, file["file"], revision=commit)
        if file_sha256(Path(path)) != file["sha256"]:
            raise VerificationError(f"{file['file']} comes from {repo} with other bytes than were uploaded")
        denoiser = ARCHITECTURES[record["architecture"]].component
        others = {name: part for name, part in pipeline.components.items() if name != denoiser}
    return tuple(record["files"])


def _tag(repo: str, tag: str, commit: str) -> None:
    """Tag `commit`. An existing tag is left as it is: it names the same version."""
    if tag not in {known.name for known in patiently(api().list_repo_refs, repo).tags}:
        patiently(api().create_tag, repo, tag=tag, revision=commit, exist_ok=True)
