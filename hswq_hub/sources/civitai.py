"""Civitai: reads a model's listing, chooses one of its files, and explains refusals.

    GET /api/v1/models/{id}                 creator, permissions, availability of every version
    GET /api/v1/model-versions/{id}         files with their hashes and scans, whether it may be downloaded
    GET /api/v1/model-versions/by-hash/{h}  the same, by what a file holds
    GET /api/download/models/{version}      a redirect to the file, by `fileId`

Fields come and go between releases of the site, so every field that can be absent is optional.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hswq_runtime.text import several

from ..common.text import plain
from .errors import AccessError, DownloadError, SourceError, UnknownReferenceError, UnsuitableSourceError
from .http.credentials import check_token, civitai_token, store_civitai_token
from .http.download import cached, download
from .http.header import CheckHeader
from .http.ranges import fetch_header
from .http.web import LOOPBACK, Web
from .licence import licence_of_base_model
from .listing import Listing, Provenance, RemoteFile, safe_name
from .permissions import Permissions
from .prompts.pages import civitai_examples
from .reference import CIVITAI_HOSTS, CivitaiRef

KEYS_PAGE = "https://civitai.com/user/account"
_LOGIN = f"make a token on {KEYS_PAGE} and run `hswq-hub login civitai`, or set CIVITAI_API_TOKEN"
_WEIGHTS = ("Model", "Pruned Model", "UNet", "Diffusion Model")
_SAFE_FORMAT, _SUFFIX = "SafeTensor", ".safetensors"
_HALF, _FULL = ("fp16", "bf16"), "fp32"
_MATURE = 28
"""Bits R, X and XXX of `nsfwLevel`."""


@dataclass(frozen=True)
class CivitaiFile:
    """One file of a version. objection: why it cannot be the source, None if it can."""

    entry: Mapping[str, Any]
    objection: str | None

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Sort key, best first: primary, then half precision, then unstated precision, then FP32."""
        fp = _metadata(self.entry).get("fp")
        return not self.entry.get("primary"), 0 if fp in _HALF else 2 if fp == _FULL else 1, self.entry["id"]


