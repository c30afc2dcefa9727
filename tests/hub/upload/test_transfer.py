"""From a folder to a Hub repo and back, also over a Hub that is busy, breaks off or refuses."""

import logging
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.hub_server import CUT, HANG, LOST, TOKEN
from support.uploading import (
    OPTIONS,
    REPO,
    UNCHECKED,
    asked,
    contents,
    held,
    metrics_of,
    picture,
    record_of,
    run,
)

from hswq_hub.hub.client import UploadError
from hswq_hub.hub.history import version_tag
from hswq_hub.hub.settings import UploadSettings
from hswq_hub.hub.upload import upload
from hswq_runtime import HSWQPipeline

pytestmark = pytest.mark.usefixtures("shared_home")


def test_from_one_command_to_the_same_pictures_for_a_stranger(hub, tmp_path, caplog):
    target = tmp_path / "out"
    result = run("publish", "demo", *OPTIONS, "--folder", target, "--repo", REPO, "--yes")
    assert result.exit_code == 0, result.output
    assert len(asked(hub, "GET", "/api/whoami-v2")) == 1, "the account is looked up once"
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
