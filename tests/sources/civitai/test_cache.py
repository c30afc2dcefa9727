"""What is fetched once and kept: the cache, killed and concurrent downloads, and what the commands show of it."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from click.testing import CliRunner
from support.civitai import REFERENCE, nothing_kept, pull
from support.civitai_server import TOKEN

from hswq_hub.cli.main import main
from hswq_hub.common.targets import TargetError
from hswq_hub.sources.http import cache
from hswq_runtime.errors import FormatError


def test_a_full_disk_is_noticed_before_anything_is_sent(server, monkeypatch):
    monkeypatch.setattr("hswq_hub.common.targets.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(TargetError, match="MB free"):
        pull(server)
    assert sum(entry.size for entry in cache.contents()) == 0


def test_what_is_in_the_cache_is_not_fetched_again(server, content):
    path = pull(server).path
    server.file["name"] = "renamed.safetensors"
    again = pull(server)
    assert again.path == path and again.name == "renamed" and len(server.stored) == 1


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(server, content):
    path = pull(server).path
    path.write_bytes(bytes(len(content)))
    assert pull(server).path.read_bytes() == content and len(server.stored) == 2
    stat = path.stat()
    path.write_bytes(bytes(len(content)))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(FormatError):
        pull(server)
    assert pull(server, verify=True).path.read_bytes() == content, "damage without a trace is found by --verify"


def test_a_file_that_was_only_touched_is_hashed_and_kept(server):
    path = pull(server).path
    os.utime(path)
    assert pull(server).path == path and len(server.stored) == 1


CHILD = """
import sys
from hswq_hub.sources.find import resolve
print(resolve(sys.argv[1], civitai_endpoint=sys.argv[2]).path)
"""


def test_a_killed_download_goes_on_where_it_was(server, content, tmp_path):
    server.chunk, server.pause = 10_000, 0.05
    command = [sys.executable, "-c", CHILD, REFERENCE, server.url]
    process = subprocess.Popen(command, start_new_session=True)
    limit = time.monotonic() + 60
    while not (server.stored and server.stored[0].sent > len(content) // 3):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (begun,) = cache.contents()
    assert begun.sha256 is None and 0 < begun.size < len(content)
    server.pause = 0
    source = pull(server)
    assert source.path.read_bytes() == content
    last = server.stored[-1]
    assert last.headers["Range"] == f"bytes={begun.size}-" and last.headers["If-Range"] == server.etag
    assert last.sent == len(content) - begun.size, "only the rest was sent"
    assert [entry.sha256 for entry in cache.contents()] == [server.sha256]


def test_two_runs_at_once_download_once(server, content):
    server.chunk, server.pause = 20_000, 0.02
    command = [sys.executable, "-c", CHILD, REFERENCE, server.url]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    limit = time.monotonic() + 60
    while not (server.stored and server.stored[0].sent):
        assert other.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    path = pull(server).path
    assert other.communicate(timeout=60)[0].strip() == str(path) and path.read_bytes() == content
    assert sum(seen.sent for seen in server.stored) == len(content)


def test_dry_run_says_what_would_be_fetched(run, server):
    server.model["allowDerivatives"] = False
    result = run("pull", REFERENCE, "--dry-run")
    assert result.exit_code == 0, result.output
    said = [REFERENCE, "Dark Beast v8", "alice_01", "apache-2.0", "tiny.safetensors", server.sha256]
    said += [f"{len(server.content) / 1e6:.1f} MB", "share derivatives: no", "sell images", "use without credit: no"]
    for part in [*said, "does not allow derivatives", "base repo"]:
        assert part in result.output
    assert server.stored == [] and TOKEN not in result.output and nothing_kept(server)
    result = run("pull", REFERENCE, "--dry-run", "--i-have-permission")
    assert "you have permission" in result.output and "refused" not in result.output


def test_every_command_that_takes_a_reference_takes_the_endpoint():
    for name, command in main.commands.items():
        parameters = {parameter.name for parameter in command.params}
        wanted = {"civitai_endpoint"} if name == "inspect" else {"civitai_endpoint", "permitted", "verify", "base"}
        assert "reference" not in parameters or wanted <= parameters, name


def test_cache_is_listed_and_pruned(run, server):
    pull(server)
    listed = CliRunner().invoke(main, ["cache", "list"])
    assert "tiny.safetensors" in listed.output and server.sha256[:12] in listed.output
    assert "tiny" not in CliRunner().invoke(main, ["cache", "prune"]).output, "used today"
    assert "tiny.safetensors" in CliRunner().invoke(main, ["cache", "prune", "--older-than", "0"]).output
    assert nothing_kept(server)


def test_what_is_pruned_is_locked_until_it_is_gone(server, monkeypatch):
    from filelock import FileLock, Timeout

    pull(server)
    lock, remove, locked = cache.partial(f"{server.sha256}.lock"), shutil.rmtree, []

    def look(path):
        with pytest.raises(Timeout):
            FileLock(lock, timeout=0, is_singleton=False).acquire()
        locked.append(path.name)
        remove(path)

    monkeypatch.setattr("hswq_hub.sources.http.cache.shutil.rmtree", look)
    with cache.locked(server.sha256, "tiny.safetensors"):
        assert cache.prune(0) == []
    assert [entry.sha256 for entry in cache.prune(0)] == locked == [server.sha256]


def test_who_waits_for_another_run_says_so(server, capsys):
    from filelock import FileLock

    lock = cache.partial(f"{server.sha256}.lock")
    lock.parent.mkdir(parents=True)
    with FileLock(lock, is_singleton=False):
        waiting = threading.Thread(target=pull, args=(server,))
        waiting.start()
        said = ""
        while "waiting" not in said:
            said += capsys.readouterr().err
            assert waiting.is_alive()
            time.sleep(0.01)
        assert said == "another hswq-hub is fetching tiny.safetensors; waiting for it to end\n" and not server.stored
    waiting.join(30)
    assert server.stored


def test_signed_addresses_are_in_no_log(server, caplog):
    caplog.set_level("INFO")
    pull(server)
    assert server.stored and "abc123" not in caplog.text and TOKEN not in caplog.text
