"""What the loopback Hub keeps: repos with commits, refs and pull requests, accounts, collections, large objects."""

import hashlib
import struct
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

TOKEN = "hf_secret0123456789"
LARGE = (".safetensors", ".bin")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CREATED = "2026-01-01T00:00:00.000Z"


class Large(bytes):
    """Content that was committed by its SHA-256, whatever its name."""


def is_large(path: str, content: bytes) -> bool:
    return isinstance(content, Large) or path.endswith(LARGE)


def sha256(content: bytes) -> str:
    return getattr(content, "sha256", None) or hashlib.sha256(content).hexdigest()


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content[:]).hexdigest()


@dataclass
class Commit:
    oid: str
    title: str
    files: dict[str, bytes]
    author: str = "system"


@dataclass
class Pull:
    """A pull request; its commits are on the branch `refs/pr/<number>`."""

    number: int
    title: str
    author: str
    description: str = ""
    status: str = "draft"


@dataclass
class Repo:
    """files: content by path on main. gated: "auto" or "manual" for a repo whose files only `TOKEN` opens."""

    files: dict[str, bytes]
    card: dict = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    gated: str | bool = False
    private: bool = False
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)
    log: list[Commit] = field(default_factory=list)
    """All commits after the first, on whatever branch."""
    pulls: list[Pull] = field(default_factory=list)

    def __post_init__(self):
        self.branches = dict.fromkeys(self.revisions, self.commit)
        self.versions: dict[str, str] = {}
        """git tags; `tags` are the model's."""
        self.snapshots = {self.commit: self.files}

    @classmethod
    def created(cls, name: str, private: bool) -> "Repo":
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE).encode()
        return cls({".gitattributes": attributes}, private=private, commit=hashlib.sha1(name.encode()).hexdigest())

    def oid(self, revision: str) -> str | None:
        """The commit that a branch, tag or commit stands for."""
        known = self.branches | self.versions | {oid: oid for oid in self.snapshots}
        return known.get(revision)

    def add(self, branch: str, title: str, files: dict[str, bytes], author: str) -> Commit:
        listing = [title, author, self.branches[branch], *(f"{path} {sha256(files[path])}" for path in sorted(files))]
        commit = Commit(hashlib.sha1("\n".join(listing).encode()).hexdigest(), title, files, author)
        self.snapshots[commit.oid] = files
        self.branches[branch] = commit.oid
        self.log.append(commit)
        if branch == "main":
            self.files, self.commit = files, commit.oid
        return commit

    def front_matter(self) -> dict:
        text = self.files.get("README.md", b"").decode()
        return self.card or (yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {})


def account(name: str, role: str = "write", orgs: dict[str, str] | None = None, scoped: dict | None = None) -> dict:
    """What whoami-v2 answers. orgs: role by organisation; scoped: permissions by user, organisation or repo."""
    token = {"displayName": "test", "role": role, "createdAt": CREATED}
    if role == "fineGrained":
        scopes = [
            {
                "entity": {"_id": "1", "type": "model" if "/" in entity else "user", "name": entity},
                "permissions": allowed,
            }
            for entity, allowed in (scoped or {}).items()
        ]
        token["fineGrained"] = {"canReadGatedRepos": True, "global": ["discussion.write"], "scoped": scopes}
    return {
        "type": "user",
        "id": "1",
        "name": name,
        "fullname": name.title(),
        "email": f"{name}@example.com",
        "emailVerified": True,
        "canPay": False,
        "isPro": False,
        "avatarUrl": "/avatar.svg",
        "orgs": [
            {"type": "org", "id": "2", "name": org, "fullname": org.title(), "roleInOrg": role, "isEnterprise": False}
            for org, role in (orgs or {}).items()
        ],
        "auth": {"type": "access_token", "accessToken": token},
    }


def may_read(who: dict, repo: str) -> bool:
    """Whether an account sees private repos of the owner of `repo`."""
    return repo.split("/")[0] in {who["name"], *(org["name"] for org in who["orgs"])}


def may_write(who: dict, repo: str) -> bool:
    """Whether an account's token may write `repo`, there or not."""
    owner, token = repo.split("/")[0], who["auth"]["accessToken"]
    roles = {org["name"]: org["roleInOrg"] for org in who["orgs"]} | {who["name"]: "admin"}
    if roles.get(owner, "none") not in ("admin", "write", "contributor"):
        return False
    if token["role"] != "fineGrained":
        return token["role"] == "write"
    scoped = {scope["entity"]["name"]: scope["permissions"] for scope in token["fineGrained"]["scoped"]}
    return any("repo.write" in scoped.get(entity, []) for entity in (owner, repo))


class XetStore:
    """The Xet store in a folder that hf_xet itself reads and writes for `local://` addresses."""

    def __init__(self, folder: Path):
        self.url = f"local://{folder}"
        self._folder = folder

    def connection(self) -> dict:
        return {"casUrl": self.url, "accessToken": "xet", "exp": int(time.time()) + 3600}

    def headers(self) -> dict[str, str]:
        names = {"casUrl": "X-Xet-Cas-Url", "accessToken": "X-Xet-Access-Token", "exp": "X-Xet-Token-Expiration"}
        return {names[key]: str(value) for key, value in self.connection().items()}

    def hash_of(self, digest: str) -> str | None:
        """The store's own hash of the content with that SHA-256, from its index of files."""
        found = {}
        for shard in sorted(self._folder.rglob("shard-*/**/*.mdb")):
            found |= dict(_files_of_shard(shard.read_bytes()))
        return found.get(digest)

    def read(self, xet_hash: str, size: int) -> bytes:
        import hf_xet

        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "content"
            with hf_xet.XetSession().new_file_download_group(
                endpoint=self.url, token="xet", token_expiry_unix_secs=int(time.time()) + 3600
            ) as group:
                group.start_download_file(hf_xet.XetFileInfo(xet_hash, size), str(target))
            return target.read_bytes()


def _files_of_shard(shard: bytes):
    """(SHA-256, hash) of each file in a Xet shard. A record is 48 bytes, a hash four little-endian words."""
    verified, described = 1 << 31, 1 << 30
    position, end = 48, b"\xff" * 32
    while (raw := shard[position : position + 32]) != end and len(raw) == 32:
        flags, segments = struct.unpack("<II", shard[position + 32 : position + 40])
        position += 48 * (1 + segments * (2 if flags & verified else 1))
        if flags & described:
            yield _words(shard[position : position + 32]), _words(raw)
            position += 48


def _words(raw: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))
