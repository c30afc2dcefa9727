"""A publish that is killed, in every step of it and inside of the long ones, goes on to the same bytes; and two at once
do not meet."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
NAMES = ("calibrate", "search", "round", "measure", "write v1", "write v2", "naive", "evaluate")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What killing.py leaves."""
    place = tmp_path_factory.mktemp("killed")
    path = os.pathsep.join([str(TESTS.parent), str(TESTS.parent / "runtime"), str(TESTS)])
    result = subprocess.run(
        [sys.executable, str(TESTS / "support/killing.py"), str(place)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return place


def test_a_run_that_was_killed_in_every_step_ends_in_the_same_bytes(folder):
    whole, killed = contents(folder / "whole/out"), contents(folder / "killed/out")
    assert {"README.md", "metrics.json", "hswq.json", "images/compare-01.png"} < whole.keys()
    assert whole.keys() == killed.keys()
    assert [name for name in whole if whole[name] != killed[name]] == []


def test_what_was_done_is_not_done_again(folder):
    """Each step was begun twice, since it was killed once, and ended once with the settings of the first run."""
    log = (folder / "killed.log").read_text().splitlines()
    first = log[: log.index(next(line for line in log if line.startswith("folder: done"))) + 1]
    for name in (*NAMES, "folder"):
        assert first.count(f"{name}: begun") == 2, name
        assert sum(line.startswith(f"{name}: done") for line in first) == 1, name


def test_a_run_that_was_killed_inside_its_long_steps_ends_in_the_same_bytes(folder):
    whole, inside = contents(folder / "whole/out"), contents(folder / "inside/out")
    assert whole.keys() == inside.keys()
    assert [name for name in whole if whole[name] != inside[name]] == []


def test_what_was_finished_of_a_step_is_not_computed_again(folder):
    """What is lost is what two runs were about to save."""
    said = [line for line in (folder / "inside.log").read_text().splitlines() if "going on after" in line]
    assert said[0] == "calibrate: going on after 1 of 2 pictures"
    assert said[-1] == "evaluate: going on after 1 of 2 pictures of naive FP8"
    assert {line.partition(":")[0] for line in said} == {"calibrate", "round", "measure", "evaluate"}
    whole, inside = ((folder / f"{name}.calls").stat().st_size for name in ("whole", "inside"))
    assert whole <= inside <= whole + 2, "a recorded call each"


@pytest.mark.parametrize("name", ["killed", "inside"])
def test_nothing_is_left_of_the_dead(folder, name):
    assert [path.name for path in (folder / name).iterdir() if path.name.startswith(".")] == []
    assert [str(path) for path in (folder / name / "home").rglob(".*") if path.name != ".lock"] == []
    assert list((folder / name / "home").rglob("*.pieces")) == []


def test_two_at_once_do_the_work_once(folder):
    log = (folder / "together.log").read_text().splitlines()
    assert log.count("another hswq-hub is at work on tiny; waiting for it to end") == 1
    assert log.count("calibrate: begun") == log.count("calibrate: found") == 1
    assert (folder / "together/out/README.md").is_file()
