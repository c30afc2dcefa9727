"""Two real processes over gloo find what one finds, and a process that dies takes the run with it."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from click.testing import CliRunner

from hswq_hub.calibration.calibrate import Calibration, LayerStatistics, merged
from hswq_hub.calibration.processes import launch
from hswq_hub.cli.main import main

ROOT = Path(__file__).parents[2]
QUICK = ("--samples", "3", "--steps", "2", "--size", "32", "--device", "cpu")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The command line in this process; what it launches are processes of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "runtime")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


FAMILY = """
import os, sys
from hswq_hub.cli.main import main
from hswq_hub.calibration.processes import launched_group
*common, where = sys.argv[1:]
main([*common, "-o", "one.safetensors"], standalone_mode=False)
launched_group.cache_clear()  # what follows is forked, so that torch and diffusers are imported once
children = []
for rank in "01":
    if child := os.fork():
        children.append(child)
        continue
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": where, "WORLD_SIZE": "2"}, RANK=rank, LOCAL_RANK=rank)
    main([*common, "-o", "two.safetensors"])
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_two_processes_find_what_one_finds(hub, tmp_path):
    """With what `accelerate launch` tells the processes that it starts."""
    script = [sys.executable, "-c", FAMILY, "calibrate", "demo", *QUICK, free_port()]
    said = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("two.safetensors: ") == 1, "only the first process writes and says so"
    one, two = (Calibration.load(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert (one.made_by["processes"], two.made_by["processes"]) == (1, 2)
    assert one.layers.keys() == two.layers.keys()
    for name, statistics in one.layers.items():
        other = two.layers[name]
        assert (other.calls, other.skipped) == (statistics.calls, statistics.skipped)
        assert torch.allclose(other.importance, statistics.importance, rtol=1e-4)
        assert other.output_variance == pytest.approx(statistics.output_variance, rel=1e-3, abs=1e-9)
    assert len(one.calls) == len(two.calls) == 6
    for mine, theirs in zip(one.calls, two.calls, strict=True):
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(mine.flatten()[1], theirs.flatten()[1], strict=True))


def kill_one(killed: list[list[str]]) -> None:
    """Wait until this process has launched two of ours, and kill one of them as the system would."""
    while not killed:
        children = [child for child in psutil.Process().children() if "hswq_hub" in child.cmdline()]
        if len(children) == 2:
            killed += [child.cmdline() for child in children]
            children[1].kill()
        time.sleep(0.05)


def test_a_killed_process_fails_the_run_with_one_sentence_and_leaves_what_was_there(hub, tmp_path, capfd):
    kept, killed = tmp_path / "statistics.safetensors", []
    Calibration({}).save(kept)
    before = kept.read_bytes()
    thread = threading.Thread(target=kill_one, args=(killed,))
    thread.start()
    result = hub("calibrate", "demo", "--samples", "1000", "-o", kept, "--num-processes", "2")
    thread.join()
    command = ["-m", "hswq_hub", "calibrate", "demo", "--samples", "1000"]
    assert all(line[line.index("-m") :][: len(command)] == command for line in killed)
    assert not any("--num-processes" in line for line in killed)
    assert result.exit_code == 2
    assert "was killed (SIGKILL" in result.stderr and result.stderr.count("\n") == 1
    assert "Traceback" not in capfd.readouterr().err
    assert kept.read_bytes() == before and not [p for p in tmp_path.iterdir() if p.suffix == ".tmp"]
    assert not [child for child in psutil.Process().children() if "hswq_hub" in child.cmdline()], "nobody hangs"


MEMBER = """
import os, torch
from hswq_hub.calibration.processes import Group
group = Group(torch.device("cpu"))
if not group.first:
    os.kill(os.getpid(), 9)
try:
    group.gather("found")
except Exception as error:
    print(type(error).__name__, error)
"""


def test_who_waits_for_a_process_that_is_gone_says_so(hub):
    """As launched by somebody else; the second is killed before it gives what it found."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", MEMBER],
            env=os.environ | where | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    )
    assert first.communicate(timeout=90)[0].startswith("HSWQError another of the 2 processes is gone (")
    second.communicate(timeout=90)
    assert second.returncode == -9


def test_processes_that_end_well_end_the_run_well(hub, capfd):
    assert launch(2, ["calibrate", "--help"]) == 0
    assert capfd.readouterr().out.count("Usage: ") == 2


def test_processes_that_fail_say_why_themselves(hub, capfd):
    assert launch(2, ["calibrate", "demo", "--no-such-option"]) == 2
    said = capfd.readouterr().err
    assert "No such option" in said and "Traceback" not in said


def test_processes_are_not_started_twice(hub, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = hub("calibrate", "demo", "-o", "x.safetensors", "--num-processes", "2")
    assert result.exit_code == 2 and "leave it out under `accelerate launch`" in result.stderr


def test_only_calibration_is_shared(hub, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in ("publish", "quantize", "evaluate"):
        result = hub(command, "demo")
        assert result.exit_code == 2
        assert f"`hswq-hub {command}` is the work of one process" in result.stderr


def test_merging_is_adding():
    parts = [
        LayerStatistics(torch.tensor([1.0, 2.0]).double(), 3.0, 9.0, 2, 1),
        LayerStatistics(torch.ones(2).double(), 1.0, 1.0, 1),
    ]
    whole = merged(parts)
    assert whole.importance.tolist() == [2 / 3, 1] and (whole.calls, whole.skipped) == (3, 1)
    assert whole.output_variance == pytest.approx(10 / 3 - (4 / 3) ** 2)
