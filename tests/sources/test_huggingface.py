"""From a Hub reference to a verified file, with the real client against a server that speaks the Hub's protocol."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import torch
import yaml
from safetensors.torch import save
from support import tiny
from support.hub_server import COMMIT, TOKEN, HubServer, Repo

from hswq_hub.cards.facts import licence_facts
from hswq_hub.sources.find import resolve
from hswq_hub.sources.licence import Licence

CHILD = """
import json, sys
from dataclasses import asdict
from hswq_hub.sources.find import resolve
from hswq_hub.cards.facts import licence_facts, source_facts

for reference in json.loads(sys.argv[1]):
    try:
        source = resolve(reference)
        facts = source_facts(source) | licence_facts(source.licence)
        text = source.licence_text
        found = dict(path=str(source.path), name=source.name, base=source.base, reference=source.reference,
                     hub_base=source.hub_base, text=text, facts=facts)
    except Exception as error:
        found = dict(error=type(error).__name__, message=str(error))
    print(json.dumps(found))
"""


def folder_files(folder: Path, within: str = "") -> dict[str, bytes]:
    return {f"{within}{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def diffusers_files(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("diffusers")
    tiny.model().save_pretrained(folder / "transformer", max_shard_size="150KB")
    (folder / "model_index.json").write_text("{}")
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder/model.safetensors").write_bytes(b"not fetched")
    return folder_files(folder)


def at_root(files: dict[str, bytes]) -> dict[str, bytes]:
    denoiser = "transformer/"
    return {name.removeprefix(denoiser): data for name, data in files.items() if name.startswith(denoiser)}


@pytest.fixture(scope="module")
def server(tmp_path_factory, diffusers_files):
    model = tiny.checkpoint(tmp_path_factory.mktemp("tiny")).read_bytes()
    tensors = tiny.original_layout(tiny.model().state_dict())
    key = f"{tiny.PREFIX}layers.0.feed_forward.w1.weight"
    quantized = save(tensors | {key: tensors[key].to(torch.float8_e4m3fn)})
    header = b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": 3}}'
    hostile = len(header).to_bytes(8, "little") + header + bytes(1000)
    others = {"split_files/text_encoders/qwen.safetensors": b"no", "vae/vae.safetensors": b"no"}
    card = {"license": "other", "license_name": "my-licence-1.0", "license_link": "LICENSE.md"}
    with HubServer() as server:
        server.repos = {
            "alice/single": Repo(
                {"my.safetensors": model, "LICENSE.md": b"Be kind.\n", "README.md": b"# hi", **others},
                card,
                tags=["not-for-all-audiences"],
                revisions=("main", "v1"),
            ),
            "alice/several": Repo({"a.safetensors": model, "split_files/b.safetensors": model, **others}),
            "alice/diffusers": Repo(diffusers_files, {"license": "apache-2.0"}),
            "alice/gated": Repo({"my.safetensors": model}, gated="auto"),
            "alice/quantized": Repo({"q.safetensors": quantized}),
            "alice/pickled": Repo({"model.bin": b"\x80\x02", "model.ckpt": b"\x80\x02"}),
            "alice/unnamed": Repo({"my.safetensors": model, "LICENCE.txt": b"Ask me."}, private=True),
            "alice/killed": Repo({"killed.safetensors": model}, gated="auto"),
            "alice/hostile": Repo({"h.safetensors": hostile}),
            "alice/linked": Repo(
                {"my.safetensors": model, "LICENSE": b"of the code", "legal/WEIGHTS.txt": b"of the weights"},
                {"license": "other", "license_name": "mine", "license_link": "legal/WEIGHTS.txt"},
            ),
            "alice/no-derivatives": Repo({"my.safetensors": model}, {"license": "cc-by-nc-nd-4.0"}),
            "alice/root": Repo(at_root(diffusers_files)),
            "alice/video": Repo(
                {
                    "transformer/config.json": b'{"_class_name": "LTXVideoTransformer3DModel"}',
                    "transformer/diffusion_pytorch_model.safetensors": b"24 GB",
                }
            ),
            "alice/page": Repo({"page.safetensors": b"<html>" * 100}),
            "alice/corrupt": Repo({"corrupt.safetensors": save(tensors, {"another": "file"})}),
        }
        server.corrupt, server.slow = {"corrupt.safetensors"}, {"q.safetensors", "killed.safetensors"}
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def environment(server, home):
    return {**os.environ, **server.environment(home), "HF_TOKEN": TOKEN, "HSWQ_HOME": str(home / "hswq")}


@pytest.fixture(scope="module")
def look_up(environment):
    """Resolves references in a process of its own."""

    def look_up(*references, **changes):
        theirs = {name: value for name, value in {**environment, **changes}.items() if value is not None}
        command = [sys.executable, "-c", CHILD, json.dumps(references)]
        result = subprocess.run(command, env=theirs, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        assert TOKEN not in result.stdout + result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    return look_up


FORMS = (
    "alice/single",
    "hf:alice/single",
    "{url}/alice/single/blob/main/my.safetensors",
    "alice/single@v1/my.safetensors",
    f"{{url}}/alice/single/resolve/{COMMIT}/my.safetensors?download=true",
)
FOLDERS = {
    "{url}/alice/diffusers/blob/main/transformer/{shard}": "hf:alice/diffusers/transformer",
    "alice/root": "hf:alice/root/{shard}",
    "alice/root/{shard}": "hf:alice/root/{shard}",
}
"""References that mean a folder of a repo, and the short form of each."""
REFUSED = {
    "alice/several": ("AmbiguousReferenceError", "a.safetensors, split_files/b.safetensors; name one"),
    "alice/single/mine.safetensors": ("UnknownReferenceError", "did you mean my.safetensors?"),
    "alice/single@v2": ("UnknownReferenceError", "no such revision"),
    "nobody/nothing": ("UnknownReferenceError", "no repo nobody/nothing"),
    "alice/pickled": ("UnsuitableSourceError", "no safetensors file"),
    "alice/quantized": ("AlreadyQuantizedError", "quantized already"),
    "alice/video": ("UnknownArchitectureError", "LTXVideoTransformer3DModel"),
    "alice/no-derivatives": ("NotPermittedError", "cc-by-nc-nd-4.0 forbids derivatives; if its creator allowed"),
    "alice/hostile": ("FormatError", "h.safetensors has no header"),
    "alice/page": ("UnsuitableSourceError", "not a safetensors file"),
    "alice/corrupt": ("DownloadError", "is listed; nothing was kept"),
}


@pytest.fixture(scope="module")
def shard(server) -> str:
    return next(name for name in server.repos["alice/root"].files if "-00001-of-" in name)


@pytest.fixture(scope="module")
def found(server, shard, look_up) -> dict[str, dict]:
    """What became of each reference, all in one process."""
    references = [*FORMS, "alice/gated", "alice/diffusers", "alice/unnamed", "alice/linked", *FOLDERS, *REFUSED]
    answers = look_up(*(reference.format(url=server.url, shard=shard) for reference in references))
    return dict(zip(references, answers, strict=True))


def test_files_of_the_hub(server, found):
    model = server.repos["alice/single"].files["my.safetensors"]
    for form in FORMS:
        one = found[form]
        assert Path(one["path"]).read_bytes() == model
        assert one["name"] == "my" and one["base"] == one["hub_base"] == "Tongyi-MAI/Z-Image-Turbo"
    one, facts = found["alice/single"], found["alice/single"]["facts"]
    assert one["reference"] == "hf:alice/single/my.safetensors" and one["text"] == "Be kind.\n"
    assert (facts["repo"], facts["creator"], facts["version"], facts["nsfw"]) == ("alice/single", "alice", COMMIT, True)
    assert (facts["licence"], facts["licence_name"], facts["licence_link"]) == ("other", "my-licence-1.0", "LICENSE")
    fetched = server.fetched("alice/single")
    assert "vae/vae.safetensors" not in fetched
    assert fetched["my.safetensors"] < 1.5 * len(model), "fetched once, and its header before"


def test_no_token_reaches_the_storage(server, found):
    storage = [seen for seen in server.seen if seen.path.startswith("/storage/")]
    assert storage and not any("Authorization" in seen.headers for seen in storage)
    assert any(seen.headers.get("Authorization") == f"Bearer {TOKEN}" for seen in server.seen)


def test_a_gated_repo_says_so_to_what_is_made_from_it(found):
    assert found["alice/gated"]["facts"]["gated"] == "auto" and "private" not in found["alice/gated"]["facts"]
    assert found["alice/unnamed"]["facts"]["private"] is True


def test_a_licence_text_comes_with_and_without_a_licence(found):
    assert (found["alice/unnamed"]["text"], found["alice/unnamed"]["facts"]["licence"]) == ("Ask me.", None)
    linked = found["alice/linked"]
    assert (linked["text"], linked["facts"]["licence_link"]) == ("of the weights", "LICENSE")


@pytest.mark.parametrize(
    ("id", "forbidden"),
    [("cc-by-nd-4.0", True), ("cc-by-nc-nd-2.0", True), ("CC-BY-ND", True), ("cc-by-4.0", False), ("nda-1.0", False)],
)
def test_licences_without_derivatives(id, forbidden):
    assert Licence(id).forbids_derivatives is forbidden
    assert Licence("other", id).forbids_derivatives is forbidden


def test_a_diffusers_repo_is_put_together(server, found):
    one = found["alice/diffusers"]
    assert one["name"] == "diffusers" and one["hub_base"] == "alice/diffusers"
    assert one["facts"]["licence"] == "apache-2.0"
    fetched = server.fetched("alice/diffusers")
    assert "text_encoder/model.safetensors" not in fetched
    assert sum(name.endswith(".safetensors") for name in fetched) > 1, "it is sharded"


@pytest.mark.parametrize("reference", FOLDERS)
def test_a_file_of_a_folder_and_a_folder_at_the_root(found, shard, reference):
    one, whole = found[reference], found["alice/diffusers"]
    assert "error" not in one, one
    assert Path(one["path"]).read_bytes() == Path(whole["path"]).read_bytes()
    assert one["reference"] == FOLDERS[reference].format(shard=shard)
    assert one["name"] == one["facts"]["repo"].split("/")[1]


@pytest.mark.parametrize("reference", REFUSED)
def test_what_cannot_be_used_is_explained(found, reference):
    error, sentence = REFUSED[reference]
    assert found[reference]["error"] == error and sentence in found[reference]["message"]


def test_what_is_of_no_use_is_told_before_it_is_fetched(server, found):
    quantized = server.repos["alice/quantized"].files["q.safetensors"]
    assert server.fetched("alice/quantized")["q.safetensors"] < len(quantized) / 2
    assert list(server.fetched("alice/video")) == ["transformer/config.json"]


def test_a_killed_download_goes_on_where_it_was(server, environment, look_up, tmp_path):
    model = server.repos["alice/killed"].files["killed.safetensors"]
    theirs = {**environment, "HSWQ_HOME": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", CHILD, '["alice/killed"]'], env=theirs, start_new_session=True)
    limit = time.monotonic() + 60
    while server.fetched("alice/killed").get("killed.safetensors", 0) < len(model) // 3:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (begun,) = [path for path in (tmp_path / "cache/partial").iterdir() if not path.suffix]
    arrived = begun.stat().st_size
    assert 0 < arrived < len(model)
    (found,) = look_up("alice/killed", HSWQ_HOME=str(tmp_path))
    assert Path(found["path"]).read_bytes() == model
    *_, home, last = [seen for seen in server.seen if "killed.safetensors" in seen.path]
    assert last.headers["Range"] == f"bytes={arrived}-" and last.sent == len(model) - arrived, "only the rest was sent"
    assert home.headers["Authorization"] == f"Bearer {TOKEN}" and "Authorization" not in last.headers


def test_what_the_client_has_is_not_fetched_again(server, environment, look_up, home):
    code = "from huggingface_hub import hf_hub_download as get; print(get('alice/several', 'a.safetensors'))"
    theirs = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    server.seen.clear()
    (found,) = look_up("alice/several/a.safetensors")
    assert found["path"] == theirs.stdout.strip() and not server.fetched("alice/several")


def test_a_gated_repo_without_its_token(look_up, home):
    (found,) = look_up("alice/gated", HF_TOKEN=None, HF_HOME=str(home / "other"), HSWQ_HOME=str(home / "other"))
    assert found["error"] == "AccessError" and "accept its terms" in found["message"]


def test_a_disk_that_refuses_is_not_called_a_hub_that_does(look_up, tmp_path):
    (tmp_path / "file").write_text("")
    (found,) = look_up("alice/single", HF_HOME=str(tmp_path / "file/below"))
    assert found["error"] in ("NotADirectoryError", "FileExistsError") and "reached" not in found["message"]


def test_a_hub_that_is_not_there(look_up, home):
    (found,) = look_up("alice/single", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(home / "third"))
    assert found["error"] == "DownloadError" and "cannot be reached" in found["message"]


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(server, found, look_up):
    path = Path(found["alice/single"]["path"])
    model = server.repos["alice/single"].files["my.safetensors"]
    path.resolve().chmod(0o644)
    path.resolve().write_bytes(bytes(len(model)))
    look_up("alice/single")
    assert path.read_bytes() == model


@pytest.fixture(scope="module")
def base_repo(server):
    components = folder_files(Path(resolve("demo").base))
    server.repos["alice/base"] = Repo({**components, "transformer/diffusion_pytorch_model.safetensors": b"12 GB"})
    return "alice/base"


def command(environment, *arguments, cwd):
    line = [sys.executable, "-m", "hswq_hub", *map(str, arguments)]
    return subprocess.run(line, env=environment, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_components_of_the_base_come_without_its_denoiser(server, base_repo, environment, tmp_path):
    """Ahead, by `pull`, and on the way, by what needs them."""
    model = resolve("demo").path
    pulled = command(environment, "pull", model, "--base", base_repo, cwd=tmp_path)
    assert pulled.returncode == 0 and base_repo in pulled.stdout, pulled.stderr
    wanted = {"text_encoder/model.safetensors", "vae/config.json", "scheduler/scheduler_config.json"}
    ahead = server.fetched(base_repo)
    server.seen.clear()
    fresh = {**environment, "HF_HOME": str(tmp_path / "fresh")}
    quick = ("--samples", 1, "--steps", 1, "--size", 32, "-o", "statistics.safetensors")
    result = command(fresh, "calibrate", model, "--base", base_repo, *quick, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for fetched in (ahead, server.fetched(base_repo)):
        assert wanted <= fetched.keys() and not [name for name in fetched if name.startswith("transformer")]


def test_dry_run(server, environment, tmp_path):
    server.seen.clear()
    result = command(environment, "pull", "alice/several/a.safetensors", "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for part in ("hf:alice/several/a.safetensors", "not stated", "SHA-256", "alice", "in all"):
        assert part in result.stdout
    assert server.fetched("alice/several") == {}


def test_dry_run_says_the_size_of_the_components(server, base_repo, environment, tmp_path):
    components = folder_files(Path(resolve("demo").base))
    size = f"{sum(map(len, components.values())) / 1e6:.1f} MB"
    local = tmp_path / "my.safetensors"
    tensors = tiny.original_layout(tiny.model().state_dict())
    local.write_bytes(save(tensors, {"modelspec.license": "Fair AI"}))
    for reference in ("alice/several/a.safetensors", local):
        server.seen.clear()
        result = command(environment, "pull", reference, "--base", base_repo, "--dry-run", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert f"{base_repo}, {size}" in result.stdout and not server.fetched(base_repo)
    assert "on this machine" in result.stdout and "Fair AI" in result.stdout


def test_on_a_terminal_one_is_asked_which(monkeypatch):
    from click.testing import CliRunner

    from hswq_hub.cli.terminal import ask, chooser

    answers = []
    command = click.command()(lambda: answers.append(ask("which?", ["a.safetensors", "b.safetensors"])))
    result = CliRunner().invoke(command, input="7\n2\n")
    assert answers == [1] and "2  b.safetensors" in result.output
    assert chooser() is None, "no terminal here"


def test_licence_text_is_what_the_source_shipped():
    from hswq_hub.cards.facts import licence_text

    assert licence_text(Licence("apache-2.0"), "as shipped") == licence_text(None, "as shipped") == "as shipped"
    assert "Apache License" in licence_text(Licence("apache-2.0"))
    assert licence_text(Licence("mit")) is None and licence_text(None) is None
    assert licence_facts(None) == {"licence": None}


def test_a_card_names_the_repo_that_was_quantized(tmp_path):
    from dataclasses import replace

    from hswq_hub.cards.card import Card
    from hswq_hub.cards.facts import source_facts
    from hswq_hub.sources.listing import Provenance

    found = Provenance(repo="alice/single", creator="alice", creator_url="https://huggingface.co/alice", gated="auto")
    source = replace(resolve("demo"), provenance=found, licence=Licence("other", "my-licence-1.0", "LICENSE"))
    shutil.copytree(Path(__file__).parents[2] / "model_cards/demo-hswq", tmp_path / "out")
    record = json.loads((tmp_path / "out/hswq.json").read_text())
    record |= {"source": source_facts(source), **licence_facts(source.licence)}
    (tmp_path / "out/hswq.json").write_text(json.dumps(record))
    front, body = Card.from_folder(tmp_path / "out").render().split("---\n", 2)[1:]
    data = yaml.safe_load(front)
    assert data["base_model"] == ["alice/single"] and data["base_model_relation"] == "quantized"
    assert (data["license_name"], data["license_link"]) == ("my-licence-1.0", "LICENSE")
    assert "- creator: [alice](https://huggingface.co/alice)\n- licence: [`my-licence-1.0`](LICENSE)\n" in body
    assert record["source"]["gated"] == "auto", "for whoever uploads it"
