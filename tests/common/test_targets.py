"""Folders and files of somebody else are never touched, ours are replaced whole or not at all."""

import json
import os
from types import SimpleNamespace

import pytest

from hswq_hub.common.layout import CONTENTS, RECORD
from hswq_hub.common.targets import TargetError, check_replaceable, check_room, check_target, replace_folder
from hswq_runtime.errors import FormatError


def ours(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).write_text("made by hswq-hub")
    (folder / RECORD).write_text(json.dumps({CONTENTS: names}))
    return folder


def write(text):
    return lambda target: (target / "new.txt").write_text(text)


def test_free_empty_and_own_folders_are_accepted(tmp_path):
    check_target(tmp_path / "free" / "below")
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty")
    check_target(ours(tmp_path / "ours", "README.md"))


@pytest.mark.parametrize("record", [None, "", "{}", "[]", '{"contents": 3}', '{"contents": ["other.txt"]}'])
def test_a_folder_with_one_foreign_file_is_refused(tmp_path, record):
    folder = ours(tmp_path / "repo", "README.md")
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text("my clone")
    if record is not None:
        (folder / RECORD).write_text(record)
    with pytest.raises(TargetError, match="did not make"):
        check_target(folder)


def test_what_cannot_be_replaced_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TargetError, match="as a whole"):
        check_target(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match="is a file"):
        check_target(tmp_path / "file")
    with pytest.raises(TargetError, match="cannot be written"):
        check_target(tmp_path / "file" / "below")


def test_a_link_is_followed_and_stays_a_link(tmp_path):
    disk = tmp_path / "big-disk"
    disk.mkdir()
    (tmp_path / "out").symlink_to(disk)
    replace_folder(tmp_path / "out", write("one"))
    assert (tmp_path / "out").is_symlink() and (disk / "new.txt").read_text() == "one"


@pytest.mark.parametrize("moment", ["filling", "renaming"])
def test_the_old_folder_survives_a_failure(tmp_path, monkeypatch, moment):
    folder = ours(tmp_path / "out", "README.md")
    rename = type(folder).rename

    def fail_on_the_new_one(path, target):
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    def fill(target):
        (target / "half.txt").write_text("half")
        if moment == "filling":
            raise KeyboardInterrupt

    if moment == "renaming":
        monkeypatch.setattr(type(folder), "rename", fail_on_the_new_one)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(folder, fill)
    assert sorted(os.listdir(folder)) == ["README.md", RECORD]
    assert os.listdir(tmp_path) == ["out"]


def test_only_products_of_our_own_are_overwritten(tmp_path):
    def is_ours(path):
        if path.read_text() != "ours":
            raise FormatError("not ours")

    path = tmp_path / "statistics.safetensors"
    check_replaceable(path, ".safetensors", is_ours)
    path.write_text("ours")
    check_replaceable(path, ".safetensors", is_ours)
    path.write_text("a checkpoint")
    with pytest.raises(TargetError, match="not ours to replace"):
        check_replaceable(path, ".safetensors", is_ours)
    with pytest.raises(TargetError, match=r"must end in \.safetensors"):
        check_replaceable(tmp_path / "statistics.json", ".safetensors", is_ours)
    with pytest.raises(TargetError, match="cannot be written"):
        check_replaceable(path / "below.safetensors", ".safetensors", is_ours)


def test_a_small_disk_is_told_of_in_sizes_that_differ(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2_100_000))
    with pytest.raises(TargetError, match=r"has 2\.1 MB free, but 3\.0 MB are needed; .*run the same command again"):
        check_room(tmp_path, 3_000_000)
