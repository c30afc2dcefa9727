"""Parses a model reference, such as a path or a web address, into a typed one; no network.

======================================================  ===============================================
demo, or a name of the catalog                          `DemoRef`; whatever the catalog says
a path of a safetensors file or a diffusers folder      `LocalRef`
civitai:MODEL@VERSION, civitai:MODEL,                   `CivitaiRef`
civitai:sha256:HASH, civitai:hash:HASH of another kind,
AIR urns, every civitai.com URL
owner/repo[@revision][/path], hf:…, huggingface.co URL  `HubRef`
======================================================  ===============================================

`str()` of a reference is its short form, which means the same and holds no token. Cards show it.
"""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hswq_runtime.text import address

from .catalog import catalog
from .errors import UnknownReferenceError

DEMO = "demo"
CIVITAI_HOSTS = ("civitai.com", "civitai.red", "civitai.green")
_HUB_HOSTS = ("huggingface.co", "hf.co")
_FORMS = (
    "give a safetensors file, a diffusers folder, owner/repo, a Civitai or Hugging Face URL, civitai:MODEL@VERSION, "
    "or a name that `hswq-hub models` lists"
)
_FILE_WISHES = ("type", "format", "size", "fp", "quantType")
"""Query parameters of a Civitai download URL that select one of a version's files."""
_LONGEST_NAME = 200
"""Characters of a reference that are compared with the names that are known."""
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_OTHER_HASH = re.compile(r"[0-9a-fA-F]{8,64}")
_AROUND = re.compile(r"^[\s/]+|[\s/]+$")
_REPO_PART = re.compile(r"[\w-][\w.-]*")
_AIR = re.compile(
    r"(?:urn:)?air:(?P<ecosystem>[\w.-]+):(?P<type>[\w.-]+):(?P<source>[\w.-]+):(?P<model>[0-9]{1,18})"
    r"(?:@(?P<version>[0-9]{1,18}))?(?::[\w.-]+)?(?:\.[A-Za-z]+)?",
    re.IGNORECASE,
)
_CIVITAI_SHORT = re.compile(r"civitai:(?P<model>[0-9]{1,18})(?:@(?P<version>[0-9]{1,18}))?", re.IGNORECASE)


@dataclass(frozen=True)
class DemoRef:
    """The model that ships with the package."""

    def __str__(self) -> str:
        return DEMO


@dataclass(frozen=True)
class LocalRef:
    """A file or folder on this machine; only the last part of its path is ever shown."""

    path: Path

    def __str__(self) -> str:
        return Path(os.path.abspath(self.path)).name  # `.` has a name as well


@dataclass(frozen=True)
class CivitaiRef:
    """A model, a version or a file on Civitai; at least one of `model`, `version`, `hash` is set.

    host: which of Civitai's sites. file: id of one of the version's files. wishes: a download URL's constraints on the
    file, such as ("fp", "fp16"). hash: lower-case hex, by any algorithm that Civitai lists. is_sha256: whether `hash`
    is given as a SHA-256.
    """

    model: int | None = None
    version: int | None = None
    hash: str | None = None
    is_sha256: bool = False
    file: int | None = None
    wishes: tuple[tuple[str, str], ...] = ()
    host: str = CIVITAI_HOSTS[0]

    def __str__(self) -> str:
        if self.hash is not None:
            return f"civitai:{'sha256' if self.is_sha256 else 'hash'}:{self.hash}"
        if self.model is None:
            return f"https://{self.host}/model-versions/{self.version}"
        return f"civitai:{self.model}" + (f"@{self.version}" if self.version is not None else "")


@dataclass(frozen=True)
class HubRef:
    """A Hub repo, or a file or folder in it. `revision` None: the main branch."""

    repo: str
    path: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"hf:{self.repo}{revision}{f'/{self.path}' if self.path else ''}"


ModelRef = DemoRef | LocalRef | CivitaiRef | HubRef


def parse(reference: str) -> ModelRef:
    """The typed form of `reference`. Order: known names (`./demo` is a path), files on this disk, all other forms.

    Raises:
        UnknownReferenceError: it has none of the forms above; the message suggests a similar name.
    """
    reference = reference.strip()
    if reference.casefold() == DEMO:
        return DemoRef()
    entry = catalog().get(reference.casefold())
    if entry is not None:
        return CivitaiRef(entry.model, entry.version)
    path = os.path.expanduser(reference)
    if reference and os.path.exists(path):
        return LocalRef(Path(path))
    if not reference.isascii() and reference != reference.encode("utf-8", "replace").decode():
        raise UnknownReferenceError(f"{_shown(reference)} is no text in UTF-8; {_FORMS}")
    for read in (_read_civitai, _read_url, _read_hub):
        found = read(reference)
        if found is not None:
            return found
    raise UnknownReferenceError(f"{_shown(reference)} is neither a file here nor a known reference; {_hint(reference)}")


def _read_civitai(text: str) -> CivitaiRef | None:
    if match := _CIVITAI_SHORT.fullmatch(text):
        return CivitaiRef(int(match["model"]), int(match["version"]) if match["version"] else None)
    scheme, _, rest = text.partition(":")
    if scheme.casefold() == "civitai":
        kind, _, digest = rest.partition(":")
        if kind.casefold() == "sha256" and _SHA256.fullmatch(digest):
            return CivitaiRef(hash=digest.lower(), is_sha256=True)
        if kind.casefold() == "hash" and _OTHER_HASH.fullmatch(digest):
            return CivitaiRef(hash=digest.lower())
        raise UnknownReferenceError(
            f"{_shown(text)} is not complete: write civitai:MODEL@VERSION, civitai:MODEL or civitai:sha256:HASH "
            "with all 64 digits"
        )
    if scheme.casefold() in ("urn", "air"):
        match = _AIR.fullmatch(text)
        if match is None or match["source"].casefold() != "civitai":
            raise UnknownReferenceError(
                f"{_shown(text)} is no AIR of a Civitai model: urn:air:ECOSYSTEM:checkpoint:civitai:MODEL@VERSION"
            )
        return CivitaiRef(int(match["model"]), int(match["version"]) if match["version"] else None)
    return None


