"""What is read of the machine."""

import mmap

import torch

from hswq_hub.common.hardware import PeakMemory, free_memory

CPU = torch.device("cpu")


def test_peak_memory_is_that_of_its_own_block():
    with PeakMemory(CPU) as large, mmap.mmap(-1, 200_000_000) as memory:  # what malloc gives may be resident already
        memory[::4096] = bytes(len(memory[::4096]))
    with PeakMemory(CPU) as small:
        pass
    assert large.bytes - small.bytes > 150e6


def test_free_memory_knows_the_limit_of_a_container(tmp_path):
    unlimited = free_memory(CPU, tmp_path)
    assert unlimited > 1 << 20
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    assert free_memory(CPU, tmp_path) == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(CPU, tmp_path) > 1 << 20
