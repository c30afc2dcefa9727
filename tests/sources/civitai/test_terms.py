"""Licences of base models, and the card of a source from Civitai."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from support.civitai import REFERENCE, pull
from support.civitai_server import TOKEN, VERSION, CivitaiServer

from hswq_hub.cards.card import Card
from hswq_hub.cards.facts import licence_facts, source_facts
from hswq_hub.cli.main import main
from hswq_hub.sources.find import resolve
from hswq_hub.sources.licence import licence_of_base_model

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("base_model", "id", "name"),
    [
        ("ZImageTurbo", "apache-2.0", None),
        ("Flux.1 S", "apache-2.0", None),
        ("Flux.2 Klein 4B", "apache-2.0", None),
        ("zimagebase", "apache-2.0", None),
        ("SDXL 1.0", "openrail++", None),
        ("Pony", "openrail++", None),
        ("SD 1.5", "creativeml-openrail-m", None),
        ("Flux.1 D", "other", "flux-1-dev-non-commercial-license"),
        ("Flux.2 Klein 9B", "other", "flux-non-commercial-license"),
        ("Flux.2 D", "other", "flux-non-commercial-license"),
        ("Illustrious", "other", "faipl-1.0-sd"),
        ("NoobAI", "other", "faipl-1.0-sd"),
        ("SDXL Turbo", "other", "sai-nc-community"),
        ("Pony V7", "other", "pony-v7"),
    ],
)
def test_licence_of_a_base_model(base_model, id, name):
    licence = licence_of_base_model(base_model)
    assert (licence.id, licence.name, licence.link is not None) == (id, name, name is not None)


@pytest.mark.parametrize("base_model", ["Other", "", None, "Flux"])
def test_no_licence_is_made_up(base_model):
    assert licence_of_base_model(base_model) is None


def test_models_lists_the_catalog():
    result = CliRunner().invoke(main, ["models"])
    assert result.exit_code == 0
    for part in ("harukiMIX_zit2603", "856375@2815582", "apache-2.0", "0.9678", "unstableRevolution_V2Fp16"):
        assert part in result.output


def test_a_source_from_civitai_is_credited_in_the_card(server, tmp_path):
    server.model |= {
        "nsfwLevel": 28,
        "name": "Dark *Beast*](http://evil.example)",
        "creator": {"username": "<b>bob</b>"},
    }
    server.version["baseModel"] = "Illustrious"
    source = pull(server)
    shutil.copytree(ROOT / "model_cards/demo-hswq", tmp_path / "out")
    record = json.loads((tmp_path / "out/hswq.json").read_text())
    record |= {**licence_facts(source.licence), "source": source_facts(source)}
    (tmp_path / "out/hswq.json").write_text(json.dumps(record))
    front, body = Card.from_folder(tmp_path / "out").render().split("---\n", 2)[1:]
    data = yaml.safe_load(front)
    assert data["license"] == "other" and data["license_name"] == "faipl-1.0-sd" and data["license_link"]
    assert "not-for-all-audiences" in data["tags"]
    assert r"creator: \<b\>bob\</b\>" in body and "](http://evil.example)" not in body.replace("\\]", "")
    assert source.provenance.url in body and "share derivatives: yes" in body and source.sha256 in body


def test_publish_from_a_reference_with_a_token_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo = resolve("demo")
    with CivitaiServer(demo.path.read_bytes(), "darkBeast.safetensors") as server:
        address = f"https://civitai.com/api/download/models/{VERSION}?fp=bf16&token={TOKEN}"
        quick = ["--samples", "1", "--steps", "1", "--pairs", "1", "--picture-steps", "1", "--size", "32"]
        options = ["--civitai-endpoint", server.url, "--base", demo.base, "--folder", "out", *quick]
        result = CliRunner().invoke(main, ["publish", address, *options])
        assert result.exit_code == 0, result.output
        published = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
        for secret in (TOKEN, server.url, os.environ["HSWQ_HOME"], "abc123"):
            assert secret.encode() not in published and secret not in result.output
    card = (tmp_path / "out/README.md").read_text()
    assert f"hswq-hub publish {REFERENCE} --base components" in card
    assert "creator: [alice\\_01](https://civitai.com/user/alice_01)" in card
    assert (tmp_path / "out/darkBeast-hswq-v2.safetensors").is_file()
