"""The Hub's write side on loopback: accounts, repos, uploads (LFS and Xet), commits, refs, collections.

Each answer checks what it is sent, as the Hub does: permissions, digests, the parent commit, the card's front matter.
"""

import base64
import json
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import yaml

from support.hub_store import CREATED, Large, Pull, Repo, git_blob, is_large, may_write, sha256

if TYPE_CHECKING:
    from support.hub_server import Handler

LICENCES = {
    "apache-2.0", "mit", "openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m", "agpl-3.0",
    "cc-by-4.0", "cc-by-nc-4.0", "unknown", "other",
}  # fmt: skip
RELATIONS = {"adapter", "merge", "quantized", "finetune"}
BIGGEST_TEXT = 10_000_000


def writer(request: "Handler", repo: str) -> dict | None:
    """The account that may write `repo`, or None after an answer that says why not."""
    if (who := request.account()) is None:
        return request.refuse_credentials()
    if not may_write(who, repo):
        return request.refuse(403, None, f"You don't have the rights to write to {repo.split('/')[0]}")
    return who


def contributor(request: "Handler", repo: str, revision: str) -> dict | None:
    """The account that may commit to a revision: a writer, or on a pull request's branch whoever opened it."""
    who, found = request.account(), request.hub.repos.get(repo)
    own = {f"refs/pr/{pull.number}" for pull in (found.pulls if found else []) if who and pull.author == who["name"]}
    return who if revision in own and who["auth"]["accessToken"]["role"] != "read" else writer(request, repo)


def whoami(request: "Handler"):
    who = request.account()
    return request.refuse_credentials() if who is None else request.send_json(who)


def create_repo(request: "Handler"):
    asked = json.loads(request.body)
    if (who := request.account()) is None:
        return request.refuse_credentials()
    name = f"{asked.get('organization') or who['name']}/{asked['name']}"
    if writer(request, name) is None:
        return
    url = f"{request.hub.url}/{name}"
    if name in request.hub.repos:
        return request.send_json({"error": "You already created this model repo", "url": url}, 409)
    request.hub.repos[name] = Repo.created(name, asked.get("visibility") == "private")
    request.send_json({"url": url, "name": name})


def settings(request: "Handler", repo: str):
    if writer(request, repo) is None or (found := request.open(repo, "main")) is None:
        return
    asked = json.loads(request.body)
    if "visibility" in asked:
        found.private = asked["visibility"] == "private"
    if "gated" in asked:
        found.gated = asked["gated"]
    request.send_json({"visibility": "private" if found.private else "public", "gated": found.gated})


def auth_check(request: "Handler", repo: str):
    if writer(request, repo) is not None and request.open(repo, "main") is not None:
        request.send_json({})


def preupload(request: "Handler", repo: str, revision: str):
    if contributor(request, repo, revision) is None or (found := request.open(repo, revision)) is None:
        return
    there = found.snapshots[found.oid(revision)]
    answers = []
    for file in json.loads(request.body)["files"]:
        path, sample = file["path"], base64.b64decode(file["sample"])
        large = is_large(path, b"") or file["size"] > BIGGEST_TEXT or b"\0" in sample
        answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if path in there and is_large(path, there[path]) == large:
            answer["oid"] = sha256(there[path]) if large else git_blob(there[path])
        answers.append(answer)
    request.send_json({"files": answers})


