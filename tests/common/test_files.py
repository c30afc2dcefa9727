"""Files that appear whole or not at all, with the permissions that any other new file has."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from hswq_hub.common.files import atomic_file, write_atomically


def mode(path) -> int:
    return path.stat().st_mode & 0o777


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a/file"
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert os.listdir(path.parent) == []
    with atomic_file(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert (path.read_bytes(), os.listdir(path.parent)) == (b"whole", ["file"])


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "ours", b"")
    assert mode(tmp_path / "ours") == mode(tmp_path / "plain")


def test_other_threads_never_see_another_umask(tmp_path):
    """The umask is the process's: a file that another thread makes meanwhile has to have the usual permissions."""
    (tmp_path / "plain").touch()
    usual, stop, seen = mode(tmp_path / "plain"), threading.Event(), set()

    def watch():
        number = 0
        while not stop.is_set():
            number += 1
            path = tmp_path / f"seen-{number}"
            path.touch()
            seen.add(mode(path))

    with ThreadPoolExecutor(3) as pool:
        watcher = pool.submit(watch)
        writers = [pool.submit(write_atomically, tmp_path / f"ours-{i}", b"x") for i in range(500)]
        for writer in writers:
            writer.result()
        stop.set()
        watcher.result()
    assert seen == {usual}
    assert {mode(path) for path in tmp_path.glob("ours-*")} == {usual}
