"""Two real processes over gloo find what one finds, and a process that dies takes the run with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hswq_hub.calibrate import Calibration, LayerStatistics, merged

ROOT = Path(__file__).parents[1]
QUICK = ("--samples", "3", "--steps", "2", "--size", "32", "--device", "cpu")


def hub(*arguments, cwd, **environment):
    path = os.pathsep.join([str(ROOT), str(ROOT / "runtime")])
    return subprocess.run(
        [sys.executable, "-m", "hswq_hub", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_two_processes_find_what_one_finds(tmp_path):
    for name, more in (("one", ()), ("two", ("--num-processes", "2"))):
        result = hub("calibrate", "demo", *QUICK, "-o", f"{name}.safetensors", *more, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("layers, 0 calls left out") == 1, "only the first process writes and says so"
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


def test_a_process_that_fails_fails_the_run_and_leaves_what_was_there(tmp_path):
    kept = tmp_path / "statistics.safetensors"
    Calibration({}).save(kept)
    before = kept.read_bytes()
    (tmp_path / "broken.safetensors").write_bytes(b"no checkpoint")
    result = hub("calibrate", "broken.safetensors", "-o", kept.name, "--num-processes", "2", cwd=tmp_path)
    assert result.returncode != 0
    assert "is not a complete safetensors file" in result.stderr
    assert kept.read_bytes() == before


def test_processes_are_not_started_twice(tmp_path):
    result = hub("calibrate", "demo", "-o", "x.safetensors", "--num-processes", "2", cwd=tmp_path, WORLD_SIZE="2")
    assert result.returncode == 2 and "leave it out under `accelerate launch`" in result.stderr


def test_merging_is_adding():
    parts = [
        LayerStatistics(torch.tensor([1.0, 2.0]).double(), 3.0, 9.0, 2, 1),
        LayerStatistics(torch.ones(2).double(), 1.0, 1.0, 1),
    ]
    whole = merged(parts)
    assert whole.importance.tolist() == [2 / 3, 1] and (whole.calls, whole.skipped) == (3, 1)
    assert whole.output_variance == pytest.approx(10 / 3 - (4 / 3) ** 2)