def lfs_batch(request: "Handler", repo: str):
    asked = json.loads(request.body)
    if contributor(request, repo, asked["ref"]["name"]) is None:
        return
    hub, objects = request.hub, []
    for wanted in asked["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        answer = {"oid": oid, "size": size}
        if oid not in hub.objects:
            where = f"{hub.storage}/lfs/{oid}?signature=abc123"
            upload = {"href": where}
            if hub.part_size and size > hub.part_size:
                count = -(-size // hub.part_size)
                parts = {f"{n:05}": f"{hub.storage}/lfs/{oid}/{n}?signature=abc123" for n in range(1, count + 1)}
                upload = {
                    "href": f"{hub.url}/lfs-complete/{oid}",
                    "header": {"chunk_size": str(hub.part_size), **parts},
                }
            answer["actions"] = {"upload": upload, "verify": {"href": f"{hub.url}/lfs-verify"}}
        objects.append(answer)
    request.send_json({"transfer": "basic", "objects": objects})


def lfs_put(request: "Handler", oid: str, part: str = ""):
    if "Authorization" in request.headers:
        return request.send(400, b"Only one auth mechanism allowed")
    if part:
        request.hub.parts[oid, int(part)] = request.body
        return request.send(200, b"", {"ETag": f'"{sha256(request.body)}"'})
    if sha256(request.body) != oid:
        return request.send(400, b"XAmzContentSHA256Mismatch")
    request.hub.objects[oid] = Large(request.body)
    request.send(200, b"", {"ETag": f'"{oid}"'})


def lfs_complete(request: "Handler", oid: str):
    parts = json.loads(request.body)["parts"]
    content = b"".join(request.hub.parts.pop((oid, part["partNumber"]), b"") for part in parts)
    if sha256(content) != oid:
        return request.send(400, b"Mismatch")
    request.hub.objects[oid] = Large(content)
    request.send_json({})


def lfs_verify(request: "Handler"):
    if request.account() is None:
        return request.refuse_credentials()
    asked = json.loads(request.body)
    there = request.hub.objects.get(asked["oid"])
    request.send(200 if there is not None and len(there) == asked["size"] else 404)


def xet_token(request: "Handler", repo: str, kind: str, revision: str):
    if request.hub.xet is None:
        return request.refuse(404, None)
    if kind == "write" and contributor(request, repo, revision) is None:
        return
    body = json.dumps(request.hub.xet.connection()).encode()
    request.send(200, body, {"Content-Type": "application/json", **request.hub.xet.headers()})


def _stored(request: "Handler", oid: str, size: int) -> Large | None:
    """A large object that was uploaded, by either way."""
    hub = request.hub
    if oid not in hub.objects and hub.xet is not None and (xet_hash := hub.xet.hash_of(oid)):
        content = hub.xet.read(xet_hash, size)
        if sha256(content) == oid:
            hub.objects[oid], hub.xet_hashes[oid] = Large(content), xet_hash
    return hub.objects.get(oid)


def commit(request: "Handler", repo: str, revision: str):
    if (who := contributor(request, repo, revision)) is None or (found := request.open(repo, revision)) is None:
        return
    if revision not in found.branches:
        return request.refuse(400, None, f"{revision} is no branch")
    lines = [json.loads(line) for line in request.body.splitlines()]
    header = lines[0]["value"]
    files = dict(found.snapshots[found.oid(revision)])
    if header.get("parentCommit", found.oid(revision)) != found.oid(revision):
        return request.refuse(412, None, "A commit has happened since. Please refresh and try again.")
    for line in lines[1:]:
        kind, value = line["key"], line["value"]
        if kind == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            content = _stored(request, value["oid"], value["size"])
            if content is None:
                return request.refuse(400, None, f"Your push was rejected: no LFS object {value['oid']}")
            files[value["path"]] = content
        elif kind == "deletedFile":
            if files.pop(value["path"], None) is None:
                return request.refuse(404, "EntryNotFound", "A file with this name doesn't exist")
        elif kind == "deletedFolder":
            files = {path: content for path, content in files.items() if not path.startswith(f"{value['path']}/")}
    problems = check_card(files.get("README.md", b"").decode())
    if problems:
        return request.send_json({"error": "; ".join(problems)}, 400)
    files = {path: content for path, content in files.items() if path not in request.hub.forgotten}
    made = found.add(revision, header["summary"], files, who["name"])
    request.send_json(
        {"success": True, "commitOid": made.oid, "commitUrl": f"{request.hub.url}/{repo}/commit/{made.oid}"}
    )


def commits(request: "Handler", repo: str, revision: str):
    if (found := request.open(repo, revision)) is not None:
        request.send_json([
            {"id": made.oid, "title": made.title, "message": "", "date": CREATED, "authors": [{"user": made.author}]}
            for made in reversed(found.log)
        ])  # fmt: skip


def refs(request: "Handler", repo: str):
    if (found := request.open(repo, "main")) is None:
        return

    def listed(names: dict[str, str], prefix: str, pulls: bool = False):
        return [
            {"name": name, "ref": f"{prefix}{name}", "targetCommit": oid}
            for name, oid in names.items()
            if name.startswith("refs/pr/") is pulls
        ]

    request.send_json({
        "branches": listed(found.branches, "refs/heads/"), "tags": listed(found.versions, "refs/tags/"),
        "converts": [], "pullRequests": listed(found.branches, "", True),
    })  # fmt: skip


def make_branch(request: "Handler", repo: str, branch: str):
    if writer(request, repo) is None or (found := request.open(repo, "main")) is None:
        return
    start = json.loads(request.body or b"{}").get("startingPoint", "main")
    if branch in found.branches:
        return request.refuse(409, None, f"Reference already exists: refs/heads/{branch}")
    found.branches[branch] = found.oid(start)
    request.send_json({})


def make_tag(request: "Handler", repo: str, revision: str):
    if writer(request, repo) is None or (found := request.open(repo, revision)) is None:
        return
    tag = json.loads(request.body)["tag"]
    if tag in found.versions:
        return request.refuse(409, None, f"Tag reference exists already: refs/tags/{tag}")
    found.versions[tag] = found.oid(revision)
    request.send_json({})


def _discussion(repo: str, pull: Pull) -> dict:
    return {
        "title": pull.title, "num": pull.number, "author": {"name": pull.author}, "createdAt": CREATED,
        "status": pull.status, "repo": {"name": repo, "type": "model"}, "isPullRequest": True,
        "changes": {"base": "refs/heads/main"}, "filesWithConflicts": [], "events": [],
    }  # fmt: skip


def discussions(request: "Handler", repo: str):
    if (found := request.open(repo, "main")) is None:
        return
    asked = parse_qs(urlsplit(request.path).query)
    wanted = [
        _discussion(repo, pull)
        for pull in found.pulls
        if pull.author in asked.get("author", [pull.author])
        and (asked.get("status") != ["open"] or pull.status in ("open", "draft"))
    ]
    request.send_json({"discussions": wanted, "count": len(wanted), "start": 0})


def discussion(request: "Handler", repo: str, number: str):
    if (found := request.open(repo, "main")) is not None:
        request.send_json(_discussion(repo, found.pulls[int(number) - 1]))


def open_pull(request: "Handler", repo: str):
    if (who := request.account()) is None:
        return request.refuse_credentials()
    if (found := request.open(repo, "main")) is None:
        return
    asked = json.loads(request.body)
    pull = Pull(len(found.pulls) + 1, asked["title"], who["name"], asked["description"])
    found.pulls.append(pull)
    found.branches[f"refs/pr/{pull.number}"] = found.oid("main")
    request.send_json(_discussion(repo, pull))


def validate_yaml(request: "Handler"):
    problems = check_card(json.loads(request.body)["content"])
    if problems:
        return request.send_json({"errors": [{"message": problem} for problem in problems], "warnings": []}, 400)
    request.send_json({"errors": [], "warnings": []})


def check_card(text: str) -> list[str]:
    """What the documented rules of a model card's front matter say against `text`."""
    match = re.match(r"---\n(.*?)\n---(\n|$)", text, re.DOTALL)
    if match is None:
        return []
    try:
        card = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"invalid YAML: {error}"]
    if not isinstance(card, dict):
        return ["the front matter is no mapping"]
    problems = []

    def check(key: str, holds, rule: str):
        if key in card and not holds(card[key]):
            problems.append(f'"{key}" {rule}')

    def strings(value) -> bool:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)

    def results(value) -> bool:
        return all(
            model.get("name")
            and all(
                result["task"]["type"]
                and result["dataset"]["type"]
                and result["dataset"]["name"]
                and all("type" in metric and "value" in metric for metric in result["metrics"])
                for result in model["results"]
            )
            for model in value
        )

    check("license", lambda value: value in LICENCES, "must be one of the known licences")
    check("license", lambda value: value != "other" or "license_name" in card, 'other needs "license_name"')
    check("license_name", lambda _: card.get("license") == "other", 'is only allowed when "license" is other')
    check("license_name", lambda value: re.fullmatch(r"[a-z0-9.+-]+", value), "must be lower case with hyphens")
    check("tags", strings, "must be a list of strings")
    check("base_model", lambda value: all("/" in one for one in ([value] if isinstance(value, str) else value)), "id")
    check("base_model_relation", lambda value: value in RELATIONS, f"must be one of {sorted(RELATIONS)}")
    check("library_name", lambda value: isinstance(value, str), "must be a string")
    check("pipeline_tag", lambda value: value in {"text-to-image", "image-to-image"}, "must be a known task")
    check("thumbnail", lambda value: isinstance(value, str), "must be a URL")
    check("widget", lambda value: all("text" in one or "output" in one for one in value), "must hold examples")
    try:
        check("model-index", results, "must hold results with task, dataset and metrics")
    except (KeyError, TypeError, AttributeError) as error:
        problems.append(f'"model-index" lacks {error}')
    return problems