def _read_url(text: str) -> ModelRef | None:
    """A web address, with or without its scheme."""
    hub_host = urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc.lower()
    first = text.removeprefix("//").split("/", 1)[0].lower().removeprefix("www.")
    if "://" not in text and (text.startswith("//") or first in (*CIVITAI_HOSTS, *_HUB_HOSTS)):
        text = "https://" + text.removeprefix("//")
    if not re.match(r"https?://", text, re.IGNORECASE):
        return None
    try:
        url = urlsplit(text)
        host = (url.hostname or "").lower().removeprefix("www.")
        netloc = url.netloc.rpartition("@")[2].lower()
    except ValueError:
        raise UnknownReferenceError(f"{_shown(text)} is not a valid address") from None
    parts = [unquote(part) for part in url.path.split("/") if part]
    if host in CIVITAI_HOSTS:
        found: CivitaiRef | HubRef | None = _civitai_page(host, parts, parse_qs(url.query))
    elif host in _HUB_HOSTS or (hub_host and netloc == hub_host):
        found = _hub_page(parts)
    else:
        raise UnknownReferenceError(f"{_shown(text)} is on neither Civitai nor Hugging Face; {_FORMS}")
    if found is None:
        raise UnknownReferenceError(f"{_shown(text)} is not the address of a model; {_FORMS}")
    return found


def _civitai_page(host: str, parts: list[str], query: dict[str, list[str]]) -> CivitaiRef | None:
    def number(text: str | None) -> int | None:
        return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text) else None

    asked = {key: values[-1] for key, values in query.items()}
    match parts:
        case ["models", model, *_] | ["api", "v1", "models", model] if number(model):
            return CivitaiRef(number(model), number(asked.get("modelVersionId")), host=host)
        case ["api", "download", "models", version] if number(version):
            wishes = tuple((key, asked[key]) for key in _FILE_WISHES if key in asked)
            return CivitaiRef(version=number(version), file=number(asked.get("fileId")), wishes=wishes, host=host)
        case ["api", "v1", "model-versions", "by-hash", digest] if _OTHER_HASH.fullmatch(digest):
            return CivitaiRef(hash=digest.lower(), host=host)
        case (
            ["model-versions", version]
            | ["api", "v1", "model-versions", version]
            | ["api", "v1", "model-versions", "mini", version]
        ) if number(version):
            return CivitaiRef(version=number(version), host=host)
    return None


def _hub_page(parts: list[str]) -> HubRef | None:
    match parts:
        case [owner, repo] if _is_repo(owner, repo):
            return HubRef(f"{owner}/{repo}")
        case [owner, repo, "tree" | "blob" | "resolve" | "raw", revision, *path] if _is_repo(owner, repo):
            return HubRef(f"{owner}/{repo}", _path(path), None if revision == "main" else revision)
    return None


def _read_hub(text: str) -> HubRef | None:
    """owner/repo, owner/repo@revision, owner/repo/path; the same behind `hf:` or `hf://`."""
    scheme, _, rest = text.partition(":")
    explicit = scheme.casefold() in ("hf", "huggingface")
    parts = _AROUND.sub("", rest if explicit else text).split("/")
    if len(parts) >= 2:
        repo, _, revision = parts[1].partition("@")
        written_as_path = text.startswith((".", "/", "~")) or "\\" in text
        a_missing_file = len(parts) == 2 and repo.endswith(".safetensors")
        if _is_repo(parts[0], repo) and (explicit or not (written_as_path or a_missing_file)):
            return HubRef(f"{parts[0]}/{repo}", _path(parts[2:]), unquote(revision) or None)
    if explicit:
        raise UnknownReferenceError(f"{_shown(text)} is not complete: write hf:owner/repo or hf:owner/repo/file")
    return None


def _is_repo(owner: str, repo: str) -> bool:
    reserved = ("models", "datasets", "spaces", "api", "docs", "collections", "papers")
    return bool(_REPO_PART.fullmatch(owner) and _REPO_PART.fullmatch(repo)) and owner.casefold() not in reserved


def _path(parts: list[str]) -> str | None:
    if ".." in parts or "." in parts:
        raise UnknownReferenceError("a path in a repo holds no '..'; give the file's own path")
    return "/".join(filter(None, parts)) or None


def identify(reference: str) -> str:
    """One spelling for all references that mean the same; of something on this machine its real path."""
    found = parse(reference)
    return os.path.realpath(found.path) if isinstance(found, LocalRef) else str(found)


def _hint(reference: str) -> str:
    names = {DEMO: DEMO, **{key: entry.name for key, entry in catalog().items()}}
    near = difflib.get_close_matches(reference[:_LONGEST_NAME].casefold(), names, n=1)
    return f"did you mean {names[near[0]]}?" if near else _FORMS


def without_secrets(reference: str) -> str:
    """The reference as it may be shown: as it was typed, or the short form of one with a query or a password."""
    if not re.search(r"\?|//[^/\s]*@", reference):
        return reference
    try:
        return str(parse(reference))
    except UnknownReferenceError:
        return address(reference)


def _shown(reference: str) -> str:
    return repr(address(reference))
