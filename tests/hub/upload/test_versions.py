"""Versions, pull requests, branches and collections; what is uploaded and what stays."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from support.hub_server import Repo, account
from support.hub_store import sha256
from support.uploading import (
    REPO,
    UNCHECKED,
    change_record,
    contents,
    held,
    metrics_of,
    record_of,
    run,
    use,
)

from hswq_hub.cards.card import Card
from hswq_hub.cli.main import main
from hswq_hub.hub.client import AccountError, UploadError, VerificationError
from hswq_hub.hub.history import earlier_versions, version_tag
from hswq_hub.hub.settings import UploadSettings
from hswq_hub.hub.upload import upload
from hswq_runtime import Format, HSWQPipeline
from hswq_runtime.errors import FormatError

pytestmark = pytest.mark.usefixtures("shared_home")


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