def _collection(slug: str, items: list[dict]) -> dict:
    return {
        "slug": slug, "title": "HSWQ", "owner": {"name": slug.split("/")[0]}, "items": items, "lastUpdated": CREATED,
        "position": 0, "private": False, "theme": "green", "upvotes": 0,
    }  # fmt: skip


def collection(request: "Handler", slug: str):
    items = request.hub.collections.get(slug)
    return request.refuse(404, None) if items is None else request.send_json(_collection(slug, items))


def add_to_collection(request: "Handler", slug: str):
    if writer(request, slug) is None:
        return
    items, item = request.hub.collections.get(slug), json.loads(request.body)["item"]
    if items is None or item["id"] not in request.hub.repos:
        return request.refuse(404, None)
    if any(known["id"] == item["id"] for known in items):
        return request.refuse(409, None)
    items.append({"_id": str(len(items)), "id": item["id"], "type": item["type"], "position": len(items)})
    request.send_json(_collection(slug, items))


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_OF = rf"/api/models/{_REPO}"
_SLUG = r"(?P<slug>[\w.-]+/[\w.-]+)"
WRITING = [
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/repos/create", create_repo),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("GET", rf"/api/collections/{_SLUG}", collection),
    ("POST", rf"/api/collections/{_SLUG}/items", add_to_collection),
    ("PUT", rf"{_OF}/settings", settings),
    ("GET", rf"{_OF}/auth-check/write", auth_check),
    ("POST", rf"{_OF}/preupload/(?P<revision>[^/]+)", preupload),
    ("POST", rf"{_OF}/commit/(?P<revision>[^/]+)", commit),
    ("GET", rf"{_OF}/commits/(?P<revision>[^/]+)", commits),
    ("GET", rf"{_OF}/refs", refs),
    ("POST", rf"{_OF}/branch/(?P<branch>[^/]+)", make_branch),
    ("POST", rf"{_OF}/tag/(?P<revision>[^/]+)", make_tag),
    ("GET", rf"{_OF}/discussions", discussions),
    ("POST", rf"{_OF}/discussions", open_pull),
    ("GET", rf"{_OF}/discussions/(?P<number>\d+)", discussion),
    ("GET", rf"{_OF}/xet-(?P<kind>read|write)-token/(?P<revision>[^/]+)", xet_token),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", r"/lfs/(?P<oid>\w{64})(?:/(?P<part>\d+))?", lfs_put),
    ("POST", r"/lfs-complete/(?P<oid>\w{64})", lfs_complete),
    ("POST", r"/lfs-verify", lfs_verify),
]
