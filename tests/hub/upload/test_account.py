"""What an account may do, and what of a closed source is shown: both are checked before anything is sent."""

from dataclasses import replace

import pytest
from support.hub_server import TOKEN, Repo, account
from support.uploading import OPTIONS, REPO, UNCHECKED, asked, change_record, contents, held, run, use

from hswq_hub.common.targets import TargetError
from hswq_hub.hub.client import AccountError, UploadError
from hswq_hub.hub.destination import check_upload
from hswq_hub.hub.settings import UploadSettings
from hswq_hub.hub.upload import upload
from hswq_hub.sources.find import resolve

pytestmark = pytest.mark.usefixtures("shared_home")


READER = account("alice", "read")
SCOPED = account("alice", "fineGrained", scoped={"bob": ["repo.write"], "alice": ["repo.content.read"]})
MEMBER = account("alice", orgs={"acme": "read"})
REFUSED = {
    "no token": (None, REPO, {}, AccountError, "no Hugging Face token here.*hf auth login"),
    "odd token": ("hf_with blank", REPO, {}, AccountError, "blanks or odd characters"),
    "unknown token": ("hf_unknown", REPO, {}, AccountError, "does not accept the token.*hf auth login"),
    "read token": (READER, REPO, {}, AccountError, "token of alice can only read.*settings/tokens"),
    "fine-grained": (SCOPED, REPO, {}, AccountError, "fine-grained token of alice may not write to the repos of alice"),
    "stranger": (MEMBER, "bob/demo", {}, AccountError, "alice is not a member of bob"),
    "reader": (MEMBER, "acme/demo", {}, AccountError, "alice may only read in acme.*write or contributor"),
    "name": (TOKEN, "demo", {}, UploadError, "demo is no name of a Hub repo"),
    "odd name": (TOKEN, "alice/a..b", {}, UploadError, "a..b is no name of a Hub repo"),
    "both": (TOKEN, REPO, {"create_pr": True, "revision": "x"}, UploadError, "leave out --revision or --pr"),
    "no repo": (TOKEN, REPO, {"create_pr": True}, UploadError, "no repo alice/demo-hswq that a pull request"),
    "collection": (TOKEN, REPO, {"collection": "alice/none-1"}, UploadError, "no collection alice/none-1"),
    "foreign": (TOKEN, "alice/foreign", {}, TargetError, r"did not make \(README.md\).*--force"),
    "tag": (TOKEN, "alice/ours", {"revision": "v1"}, UploadError, "v1 is a tag"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_said_before_anything_is_done(hub, monkeypatch, case):
    who, repo, options, error, sentence = REFUSED[case]
    hub.repos["alice/foreign"] = Repo({"model.safetensors": b"mine", "README.md": b"# Mine"})
    hub.repos["alice/ours"] = Repo({"hswq.json": b'{"tool": "hswq-hub 0.0.1"}'})
    hub.repos["alice/ours"].versions["v1"] = hub.repos["alice/ours"].commit
    hub.repos["alice/source"] = Repo({"model.safetensors": b"24 GB"})
    use(hub, monkeypatch, who)
    with pytest.raises(error, match=sentence):
        check_upload(UploadSettings(repo, **options))
    command = ["publish", "alice/source", "--repo", repo]
    command += ["--pr"] * ("create_pr" in options)
    for name in ("revision", "collection"):
        command += [f"--{name}", options[name]] if name in options else []
    result = run(*command)
    assert result.exit_code == 2 and result.output.startswith("Error: ") and result.output.count("\n") == 1
    assert not asked(hub, "GET", "source"), "the model is not even looked up"
    assert {seen.method for seen in hub.seen} <= {"GET", "HEAD"}


ALLOWED = {
    "organisation": (account("alice", orgs={"acme": "write"}), "acme/demo"),
    "contributor": (account("alice", orgs={"acme": "contributor"}), "acme/demo"),
    "fine-grained": (account("alice", "fineGrained", scoped={"alice": ["repo.write"]}), REPO),
    "other case": (account("Alice"), REPO),
    "empty": (TOKEN, "alice/empty"),
    "ours": (TOKEN, "alice/ours"),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_who_may(hub, monkeypatch, case):
    who, repo = ALLOWED[case]
    hub.repos["alice/empty"] = Repo.created("alice/empty", private=False)
    hub.repos["alice/ours"] = Repo({"hswq.json": b'{"tool": "hswq-hub 0.0.1"}', "a.safetensors": b"", "b": b""})
    use(hub, monkeypatch, who)
    found = check_upload(UploadSettings(repo))
    assert (found.record is not None) is (case == "ours") and (found.head is None) is (repo not in hub.repos)


def test_one_may_not_write_to_a_repo_although_one_may_to_its_owners(hub, monkeypatch, folder):
    hub.repos[REPO] = Repo.created(REPO, private=False)
    use(hub, monkeypatch, account("alice", "fineGrained", scoped={"alice/other": ["repo.write"]}))
    with pytest.raises(AccountError, match=r"alice may not write to alice/demo-hswq.*--pr"):
        upload(folder, UNCHECKED)


def test_a_foreign_repo_keeps_its_files_when_forced(hub, folder):
    hub.repos[REPO] = Repo({"theirs.bin": b"years of work", "README.md": b"# Theirs"})
    upload(folder, replace(UNCHECKED, force=True))
    assert held(hub) == {**contents(folder), "theirs.bin": b"years of work"}


@pytest.mark.parametrize(
    ("source", "settings", "private", "gated"),
    [
        ({"gated": "manual"}, {}, False, "manual"),
        ({"gated": "auto"}, {}, False, "auto"),
        ({"private": True}, {}, True, False),
        ({"gated": "auto"}, {"private": True}, True, False),
        ({"gated": "auto"}, {"gated": False}, False, False),
        ({"private": True}, {"private": False}, False, False),
        ({}, {"private": True, "gated": True}, True, "auto"),
    ],
    ids=str,
)
@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_what_is_made_of_a_closed_source_is_closed(hub, folder, source, settings, private, gated, there):
    if there:
        hub.repos[REPO] = Repo.created(REPO, private=False)
    change_record(folder, **source)
    upload(folder, replace(UNCHECKED, **settings))
    assert (hub.repos[REPO].private, hub.repos[REPO].gated) == (private, gated)
    settings_at = [i for i, seen in enumerate(hub.seen) if "/settings" in seen.path]
    sent_at = [i for i, seen in enumerate(hub.seen) if "/preupload/" in seen.path]
    assert max(settings_at, default=0) < min(sent_at), "closed before anything is in it"


def test_no_pull_request_shows_what_its_source_does_not(hub, folder):
    hub.repos[REPO] = Repo.created(REPO, private=False)
    change_record(folder, gated="auto")
    with pytest.raises(UploadError, match="would show to all"):
        upload(folder, replace(UNCHECKED, create_pr=True))
    assert not hub.repos[REPO].pulls


def test_from_a_gated_repo_to_a_gated_repo(hub, tmp_path):
    """Issue by issue: found gated, recorded as such, published as such."""
    demo = resolve("demo")
    hub.repos["bob/gated"] = Repo({"bob.safetensors": demo.path.read_bytes()}, gated="manual")
    command = ["publish", "bob/gated", *OPTIONS, "--format", "v1", "--base", demo.base, "--folder", tmp_path / "out"]
    result = run(*command, "--repo", "alice/bob-hswq", "--no-verify")
    assert result.exit_code == 0, result.output
    assert hub.repos["alice/bob-hswq"].gated == "manual" and held(hub, "alice/bob-hswq") == contents(tmp_path / "out")
