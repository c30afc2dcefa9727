"""A run that is stopped, or that has no room left, says in one line how to go on, and leaves nothing half-written."""

import errno
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.nn.modules.module import register_module_forward_pre_hook

from hswq_hub.cli.main import main
from hswq_hub.common import pieces
from hswq_hub.common.home import home
from hswq_hub.common.pieces import Pieces
from hswq_hub.sources.find import resolve

DEMO = str(resolve("demo").path)
STATISTICS = ("calibrate", "demo", "--steps", "1", "-o", "statistics.safetensors")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def when_it_computes(sign: signal.Signals) -> None:
    """Send this process `sign` once a model computes for a step of its own."""
    computes = threading.Event()

    def wait_and_send() -> None:
        computes.wait()
        os.kill(os.getpid(), sign)

    def look(*_: object) -> None:
        if any(home().glob("work/*/.calibrate-*/new")):
            handle.remove()
            computes.set()
            time.sleep(0.1)  # a signal is heard between two operations

    handle = register_module_forward_pre_hook(look)
    threading.Thread(target=wait_and_send, daemon=True).start()


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_run_that_is_stopped_says_how_to_go_on(sign, code):
    before = signal.getsignal(sign)
    when_it_computes(sign)
    result = CliRunner().invoke(main, ["publish", "demo", "--samples", "1000", "--recipe", "hswq"])
    assert result.exit_code == code, result.output
    assert result.stderr.splitlines()[-1] == (
        "stopped; what was finished is kept, run the same command again to go on after it"
    )
    assert [path.name for path in home().rglob(".*") if path.name != ".lock"] == []
    assert signal.getsignal(sign) is before


def stop_at_the_first_saving(monkeypatch) -> None:
    keep = Pieces.keep

    def counted(self: Pieces, done: str, state: Callable[[], object]) -> None:
        keep(self, done, state)
        monkeypatch.setattr(Pieces, "keep", keep)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Pieces, "keep", counted)


@pytest.mark.parametrize(
    ("command", "output", "said"),
    [
        (("calibrate", "demo", "--samples", "2", "--steps", "1"), "statistics.safetensors", "1 of 2 pictures"),
        (("evaluate", "demo", DEMO, "--pairs", "2", "--steps", "1"), "figures.json", "1 of 2 pictures of original"),
    ],
    ids=["calibrate", "evaluate"],
)
def test_a_step_alone_goes_on_as_well(command, output, said, monkeypatch):
    monkeypatch.setattr(pieces, "INTERVAL", 0)
    stop_at_the_first_saving(monkeypatch)
    assert CliRunner().invoke(main, [*command, "-o", output]).exit_code == 130
    assert not Path(output).exists()
    result = CliRunner().invoke(main, [*command, "-o", output])
    assert result.exit_code == 0 and f"{command[0]}: going on after {said}\n" in result.stderr
    if command[0] == "calibrate":  # figures hold times
        again = CliRunner().invoke(main, [*command, "-o", f"again-{output}"])
        assert again.exit_code == 0 and "going on" not in again.stderr
        assert Path(output).read_bytes() == Path(f"again-{output}").read_bytes()
    assert not list(home().glob("work/*/*.pieces"))


def test_a_full_disk_is_one_sentence_that_says_what_to_do():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        result = CliRunner().invoke(main, [*STATISTICS, "--samples", "1"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "no room is left on the disk" in line and "run the same command again" in line and len(line) <= 300
    assert not [path for path in Path().iterdir() if path.suffix == ".safetensors" or path.name.startswith(".")]


def said_of(error: Exception, monkeypatch) -> str:
    """The one sentence that a command ends with when this is raised in it."""

    def fail() -> None:
        raise error

    monkeypatch.setattr("hswq_hub.workflow.collect.kept", fail)
    result = CliRunner().invoke(main, ["cache", "list"])
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert result.stderr.startswith("Error: ") and "run the same command again" in result.stderr
    return result.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
    ],
    ids=["Python", "CPU", "CUDA", "system", "thread"],
)
def test_a_full_memory_is_one_sentence_that_says_what_to_do(error, monkeypatch):
    assert "no memory is left" in said_of(error, monkeypatch)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_that_is_closed_is_one_sentence_that_says_what_to_do(number, monkeypatch):
    said = said_of(OSError(number, os.strerror(number), "place/file"), monkeypatch)
    assert "place/file is out of reach" in said and "Errno" not in said


def test_a_full_disk_is_that_of_the_copy_and_not_that_of_the_original(monkeypatch):
    assert "where copy is" in said_of(OSError(errno.ENOSPC, "No space", "original", None, "copy"), monkeypatch)


def test_another_error_is_no_sentence(monkeypatch):
    monkeypatch.setattr("hswq_hub.workflow.collect.kept", lambda: 1 / 0)
    assert isinstance(CliRunner().invoke(main, ["cache", "list"]).exception, ZeroDivisionError)
