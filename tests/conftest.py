"""Fixtures: nothing here touches the user's home, the network or an account."""

import os
from contextlib import nullcontext
from functools import cache

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny: threads would only wait for each other


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    """A fresh workspace for every test."""
    monkeypatch.setenv("HSWQ_HOME", str(tmp_path_factory.mktemp("hswq-home")))
    monkeypatch.delenv("CIVITAI_API_TOKEN", raising=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One workspace for what the tests of a module share."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSWQ_HOME", str(home))
        yield home


@pytest.fixture
def shared_home(own_home, home, monkeypatch):
    """That workspace for a test as well, in place of a fresh one."""
    monkeypatch.setenv("HSWQ_HOME", str(home))


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Name -> a folder of tiny components, made once."""
    from support.bases import write_base

    return cache(lambda name: write_base(tmp_path_factory.mktemp(name), name))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """kind -> the full checkpoint of a tiny UNet, and its base without weights; each made once for a module."""
    from support.unet_files import full_files

    return full_files(tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def quantized(full, tmp_path_factory):
    """(kind, format, reader) -> what is quantized of them."""
    from support.unet_files import quantized_files

    return quantized_files(full, tmp_path_factory.mktemp)


class Stream:
    """What is asked of a stream; on the CPU everything has happened when the call returns."""

    def synchronize(self):
        pass


@pytest.fixture
def offload_with_streams(monkeypatch):
    """Group offloading of a model with streams and pinned memory, the CPU passing for an accelerator that has them."""
    import torch
    from diffusers.hooks.group_offloading import GroupOffloadingConfig, GroupOffloadingType, _apply_group_offloading

    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(torch.cpu, "current_stream", Stream)
    monkeypatch.setattr(torch.cpu, "stream", lambda stream: nullcontext())

    def offload(model, kind):
        cpu, flags = torch.device("cpu"), ("non_blocking", "record_stream", "low_cpu_mem_usage")
        config = GroupOffloadingConfig(
            cpu, cpu, GroupOffloadingType(kind), **dict.fromkeys(flags, False), num_blocks_per_group=1, stream=Stream()
        )
        _apply_group_offloading(model, config)

    return offload
