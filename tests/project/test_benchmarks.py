"""What a benchmark would measure on a GPU runs here too, if small; what it took is not looked at."""

import argparse
import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def runtime(monkeypatch):
    """`benchmarks/runtime.py`."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("benchmarks_runtime", BENCHMARKS / "runtime.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_single_layers_are_timed_in_each_way(runtime):
    args = argparse.Namespace(device="cpu", dtype="bfloat16", repeats=1, compile=False)
    found = runtime.product_times(runtime.products(96), 8, args)
    assert [(row["inputs"], row["outputs"]) for row in found] == [(96, 96), (96, 256), (256, 96)]
    assert all(row[name] > 0 for row in found for name in ("plain", "exact", "quantized_matmul"))
    assert all(1e-3 < row["error"] < 0.1 for row in found), "that of FP8 inputs: it did multiply in FP8"
    assert len(runtime.product_table(found, 8)) == 2 + 3


@pytest.mark.parametrize(("step", "fast", "reached"), [(1.04, 0.6, "yes"), (1.06, 0.7, "no")])
def test_goals_are_judged_by_the_figures(runtime, step, fast, reached):
    rows = [{"name": "plain", "step": 1.0}, {"name": "HSWQ", "step": step}]
    layers = [{"plain": 1.0, "quantized_matmul": 0.1}, {"plain": 1.0, "quantized_matmul": fast}]
    judged = [line.split(" | ")[1:] for line in runtime.goals(rows, layers)[2:]]
    assert judged == [[reached, f"{step:.3f} |"], [reached, f"{1 / fast:.3f} |"]]
