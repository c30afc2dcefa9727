"""Fixtures: nothing here touches the user's home, the network or an account."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: threads would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    """A fresh workspace for every test."""
    monkeypatch.setenv("HSWQ_HOME", str(tmp_path_factory.mktemp("hswq-home")))
    monkeypatch.delenv("CIVITAI_API_TOKEN", raising=False)
