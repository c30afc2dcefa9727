"""How many threads compute: by the work, by what else runs, and as the user says."""

import json
import subprocess
import sys

import pytest
import torch

from hswq_hub.calibration.calibrate import LayerStatistics
from hswq_hub.common import threads
from hswq_hub.common.threads import Machine, Threads, are_chosen, default_threads

SMALL, LARGE = 1e5, 1e9


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    """A machine of 8 cores on which nobody has said anything, with torch's setting in a variable."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    state = {"count": 8}
    monkeypatch.setattr(torch, "get_num_threads", lambda: state["count"])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: state.update(count=count))
    monkeypatch.setattr(threads, "default_threads", lambda: 8)
    monkeypatch.setattr(threads.psutil, "cpu_count", lambda: 8)
    monkeypatch.setattr(Threads, "_ours", None)
    monkeypatch.setattr(Threads, "_machine", None)


class Others:
    """A clock, and what other programs use of the cores; this one uses `own` of them."""

    def __init__(self, monkeypatch):
        self.now = self.busy = self.used = 0.0
        self.others, self.own = 0.0, 0.0
        monkeypatch.setattr(threads, "_times", lambda: (self.now, self.busy, self.used))
        monkeypatch.setattr(threads.time, "sleep", self.pass_)

    def pass_(self, seconds):
        self.now += seconds
        self.busy += seconds * (self.others + self.own)
        self.used += seconds * self.own


@pytest.fixture
def machine(monkeypatch):
    return Others(monkeypatch)


def test_small_work_takes_one_thread_and_large_work_all(machine):
    with Threads(SMALL):
        assert torch.get_num_threads() == 1
    with Threads(LARGE):
        assert torch.get_num_threads() == 8
    assert torch.get_num_threads() == 8, "as before"


def test_large_work_takes_what_others_leave_and_takes_it_back(machine):
    machine.own = 8.0
    with Threads(LARGE) as open_threads:
        machine.others, machine.own = 5.0, 3.0
        machine.pass_(2)
        open_threads.adapt()
        assert torch.get_num_threads() == 3
        machine.others = 40.0
        machine.pass_(2)
        open_threads.adapt()
        assert torch.get_num_threads() == 1, "never none"
        machine.others, machine.own = 0.0, 1.0
        machine.pass_(0.5)
        open_threads.adapt()
        assert torch.get_num_threads() == 1, "no look within a second of the last"
        machine.pass_(2)
        open_threads.adapt()
        assert torch.get_num_threads() == 8
    assert torch.get_num_threads() == 8


def test_work_whose_bits_depend_on_it_takes_no_notice_of_others(machine):
    with Threads(LARGE) as first:
        machine.others = 8.0
        machine.pass_(2)
        first.adapt()
        with Threads(LARGE, steady=True):
            assert torch.get_num_threads() == 8
        with Threads(SMALL, steady=True):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1


def test_an_old_look_is_not_trusted(machine):
    seen = Machine()
    machine.others = 8.0
    machine.pass_(60)
    machine.others = 2.0
    assert seen.free_cores() == pytest.approx(6.0), "of the last tenth of a second"


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_user_s_variables_win(machine, monkeypatch, name):
    monkeypatch.setenv(name, "5")
    torch.set_num_threads(5)
    with Threads(SMALL) as one:
        one.adapt()
        assert torch.get_num_threads() == 5
    assert torch.get_num_threads() == 5


def test_the_user_s_own_setting_wins_at_any_time(machine):
    with Threads(SMALL):
        pass
    torch.set_num_threads(3)
    assert are_chosen()
    with Threads(LARGE):
        assert torch.get_num_threads() == 3
    with Threads(SMALL):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 3


BUNDLED = """
import torch
from hswq_hub.generation.generate import GenerationSettings, final_latents, generate, open_pipeline
from hswq_hub.sources.find import resolve
from hswq_runtime import load_model

source = resolve("demo")
denoiser = load_model(source.checkpoint, torch.float32)
pipeline = open_pipeline(source.checkpoint, denoiser, source.base, torch.device("cpu"))
settings = GenerationSettings.of(source.architecture, pipeline.vae.config, steps=1)
seen, before = set(), torch.get_num_threads()
denoiser.register_forward_pre_hook(lambda *_: seen.add(torch.get_num_threads()))
generate(pipeline, "a red ring", 0, settings)
final_latents(pipeline, ["a red ring"] * 4, range(4), settings)
print(*seen, torch.get_num_threads() == before)
"""


def test_the_bundled_model_computes_with_one(monkeypatch):
    """So its files are the same to the bit on every number of cores, whatever else runs."""
    for name in threads._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", BUNDLED], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "True"]


def test_sums_over_a_layer_are_the_same_with_any_number():
    run = [sys.executable, "-c", SUMS]
    found = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    assert len({*found}) == 1


SUMS = """
import json
import torch
from hswq_hub.calibration.calibrate import LayerStatistics
torch.manual_seed(0)
inputs, outputs = torch.randn(2, 300, 400), torch.randn(2, 300, 800)
found = []
for count in (1, 2, 3, 7):
    torch.set_num_threads(count)
    statistics = LayerStatistics(torch.zeros(400, dtype=torch.float64))
    statistics.add(inputs, outputs, -1)
    found.append(repr((statistics.importance_sum.tolist(), statistics.mean_sum, statistics.square_sum)))
print(json.dumps(found))
"""


def test_statistics_are_means():
    statistics = LayerStatistics(torch.zeros(4, dtype=torch.float64))
    values = torch.randn(2, 3, 4)
    statistics.add(values, values * 2 + 1, -1)
    assert statistics.output_mean == pytest.approx((values * 2 + 1).mean().item(), rel=1e-6)
    assert statistics.output_square == pytest.approx((values * 2 + 1).square().mean().item(), rel=1e-6)
    assert default_threads() >= 1