class Civitai:
    """Civitai's API at one endpoint."""

    def __init__(self, endpoint: str, token: str | None = None):
        self.web = Web(endpoint, token)

    @classmethod
    def of(cls, reference: CivitaiRef, endpoint: str | None = None) -> "Civitai":
        """A client for `endpoint`, or else for the site that the reference names, with the user's token."""
        site = cls(endpoint or f"https://{reference.host}")
        site.web.token = civitai_token(stored=site.is_trusted)
        return site

    @property
    def is_trusted(self) -> bool:
        """Whether a stored token may be sent there: only to Civitai itself, or to this machine."""
        return self.web.host.removeprefix("www.") in (*CIVITAI_HOSTS, *LOOPBACK)

    def user(self) -> str:
        """The name of the token's owner.

        Raises:
            AccessError: the token is not accepted, or what answers is not Civitai.
        """
        status, body = self.web.get_json("/api/v1/me")
        if status in (401, 403, 451):
            raise self.explain(status, body, True)
        name = plain(body.get("username"))
        if status != 200 or name is None:
            raise AccessError(f"{self.web.host} does not say whose token this is ({status}); check --civitai-endpoint")
        return name

    def listing(self, reference: CivitaiRef) -> Listing:
        """What `reference` leads to; two small requests, and one for prompts that the page has but does not list.

        Raises:
            UnknownReferenceError: there is no such model, version or file.
            UnsuitableSourceError: none of its files can be quantized; says why for each.
            AccessError: archived, taken down, blocked here.
            DownloadError: the API kept failing.
        """
        version = self._version(reference)
        model_id, version_id = _id(version, "modelId"), _id(version, "id")
        if reference.model not in (None, model_id):
            raise UnknownReferenceError(f"{reference}: version {version_id} belongs to the model {model_id}")
        model = self._get(f"/api/v1/models/{model_id}", f"the model {model_id}")
        _check_alive(model, reference)
        kind = plain(model.get("type"))
        if kind not in (None, "Checkpoint", "Other"):
            raise UnsuitableSourceError(f"{reference} is a {kind}, no checkpoint; choose the model that it is made for")
        file = _choose(version, reference)
        title = plain(model.get("name")) or f"model {model_id}"
        release = plain(version.get("name"))
        creator = _creator(model)
        base_model = plain(version.get("baseModel"))
        site = f"https://{reference.host}"
        return Listing(
            name=Path(file.name).stem,
            reference=_short(model_id, version, file),
            version=version_id,
            origin=f"{title}{f' {release}' if release else ''} on Civitai",
            files=(file,),
            licence=licence_of_base_model(base_model),
            provenance=Provenance(
                url=f"{site}/models/{model_id}?modelVersionId={version_id}",
                title=title,
                version=release,
                creator=creator,
                creator_url=f"{site}/user/{creator}" if re.fullmatch(r"[\w.-]+", creator or "") else None,
                base_model=base_model,
                nsfw=model.get("nsfw") is True or any(_level(part) & _MATURE for part in (model, version)),
                permissions=Permissions.from_api(model),
            ),
            objections=tuple(_objections(model, version)),
            families=(base_model,) if base_model else (),
            examples=civitai_examples(version, self.web.get_json, self.explain),
        )

    def fetch(self, listing: Listing, check_header: CheckHeader, *, verify: bool = False) -> tuple[Path, str]:
        """Path and SHA-256 of the listed file, in the cache: see :func:`hswq_hub.sources.http.download.download`."""
        (file,) = listing.files
        return download(self.web, _download_path(listing, file), file, self.explain, check_header, verify=verify)

    def known_sha256(self, listing: Listing) -> str | None:
        """SHA-256 that is listed for the file."""
        (file,) = listing.files
        return file.sha256

    def weights_here(self, listing: Listing) -> list[Path] | None:
        """The listed file in the cache; None if it would have to be fetched."""
        (file,) = listing.files
        path = cached(self.web, _download_path(listing, file), file)
        return None if path is None else [path]

    def header(self, listing: Listing) -> bytes:
        """Fetch the header of the listed file alone.

        Raises:
            SourceError: see :func:`hswq_hub.sources.http.ranges.fetch_header`.
        """
        (file,) = listing.files
        return fetch_header(self.web, _download_path(listing, file), file, self.explain)

    def explain(self, status: int, body: Mapping[str, Any], at_home: bool) -> SourceError:
        """The exception for an answer that is no file; its message says what to do.

        at_home: whether Civitai itself answered, and not its storage.
        """
        error, message = (str(body.get(name) or "").casefold() for name in ("error", "message"))
        if not at_home:
            return DownloadError(f"Civitai's storage answers {status} with something that is no model; try again later")
        if (status == 200 and not body) or (status == 401 and "disabled downloads" not in f"{error} {message}"):
            if self.web.token is None:
                return AccessError(f"Civitai gives files only to those who are logged in: {_LOGIN}")
            return AccessError(f"Civitai does not accept the token; {_LOGIN}")
        if status == 401:
            return AccessError("the creator has disabled downloads of this file; choose another version or model")
        if status == 403 and "early access" in f"{error} {message}":
            until = _date(body.get("deadline"))
            return AccessError(
                f"this version is in early access{f' until {until}' if until else ''}; buy it on its page, or run the "
                "same command after that"
            )
        if status == 403 and "access" in error:
            return AccessError("this account may not download the file; look at the model's page for what it asks for")
        if status == 403:
            return AccessError("Civitai refuses this account or this network; look at civitai.com in a browser")
        if status == 404:
            return AccessError(
                "Civitai does not find the file: it was deleted or unpublished, or its storage fails at the moment; "
                "look at the model's page, or try again in some minutes"
            )
        if status == 410:
            return AccessError("the model is archived and cannot be downloaded any more; choose another one")
        if status == 451:
            return AccessError("Civitai does not serve this region; give a copy that you have as a local file")
        return DownloadError(f"Civitai answers {status} with something that is no model; try again later")

    def _version(self, reference: CivitaiRef) -> Mapping[str, Any]:
        if reference.hash is not None:
            path = f"/api/v1/model-versions/by-hash/{reference.hash}"
            return self._get(path, f"a file with the hash {reference.hash}")
        number = reference.version
        if number is None:
            model = self._get(f"/api/v1/models/{reference.model}", f"the model {reference.model}")
            _check_alive(model, reference)
            versions = _entries(model, "modelVersions")
            if not versions:
                raise UnknownReferenceError(f"{reference} has no published version; look at its page")
            number = _id(versions[0], "id")  # the newest one is listed first
        return self._get(f"/api/v1/model-versions/{number}", f"the version {number}")

    def _get(self, path: str, what: str) -> Mapping[str, Any]:
        status, body = self.web.get_json(path)
        if status == 200 and body:
            return body
        if status in (400, 404):
            raise UnknownReferenceError(
                f"Civitai does not know {what}; look at its page, and give the whole address if that is on another of "
                "Civitai's sites"
            )
        raise self.explain(status, body, True)


