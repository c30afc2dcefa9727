"""From a folder to a Hub repo and back: the real client against a server that speaks the Hub's protocol."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.hub_server import CUT, HANG, LOST, TOKEN, HubServer, Repo, account
from support.hub_store import sha256

from hswq_hub.cards.card import Card, write_card
from hswq_hub.cli.main import main
from hswq_hub.common.targets import TargetError
from hswq_hub.generation.generate import generate, generation_settings
from hswq_hub.hub.client import AccountError, UploadError, VerificationError
from hswq_hub.hub.destination import check_upload
from hswq_hub.hub.history import earlier_versions, version_tag
from hswq_hub.hub.settings import UploadSettings
from hswq_hub.hub.upload import upload
from hswq_hub.settings import CalibrationSettings, EvaluationSettings, PublishSettings, recipe
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.publish import publish
from hswq_runtime import Format, HSWQPipeline
from hswq_runtime.errors import FormatError

QUICK = PublishSettings(
    recipe=recipe("hswq"),
    calibration=CalibrationSettings(samples=1, steps=1),
    evaluation=EvaluationSettings(pairs=2, steps=1),
)
OPTIONS = ["--recipe", "hswq", "--samples", "1", "--steps", "1", "--pairs", "2", "--picture-steps", "1"]
pytestmark = pytest.mark.usefixtures("shared_home")
REPO = "alice/demo-hswq"
UNCHECKED = UploadSettings(REPO, verify=False)


@pytest.fixture(scope="module")
def published(home, tmp_path_factory):
    target = tmp_path_factory.mktemp("published") / "demo-hswq"
    publish(resolve("demo"), target, QUICK, command="hswq-hub publish demo")
    return target


@pytest.fixture
def make(published, tmp_path_factory):
    """The published demo, or only one format of it: each time a copy, since an upload completes record and card."""

    def make(wanted: Format | None = None):
        folder = shutil.copytree(published, tmp_path_factory.mktemp("copy") / "demo-hswq")
        for other in set(Format) - {wanted} if wanted else ():
            record, metrics = record_of(folder), metrics_of(folder)
            name = record["files"].pop(other.value)["file"]
            del record["layers"][other.value]
            record["contents"].remove(name)
            metrics["variants"] = [variant for variant in metrics["variants"] if variant["label"] != other.label]
            (folder / name).unlink()
            (folder / "hswq.json").write_text(json.dumps(record))
            (folder / "metrics.json").write_text(json.dumps(metrics))
            write_card(folder)
        return folder

    return make


@pytest.fixture
def folder(make):
    return make()


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were to be waited between tries."""
    waits: list[float] = []
    clock = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=waits.append)
    monkeypatch.setattr("hswq_hub.common.retry.sleep", waits.append)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    return waits


@pytest.fixture
def hub(tmp_path, monkeypatch, waits, capfd, caplog):
    """A Hub for this process. Afterwards all that was said and sent is searched for the token."""
    caplog.set_level("DEBUG")
    caplog.set_level("DEBUG", logger="huggingface_hub")
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer(xet=tmp_path / "xet-store") as server:
        server.adopt(monkeypatch, tmp_path / "hf")
        yield server
        check_nothing_leaks(server)
    printed, logged = "".join(capfd.readouterr()), caplog.get_records("call")
    said = printed + "\n".join(record.getMessage() for record in logged)
    assert TOKEN not in said
    assert server.url in said or not server.seen, "requests are logged, and that is searched"
    signed = [record for record in logged if "signature=" in record.getMessage()]
    assert "signature=" not in printed
    assert not [record for record in signed if record.levelno > logging.DEBUG], "what is on the wire is for DEBUG"


def check_nothing_leaks(server):
    home = server.url.removeprefix("http://")
    for seen in server.seen:
        assert TOKEN not in seen.path and TOKEN.encode() not in seen.body
        carrying = {name for name, value in seen.headers.items() if TOKEN in value}
        assert carrying <= ({"Authorization"} if seen.host == home else set())
    for repo in server.repos.values():
        assert not any(TOKEN.encode() in content for content in repo.files.values())


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def held(server, repo=REPO) -> dict[str, bytes]:
    return {path: bytes(data) for path, data in server.repos[repo].files.items() if path != ".gitattributes"}


def record_of(folder) -> dict:
    return json.loads((folder / "hswq.json").read_text())


