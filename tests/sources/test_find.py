"""Looking at models that are elsewhere: what is found out, and how few bytes are asked for."""

import functools
import sys
from math import prod

import pytest
from click.testing import CliRunner
from huggingface_hub import HfApi
from support import originals, tiny
from support.civitai_server import MODEL, TOKEN, VERSION, CivitaiServer, Fault
from support.hub_server import HubServer, Repo
from support.originals import ORIGINALS

from hswq_hub.cli.main import main
from hswq_hub.sources.errors import UnsuitableSourceError
from hswq_hub.workflow.inspect import inspect

CIVITAI = f"civitai:{MODEL}@{VERSION}"
FEW_BYTES = 300_000


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("CIVITAI_API_TOKEN", TOKEN)
    monkeypatch.setitem(sys.modules, "keyring", None)
    monkeypatch.setattr("hswq_hub.common.retry.sleep", lambda _: None)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that our own process asks, with a cache of its own."""
    with HubServer() as server:
        monkeypatch.setattr("hswq_hub.sources.huggingface.HfApi", functools.partial(HfApi, endpoint=server.url))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield server


def published(name: str) -> tuple[originals.Hole, int]:
    """The file of a published model, and how many values it holds."""
    shapes = ORIGINALS[name].shapes(ORIGINALS[name].published)
    return originals.hole(shapes, ORIGINALS[name].prefix), sum(map(prod, shapes.values()))


def test_a_model_of_gigabytes_on_civitai_is_known_from_some_kilobytes():
    file, values = published("z-image")
    with CivitaiServer(file) as server:
        server.version["baseModel"] = "ZImageBase"
        found = inspect(CIVITAI, server.url)
        assert sum(seen.sent for seen in server.seen) < FEW_BYTES
        assert {seen.headers.get("Authorization") for seen in server.stored} == {None}
    assert (found.architecture, found.variant) == ("Z-Image", "Z-Image Base")
    assert (found.file_bytes, found.parameters) == (len(file), values)
    assert found.file_bytes > 7e9


def test_a_model_of_gigabytes_on_the_hub_is_known_from_some_kilobytes(hub):
    file, values = published("flux-1-dev")
    hub.repos["alice/flux"] = Repo({"flux.safetensors": file})
    found = inspect("alice/flux")
    assert hub.fetched("alice/flux")["flux.safetensors"] < FEW_BYTES
    assert found.variant == "FLUX.1 [dev]" and found.licence == "flux-1-dev-non-commercial-license"
    assert (found.file_bytes, found.parameters) == (len(file), values)
    assert list(found.parts) == ["double_blocks x 19", "single_blocks x 38", "around the blocks"]
    assert all(values < least <= most < len(file) for least, most in found.sizes.values())
    assert found.sizes["measured", "V1"][1] <= 0.5601 * len(file), "the header does not count"


def test_shards_are_one_model(hub, tmp_path):
    folder = tmp_path / "model"
    tiny.model().save_pretrained(folder / "transformer", max_shard_size="150KB")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    assert sum("-of-" in name for name in files) > 1
    hub.repos["alice/shards"] = Repo(files)
    whole = inspect(tiny.checkpoint(tmp_path))
    for reference in ("alice/shards", str(folder)):
        found = inspect(reference)
        assert (found.parameters, found.layers) == (whole.parameters, whole.layers + 6)  # fused in the one file
        assert found.config["dim"] == tiny.CONFIG["dim"]


@pytest.mark.parametrize(
    "fault", [Fault(ignore_range=True), Fault(cut=1000), Fault(status=503)], ids=["no ranges", "cut", "busy"]
)
def test_hosts_that_fail_or_know_no_ranges(tmp_path, fault):
    with CivitaiServer(tiny.checkpoint(tmp_path).read_bytes()) as server:
        server.faults = [fault]
        assert inspect(CIVITAI, server.url).architecture == "Z-Image"


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(1000), b"\xff" * 8 + b"{" + bytes(1000)])
def test_what_is_no_safetensors_file_is_refused(content):
    with CivitaiServer(content) as server, pytest.raises(UnsuitableSourceError, match="not a safetensors file"):
        inspect(CIVITAI, server.url)


def test_a_header_does_not_write_to_the_terminal_what_it_likes(tmp_path):
    path = tiny.checkpoint(tmp_path, metadata={"title": "nice\x1b[2J\nError: none"})
    assert all(line.isprintable() for line in inspect(path).lines("cpu"))


def test_the_command_says_what_it_is_and_what_it_would_take(tmp_path):
    original = ORIGINALS["sd-3.5-medium"]
    path = tmp_path / "sd35.safetensors"
    file = originals.hole(original.shapes(original.published) | {"first_stage_model.x": (8, 8)}, "")
    path.write_bytes(file.header)
    with path.open("ab") as sparse:
        sparse.truncate(len(file))
    result = CliRunner().invoke(main, ["inspect", str(path), "--device", "cpu"], catch_exceptions=False)
    for expected in (
        "Stable Diffusion 3.5 Medium, full precision, 4.9",
        "joint_blocks x 24: 2.",
        "first_stage_model: 0.0 million",
        "x_embedder.proj: diffusers takes",
        "V2, recipe measured: 2.",
        "recipe measured: what costs the pictures most, until the denoiser takes 56%",
        "layers, those whose outputs vary most",
        "stabilityai-ai-community",
        "to calibrate with 128 pictures of 1024 pixels a side in 25 steps",
        "GB for the denoiser",
    ):
        assert expected in result.output, result.output
