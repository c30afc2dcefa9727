"""GPUs by their published figures, and the rates that come of them."""

import pytest

from hswq_hub.common.speed.gpus import GPUS
from hswq_hub.common.speed.rates import ACHIEVED, GpuRates


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_figures_are_possible_ones(gpu):
    assert 8e9 < gpu.memory_bytes < 200e9 and gpu.memory_bytes < gpu.bandwidth_bytes < 1e13
    assert gpu.double_flops < gpu.flops and gpu.host_bytes < gpu.bandwidth_bytes / 5
    assert gpu.name == next(name for name, found in GPUS.items() if found is gpu)


def test_rates_are_a_stated_share_of_the_peaks():
    gpu = GPUS["RTX 4090"]
    rates = GpuRates(gpu)
    assert rates.block(3840, 4096) == ACHIEVED * 165.2e12
    assert rates.double == ACHIEVED * gpu.double_flops and rates.host == ACHIEVED * 31.5e9
    assert rates.value == pytest.approx(24 / (ACHIEVED * 1008e9))
    assert "RTX 4090" in rates.basis and "nothing was measured" in rates.basis