def log_in(token: str, endpoint: str | None = None) -> str:
    """Store a token if Civitai accepts it; returns a sentence that says where.

    Raises:
        AccessError: it does not accept it, or it is not Civitai.
    """
    site = Civitai(endpoint or f"https://{CIVITAI_HOSTS[0]}", check_token(token))
    if not site.is_trusted:
        raise AccessError(f"tokens are kept for Civitai alone; set CIVITAI_API_TOKEN for each run with {site.web.host}")
    name = site.user()
    return f"logged in to Civitai as {name}; the token is in {store_civitai_token(token)}"


def _download_path(listing: Listing, file: RemoteFile) -> str:
    """Built from `fileId`: the API's own downloadUrl may lead anywhere, and answers 404 for some files."""
    return f"/api/download/models/{listing.version}?fileId={file.id}"


def _choose(version: Mapping[str, Any], reference: CivitaiRef) -> RemoteFile:
    """The one file to take."""
    files = [CivitaiFile(entry, _why_not(entry)) for entry in _entries(version, "files") if _is_id(entry.get("id"))]
    if not files:
        raise UnsuitableSourceError(f"{reference} lists no files; look at its page")
    asked = _with_hash([file for file in files if _is_asked_for(file.entry, reference)], reference)
    if not asked:
        raise UnknownReferenceError(f"{reference} has no such file; it has {_summary(files)}")
    usable = sorted((file for file in asked if file.objection is None), key=lambda file: file.rank)
    if not usable:
        raise UnsuitableSourceError(
            f"{reference} has no file that can be quantized: {_summary(asked)}; choose a version with an FP16 or BF16 "
            "safetensors file"
        )
    entry = usable[0].entry
    kilobytes = entry.get("sizeKB")
    return RemoteFile(
        name=safe_name(entry["name"], f"civitai-{_id(version, 'id')}"),
        size=round(float(kilobytes) * 1024) if kilobytes is not None and _is_number(kilobytes) else None,
        sha256=_sha256(entry) or (reference.hash if reference.is_sha256 else None),
        id=entry["id"],
    )


def _short(model_id: int, version: Mapping[str, Any], file: RemoteFile) -> str:
    """The short form of a reference to `file`: its version if `_choose` takes that file of it, else the file itself."""
    best = CivitaiRef(model_id, version["id"])
    if _choose(version, best).id == file.id:
        return str(best)
    if file.sha256 is not None:
        return str(CivitaiRef(hash=file.sha256, is_sha256=True))
    return f"https://{CIVITAI_HOSTS[0]}/api/download/models/{version['id']}?fileId={file.id}"


def _why_not(entry: Mapping[str, Any]) -> str | None:
    """Why a file cannot be the source."""
    kind, name = entry.get("type", _WEIGHTS[0]), str(entry.get("name", ""))
    format, fp = (_metadata(entry).get(key) for key in ("format", "fp"))
    if kind not in _WEIGHTS:
        return f"is a {plain(kind) or 'file of no kind'}"
    if fp not in (None, _FULL, *_HALF):
        return f"is quantized already ({plain(fp) or 'in some way'})"
    if format not in (None, _SAFE_FORMAT) or not name.casefold().endswith(_SUFFIX):
        return f"is no safetensors file but {plain(format) if format not in (None, _SAFE_FORMAT) else 'another kind'}"
    for scan in ("pickle", "virus"):
        result = entry.get(f"{scan}ScanResult")
        if result != "Success":
            return f"has not passed Civitai's {scan} scan ({plain(result) or 'no result'})"
    return None


