"""What a base states of its VAE, as far as it can be true."""

import json

import pytest
from support.hub_server import HubServer, Repo

from hswq_hub.sources.components import vae_of
from hswq_runtime.checkpoints.locate import HubOptions

KNOWN = {"sample_size": 1024, "block_out_channels": [128, 256], "layers_per_block": 2}


def folder(place, stated):
    (place / "vae").mkdir(parents=True)
    (place / "vae/config.json").write_text(json.dumps(stated))
    return str(place)


def test_a_repo_on_the_hub_states_it_as_a_folder_does(monkeypatch, tmp_path):
    """Or pictures of a model made for 64 pixels were expected to have 1024, and another measure was chosen."""
    stated = KNOWN | {"sample_size": 64, "more": 7}
    with HubServer() as hub:
        hub.adopt(monkeypatch, tmp_path)
        hub.repos["ada/model"] = Repo({"model_index.json": b"{}", "vae/config.json": json.dumps(stated).encode()})
        found = vae_of("ada/model", HubOptions())
        assert found == vae_of(folder(tmp_path / "here", stated), HubOptions()) == KNOWN | {"sample_size": 64}
        assert vae_of("ada/none", HubOptions()) == {}


@pytest.mark.parametrize(
    ("name", "strange"),
    [("sample_size", 0), ("sample_size", -1), ("sample_size", 10**9), ("sample_size", True), ("sample_size", "64"),
     ("layers_per_block", 10**9), ("layers_per_block", 1.5), ("block_out_channels", []),
     ("block_out_channels", [128, "x"]), ("block_out_channels", "abc"), ("block_out_channels", [8] * 64),
     ("block_out_channels", {"0": 8})],
)  # fmt: skip
def test_what_cannot_be_is_not_known(tmp_path, name, strange):
    known = {key: value for key, value in KNOWN.items() if key != name}
    assert vae_of(folder(tmp_path, KNOWN | {name: strange}), HubOptions()) == known