def metrics_of(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def change_record(folder, **source):
    record = record_of(folder)
    record["source"] |= source
    (folder / "hswq.json").write_text(json.dumps(record))


def run(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert TOKEN not in result.output
    return result


def picture(pipeline):
    how = generation_settings(pipeline, resolve("demo").checkpoint.architecture, steps=2)
    return generate(pipeline, "a large red ring at the left on a blue background", 5, how).image


def asked(server, method, part) -> list:
    return [seen for seen in server.seen if seen.method == method and part in seen.path]


def test_from_one_command_to_the_same_pictures_for_a_stranger(hub, tmp_path, caplog):
    target = tmp_path / "out"
    result = run("publish", "demo", *OPTIONS, "--folder", target, "--repo", REPO, "--yes")
    assert result.exit_code == 0, result.output
    repo = hub.repos[REPO]
    assert held(hub) == contents(target), "the folder is what is in the repo"
    (commit,) = repo.log
    record, metrics = record_of(target), metrics_of(target)
    for label in ("V1", "V2"):
        mean = next(v["ssim_mean"] for v in metrics["variants"] if v["label"] == label)
        assert f"{label} SSIM {mean:.4f}" in commit.title and "recipe hswq" in commit.title
    tag = version_tag(record, metrics)
    assert repo.versions == {tag: commit.oid}
    for said in (f"{hub.url}/{REPO}\n", commit.oid, tag, f"{len(held(hub))} files", "v1 and v2 loaded back"):
        assert said in result.output
    assert f'from_pretrained("{REPO}")' in held(hub)["README.md"].decode()
    assert not repo.private and not repo.gated
    caplog.set_level("WARNING")  # from here on it is somebody else's program
    for variant in ("v1", "v2"):
        theirs = HSWQPipeline.from_pretrained(REPO, variant=variant, dtype=torch.float32)
        ours = HSWQPipeline.from_pretrained(target, variant=variant, dtype=torch.float32)
        assert np.array_equal(picture(theirs), picture(ours))


def test_through_xet(hub, folder, monkeypatch, tmp_path):
    hub.adopt(monkeypatch, tmp_path / "hf", xet=True)
    uploaded = upload(folder, UploadSettings(REPO))
    assert held(hub) == contents(folder) and uploaded.loaded == ("v1", "v2")
    assert asked(hub, "GET", "xet-write-token") and asked(hub, "GET", "xet-read-token")
    assert not asked(hub, "POST", "/lfs/objects/batch") and not asked(hub, "PUT", "/lfs/")
    assert upload(folder, UploadSettings(REPO, verify=False)).commit == uploaded.commit


def test_a_hub_without_xet_says_what_to_set(hub, folder, monkeypatch, tmp_path):
    hub.adopt(monkeypatch, tmp_path / "hf", xet=True)
    hub.xet = None
    with pytest.raises(UploadError, match="HF_HUB_DISABLE_XET=1"):
        upload(folder, UNCHECKED)


def test_in_parts(hub, folder):
    hub.part_size = 1_000_000
    upload(folder, UNCHECKED)
    assert held(hub) == contents(folder) and asked(hub, "POST", "/lfs-complete/")


def test_nothing_is_sent_twice(hub, folder):
    first = upload(folder, UNCHECKED)
    sent = len(asked(hub, "PUT", "/lfs/"))
    again = upload(folder, UNCHECKED)
    assert again == first and len(asked(hub, "PUT", "/lfs/")) == sent and len(hub.repos[REPO].log) == 1


def test_killed_in_the_upload_and_run_again(hub, folder, tmp_path):
    """One of the large files is on its way when the process dies."""
    hub.fail("PUT", "/lfs/", HANG)
    child = {**os.environ, **hub.environment(tmp_path / "child"), "HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "hswq_hub", "upload", str(folder), "--repo", REPO, "--no-verify", "--yes"]
    with subprocess.Popen(command, env=child, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert hub.reached.wait(60)
        process.send_signal(signal.SIGKILL)
        assert TOKEN.encode() not in process.stdout.read()
    hub.release.set()
    assert process.returncode == -signal.SIGKILL and hub.repos[REPO].log == []
    result = run("upload", folder, "--repo", REPO, "--no-verify", "--yes")
    assert result.exit_code == 0, result.output
    assert held(hub) == contents(folder) and len(hub.repos[REPO].log) == 1


@pytest.mark.parametrize(
    ("method", "where", "answer"),
    [
        ("GET", "/api/whoami-v2", 503),
        ("POST", "/api/repos/create", 429),
        ("POST", "/api/repos/create", LOST),
        ("POST", "/api/validate-yaml", 502),
        ("POST", "/preupload/", 500),
        ("POST", "/objects/batch", CUT),
        ("PUT", "/lfs/", 503),
        ("PUT", "/lfs/", 403),
        ("PUT", "/lfs/", CUT),
        ("POST", "/commit/", 429),
        ("POST", "/commit/", CUT),
        ("POST", "/commit/", LOST),
        ("POST", "/commit/", 412),
        ("GET", "/tree/", 500),
        ("POST", "/tag/", LOST),
        ("GET", "/refs", CUT),
    ],
    ids=str,
)
def test_a_busy_hub_and_broken_connections_are_waited_for(hub, folder, waits, method, where, answer):
    hub.fail(method, where, answer, times=2, headers={"Retry-After": "7"} if answer == 429 else {})
    uploaded = upload(folder, UNCHECKED)
    assert held(hub) == contents(folder)
    assert (
        [commit.oid for commit in hub.repos[REPO].log] == [uploaded.commit] == list(hub.repos[REPO].versions.values())
    )
    assert waits or answer == 412
    assert answer != 429 or waits == [8, 8], "as long as the Hub asks"


def test_xet_commits_survive_a_lost_answer(hub, folder, monkeypatch, tmp_path):
    hub.adopt(monkeypatch, tmp_path / "hf", xet=True)
    hub.fail("POST", "/commit/", LOST)
    uploaded = upload(folder, UNCHECKED)
    assert [commit.oid for commit in hub.repos[REPO].log] == [uploaded.commit]


@pytest.mark.parametrize(
    ("answer", "headers", "sentence"),
    [
        (503, {}, "answers 503 for alice/demo-hswq; run the same command again later"),
        (429, {"Retry-After": "3000"}, "asks for patience .* again in 3001 seconds"),
        (CUT, {}, "cannot be reached .* connection broke"),
        (
            403,
            {"X-Error-Message": f"Bearer {TOKEN} may not"},
            r"may not do this on alice/demo-hswq \(Bearer … may not .*\)",
        ),
        (400, {"X-Error-Message": "too big"}, r"refuses \(answer 400\) .*\(too big .*\)"),
    ],
    ids=str,
)
def test_what_does_not_pass_is_one_sentence(hub, folder, answer, headers, sentence, monkeypatch):
    # On the wire this Hub itself says the token, and what is on the wire is for DEBUG.
    monkeypatch.setattr(logging.getLogger("httpcore2"), "disabled", True)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("httpcore2"):
            monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    hub.fail("POST", "/api/repos/create", answer, times=99, headers=headers)
    with pytest.raises(UploadError, match=sentence):
        upload(folder, UNCHECKED)
    assert REPO not in hub.repos


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


def use(hub, monkeypatch, who):
    """Make `who` the account of this process: a token, or what whoami answers for one."""
    if isinstance(who, dict):
        hub.accounts["hf_other"], who = who, "hf_other"
    monkeypatch.setenv("HF_TOKEN", who) if who else monkeypatch.delenv("HF_TOKEN")


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


def test_versions_follow_each_other_and_none_is_lost(hub, make, folder):
    """V1 alone, then V2 alone, then both, then another checkpoint."""
    repo = hub.repos[REPO] = Repo.created(REPO, private=False)
    one, two = make(Format.V1), make(Format.V2)
    tags = [upload(one, UNCHECKED).tag]
    figures = {"v1": metrics_of(one)["variants"][-1]["ssim_mean"], "v2": metrics_of(two)["variants"][-1]["ssim_mean"]}
    tags.append(upload(two, UNCHECKED).tag)
    assert held(hub) == {**contents(two), "demo-hswq-v1.safetensors": contents(one)["demo-hswq-v1.safetensors"]}
    (earlier,) = record_of(two)["earlier"]
    assert earlier["tag"] == tags[0] and earlier["files"]["v1"]["ssim_mean"] == figures["v1"]
    section = (two / "README.md").read_text().split("### Earlier versions")[1].split("## ")[0]
    assert tags[0] in section and f"{figures['v1']:.4f}" in section and "v1.safetensors`, still here" in section
    opened = HSWQPipeline.from_pretrained(REPO, variant="v1")
    assert opened.transformer.layers[0].feed_forward.w1.scale is None

    tags.append(upload(folder, UNCHECKED).tag)
    assert held(hub) == contents(folder)
    assert [entry["tag"] for entry in record_of(folder)["earlier"]] == [tags[1], tags[0]]
    section = (folder / "README.md").read_text().split("### Earlier versions")[1].split("## ")[0]
    assert f"{figures['v1']:.4f}" in section and f"{figures['v2']:.4f}" in section and "still here" not in section
    assert Card.from_folder(folder).render() == (folder / "README.md").read_text()

    change_record(two, sha256="0" * 64)
    tags.append(upload(two, UNCHECKED).tag)
    assert held(hub) == contents(two), "files of another checkpoint would be taken for this one's"
    assert [entry["tag"] for entry in record_of(two)["earlier"]] == [tags[2], tags[1], tags[0]]
    assert len(set(tags)) == 4 and list(repo.versions) == tags
    for commit, tag in zip(repo.log, tags, strict=True):
        assert repo.versions[tag] == commit.oid, "tags stay where they were put"


def test_a_file_of_another_checkpoint_does_not_stay_for_its_name(hub, make):
    """One checkpoint as V1, another as V1 under the same name, then the first one as V2."""
    one, other, two = make(Format.V1), make(Format.V1), make(Format.V2)
    change_record(other, sha256="0" * 64)
    record = record_of(other)
    data = (other / "demo-hswq-v1.safetensors").read_bytes() + b"of another"
    (other / "demo-hswq-v1.safetensors").write_bytes(data)
    record["files"]["v1"] |= {"sha256": sha256(data), "bytes": len(data)}
    (other / "hswq.json").write_text(json.dumps(record))
    for folder in (one, other, two):
        upload(folder, UNCHECKED)
    assert held(hub) == contents(two)
    assert not any(file["here"] for entry in record_of(two)["earlier"] for file in entry["files"].values())


def test_a_version_whose_run_died_before_its_tag_has_one_later(hub, make, folder):
    one = make(Format.V1)
    first = upload(one, UNCHECKED)
    hub.repos[REPO].versions.clear()
    upload(folder, UNCHECKED)
    assert hub.repos[REPO].versions[first.tag] == first.commit


def test_what_decides_on_a_version(folder):
    record, metrics = record_of(folder), metrics_of(folder)
    tag = version_tag(record, metrics)
    metrics["protocol"]["hardware"] = "another"
    for variant in metrics["variants"]:
        variant["seconds_mean"] += 1
    assert version_tag({**record, "repo": "alice/x", "earlier": []}, metrics) == tag
    changes = [
        ({"tool": "hswq-hub 9.9"}, {}),
        ({"recipe": {**record["recipe"], "budget": 0.7}}, {}),
        ({}, {"variants": [{**v, "ssim_mean": 0.5} for v in metrics["variants"]]}),
    ]
    assert len({tag, *(version_tag({**record, **r}, {**metrics, **m}) for r, m in changes)}) == 4
    assert tag.startswith("hswq-0.")


def test_a_history_that_somebody_tampered_with_is_no_way_in(folder):
    record, metrics = record_of(folder), metrics_of(folder)
    changed = {**record, "tool": "hswq-hub 0.0.1"}
    (good,) = earlier_versions(record, metrics, changed, metrics)
    assert good["tool"] == "hswq-hub 0.0.1"
    file = good["files"]["v1"]
    bad = [
        None, "x", {}, {**good, "tag": "../main"}, {**good, "files": {"v9": file}}, {**good, "pairs": "many"},
        {**good, "files": {"v1": {**file, "file": "../../README.md"}}},
        {**good, "files": {"v1": {**file, "ssim_mean": "<script>"}}},
    ]  # fmt: skip
    for listed in (bad, "nonsense", {"a": 1}):
        assert earlier_versions(record, metrics, {**changed, "earlier": listed}, metrics) == [good]
    assert earlier_versions(record, metrics, {"tool": "hswq-hub"}, {"variants": 5}) == []


def test_one_pull_request_however_often(hub, monkeypatch, folder):
    hub.repos[REPO] = Repo.created(REPO, private=False)
    before = held(hub)
    use(hub, monkeypatch, account("carol"))
    hub.fail("POST", "/commit/", 403)
    proposal = UploadSettings(REPO, create_pr=True)
    with pytest.raises(AccountError):
        upload(folder, proposal)
    uploaded = upload(folder, proposal)
    repo = hub.repos[REPO]
    assert [pull.author for pull in repo.pulls] == ["carol"] and repo.branches["refs/pr/1"] == uploaded.commit
    assert uploaded.url.endswith(f"{REPO}/discussions/1") and uploaded.tag is None and uploaded.loaded == ("v1", "v2")
    assert held(hub) == before and repo.versions == {}
    assert repo.snapshots[uploaded.commit].keys() == {".gitattributes", *contents(folder)}


def test_to_a_branch(hub, folder):
    uploaded = upload(folder, replace(UNCHECKED, revision="wip"))
    assert held(hub) == {} and hub.repos[REPO].branches["wip"] == uploaded.commit and uploaded.tag is None
    assert uploaded.url.endswith("/tree/wip")
    assert upload(folder, replace(UNCHECKED, revision="wip")).commit == uploaded.commit


def test_into_a_collection(hub, folder):
    slug = "alice/hswq-0123456789abcdef01234567"
    hub.collections[slug] = []
    for wanted in (slug, f"{hub.url}/collections/{slug}"):
        upload(folder, replace(UNCHECKED, collection=wanted))
        assert [item["id"] for item in hub.collections[slug]] == [REPO]


def test_what_arrived_otherwise_is_not_tagged(hub, folder):
    hub.forgotten = {"metrics.json"}
    with pytest.raises(VerificationError, match=r"lacks metrics.json"):
        upload(folder, UNCHECKED)
    hub.forgotten, hub.corrupt = set(), {"demo-hswq-v2.safetensors"}
    with pytest.raises(VerificationError, match=r"demo-hswq-v2.safetensors"):
        upload(folder, UploadSettings(REPO))
    assert hub.repos[REPO].versions == {}
    hub.corrupt = set()
    upload(folder, UNCHECKED)
    assert held(hub) == contents(folder) and len(hub.repos[REPO].versions) == 1


def test_a_card_that_the_hub_refuses(hub, folder):
    record = record_of(folder)
    (folder / "hswq.json").write_text(json.dumps({**record, "licence": "bogus"}))
    with pytest.raises(UploadError, match=r'front matter: .*"license" must be one of the known licences'):
        upload(folder, UNCHECKED)


def test_only_what_was_made_is_uploaded(hub, folder, tmp_path):
    secret = folder.parent / "secret"
    (folder / "notes.txt").write_text("mine")
    secret.write_text("private")
    upload(folder, UNCHECKED)
    assert "notes.txt" not in held(hub)
    for name in ("../secret", str(secret), "images/none.png", "link"):
        if name == "link":
            (folder / "link").symlink_to(secret)
        record = record_of(folder)
        (folder / "hswq.json").write_text(json.dumps({**record, "contents": [*record["contents"], name]}))
        with pytest.raises(FormatError, match="lacks"):
            upload(folder, UNCHECKED)
        (folder / "hswq.json").write_text(json.dumps(record))
    with pytest.raises(FormatError, match="cannot be read"):
        upload(tmp_path, UNCHECKED)
    (tmp_path / "hswq.json").write_text("{}")
    with pytest.raises(FormatError, match="no folder that"):
        upload(tmp_path, UNCHECKED)


def test_upload_options_without_a_repo_are_a_mistake():
    for option in (["--pr"], ["--private"], ["--no-gated"], ["--no-verify"], ["--collection", "alice/x"]):
        result = run("publish", "nothing-here", *option)
        assert result.exit_code == 2 and "--repo" in result.output


def test_a_space_for_what_was_uploaded(hub, folder, monkeypatch):
    deployed = []
    monkeypatch.setattr(
        "hswq_hub.hub.space.deploy_space", lambda *found, **how: deployed.append((*found, how)) or "address"
    )
    words = ["upload", str(folder), "--repo", REPO, "--no-verify", "--private", "--space"]
    result = CliRunner().invoke(main, [*words, "alice/demo"], catch_exceptions=False)
    assert result.exit_code == 0 and "space     address" in result.output
    ((space, repo, page, how),) = deployed
    assert (space, repo, how) == ("alice/demo", REPO, {"private": True}) and (page / "app.py").is_file()
    for wrong, said in [
        (["bob/demo"], "alice is not a member of bob"),
        (["demo"], "not spelled like owner/name"),
        (["alice/demo", "--pr"], "leave out --space"),
    ]:
        result = CliRunner().invoke(main, [*words, *wrong])
        assert result.exit_code == 2 and said in result.output
    assert len(deployed) == 1