def _is_asked_for(entry: Mapping[str, Any], reference: CivitaiRef) -> bool:
    facts = {"type": entry.get("type"), **_metadata(entry)}
    return reference.file in (None, entry["id"]) and all(
        str(facts.get(key, value)).casefold() == value.casefold() for key, value in reference.wishes
    )


def _with_hash(files: list[CivitaiFile], reference: CivitaiRef) -> list[CivitaiFile]:
    """The files that list the hash of the reference; if none does, those whose hash is not listed."""
    if reference.hash is None:
        return files
    named = [file for file in files if reference.hash in _hashes(file.entry)]
    return named or [file for file in files if not (reference.is_sha256 and _sha256(file.entry))]


def _objections(model: Mapping[str, Any], version: Mapping[str, Any]) -> list[str]:
    """Why the creator would not want a quantized copy of this published."""
    found = []
    derivatives = Permissions.from_api(model).derivatives
    if derivatives is not True:
        said = "its creator does not allow derivatives"
        found.append(said if derivatives is False else "its creator does not say whether derivatives are allowed")
    listed = next((v for v in _entries(model, "modelVersions") if v.get("id") == version.get("id")), {})
    available = (plain(part.get("availability")) for part in (model, listed, version))
    states = {state for state in available if state not in (None, "Public")}
    deadline = next((part[key] for part in (listed, version) for key in _DEADLINES if part.get(key)), None)
    if states:
        until = f" until {_date(deadline)}" if _date(deadline) else ""
        found.append(f"it is not public but {', '.join(sorted(states))}{until}")
    if version.get("usageControl", "Download") != "Download":
        found.append("its downloads are disabled")
    found += [said for flag, said in _PEOPLE.items() if model.get(flag) is True]
    return found


_DEADLINES = ("earlyAccessDeadline", "earlyAccessEndsAt")
_PEOPLE = {"poi": "it depicts a real person", "minor": "it depicts minors"}


def _creator(model: Mapping[str, Any]) -> str | None:
    creator = model.get("creator")
    return plain(creator.get("username")) if isinstance(creator, Mapping) else None


def _check_alive(model: Mapping[str, Any], reference: CivitaiRef) -> None:
    mode = model.get("mode")
    if mode == "Archived":
        raise AccessError(f"{reference} is archived and cannot be downloaded any more; choose another one")
    if mode == "TakenDown":
        raise AccessError(f"{reference} was taken down from Civitai; choose another one")


def _summary(files: list[CivitaiFile]) -> str:
    return several(f"{safe_name(f.entry.get('name', 'model'))} {f.objection or 'is usable'}" for f in files)


def _entries(body: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = body.get(key)
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def _metadata(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    value = entry.get("metadata")
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else {}


def _hashes(entry: Mapping[str, Any]) -> set[str]:
    """All hashes of a file, of every algorithm, in lower case."""
    listed = entry.get("hashes")
    return {str(value).lower() for value in listed.values()} if isinstance(listed, Mapping) else set()


def _sha256(entry: Mapping[str, Any]) -> str | None:
    hashes = entry.get("hashes")
    digest = hashes.get("SHA256") if isinstance(hashes, Mapping) else None
    return digest.lower() if isinstance(digest, str) and re.fullmatch(r"[0-9a-fA-F]{64}", digest) else None


def _id(body: Mapping[str, Any], key: str) -> int:
    if not _is_id(body.get(key)):
        raise DownloadError(f"Civitai's answer has no {key}; its API may have changed, look for a newer hswq-hub")
    return int(body[key])


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _level(body: Mapping[str, Any]) -> int:
    value = body.get("nsfwLevel")
    return value if isinstance(value, int) else 0


def _date(text: Any) -> str | None:
    """An ISO time as people write it, in UTC; None if it is none."""
    try:
        when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except (ValueError, AttributeError):
        return None
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
