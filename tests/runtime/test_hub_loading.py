"""Published models, straight from the Hub: the real client against a server that speaks the Hub's protocol."""

import hashlib
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save
from support import tiny
from support.hub_server import CUT, TOKEN, HubServer, Repo

from hswq_runtime import Checkpoint, HSWQPipeline
from hswq_runtime.checkpoints.locate import HubOptions, fetch_components
from hswq_runtime.errors import FormatError

CHILD = """
import hashlib, json, sys
import hswq_runtime, diffusers.quantizers.auto as registry
registered = "hswq" in registry.AUTO_QUANTIZER_MAPPING and "hswq" in registry.AUTO_QUANTIZATION_CONFIG_MAPPING
import torch
from hswq_runtime import HSWQPipeline, HSWQLinear
for line in sys.stdin:
    reference, arguments = json.loads(line)
    method = getattr(HSWQPipeline, arguments.pop("method", "from_pretrained"))
    try:
        pipe = method(reference, dtype=torch.float32, **arguments)
        weights = hashlib.sha256()
        for name, tensor in sorted(pipe.transformer.state_dict().items()):
            weights.update(name.encode() + bytes(tensor.contiguous().flatten().view(torch.uint8).numpy()))
        scaled = any(isinstance(m, HSWQLinear) and m.scale is not None for m in pipe.transformer.modules())
        fp8 = any(isinstance(m, HSWQLinear) for m in pipe.transformer.modules())
        found = dict(weights=weights.hexdigest(), fp8=fp8, scaled=scaled, parts=sorted(pipe.components))
        found["theta"] = pipe.transformer.config.rope_theta
    except Exception as error:
        found = dict(error=type(error).__name__, message=str(error))
    print(json.dumps(found | dict(registered=registered)), flush=True)
"""


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return tiny.published_demo(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def server(published, tmp_path_factory):
    saved = tmp_path_factory.mktemp("saved")
    HSWQPipeline.from_pretrained(published, variant="v2", dtype=torch.float32).save_pretrained(saved)
    v1, v2 = ((published / f"demo-hswq-{version}.safetensors").read_bytes() for version in ("v1", "v2"))
    config = Checkpoint(published / "demo-hswq-v2.safetensors").whole_config
    unnamed = save(load_file(published / "demo-hswq-v1.safetensors"))
    based = save(load_file(published / "demo-hswq-v2.safetensors"), metadata={"hswq_base": "alice/demo-hswq"})
    lora = save({"lora_A.weight": torch.zeros(2, 2)})
    noise = dict.fromkeys(("pickle/pytorch_model.bin", "run.py", "images/a.png", "vae/model.fp16.safetensors"), b"no")
    with HubServer() as hub:
        hub.repos["alice/demo-hswq"] = Repo({**files(published), **noise}, revisions=("main", "v1.0"))
        hub.repos["alice/both"] = Repo(files(published))
        hub.repos["alice/never"] = Repo(files(published))
        dozen = {"a.safetensors": unnamed, "b.safetensors": v1, "c.safetensors": v1, "lora.safetensors": lora}
        hub.repos["bob/dozen"] = Repo(dozen)
        names = {"hswq_config": json.dumps({"_class_name": "ZImageTransformer2DModel", **tiny.CONFIG})}
        state = tiny.model().state_dict()
        cast = {k: t.to(torch.float8_e4m3fn) if k.endswith("w1.weight") else t for k, t in state.items()}
        named = save(cast, metadata=names | {"hswq_format": "v1"})
        hub.repos["erin/diffusers-names"] = Repo({"v1.safetensors": named, "lora.safetensors": lora})
        hub.repos["bob/based"] = Repo({"only.safetensors": based})
        stating = {"transformer/config.json": json.dumps(config | {"rope_theta": 20.0}).encode()}
        hub.repos["frank/states"] = Repo({"only.safetensors": based, **stating})
        hub.repos["frank/based"] = Repo({"only.safetensors": save(load_file(published / "demo-hswq-v2.safetensors"))})
        hub.repos["frank/base"] = Repo({**files(published), **stating})
        hub.repos["carol/saved"] = Repo(files(saved))
        hub.repos["carol/two"] = Repo({"x.safetensors": v1, "y.safetensors": v2, "sub/z.safetensors": v1})
        hub.repos["dave/gated"] = Repo({"only.safetensors": v2}, gated="auto")
        hub.repos["dave/open"] = Repo({"only.safetensors": v2}, gated="auto")
        hub.repos["dave/empty"] = Repo({"README.md": b"nothing"})
        yield hub


class Client:
    """A process with a home of its own, which takes the server for the Hub; starting one takes seconds, so there is
    one for all tests, and it is asked the same thing once."""

    def __init__(self, server, home):
        environment = {**os.environ, **server.environment(home)}
        environment.pop("HF_TOKEN", None)
        pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
        self.process = subprocess.Popen([sys.executable, "-c", CHILD], env=environment, text=True, **pipes)
        self.answers = {}

    def ask(self, reference, **arguments):
        """What it finds when it opens `reference`."""
        question = json.dumps([reference, arguments])
        if question not in self.answers:
            print(question, file=self.process.stdin, flush=True)
            self.answers[question] = json.loads(next(line for line in self.process.stdout if line.startswith("{")))
        return self.answers[question]


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    one = Client(server, tmp_path_factory.mktemp("home"))
    yield one
    one.process.communicate()


OWN = {"base": "alice/demo-hswq"}


@pytest.fixture(scope="module")
def weights(published):
    """The digests that CHILD prints, of the local folder."""
    found = {}
    for variant in ("v1", "v2"):
        pipe = HSWQPipeline.from_pretrained(published, variant=variant, dtype=torch.float32)
        digest = hashlib.sha256()
        for name, tensor in sorted(pipe.transformer.state_dict().items()):
            digest.update(name.encode() + bytes(tensor.contiguous().flatten().view(torch.uint8).numpy()))
        found[variant] = digest.hexdigest()
    return found


def test_a_published_repo_is_its_folder(client, weights, server):
    default, v1 = client.ask("alice/demo-hswq"), client.ask("alice/demo-hswq", variant="v1")
    tagged = client.ask("alice/demo-hswq", revision="v1.0", weight_name="demo-hswq-v2.safetensors")
    assert default["weights"] == tagged["weights"] == weights["v2"] and default["scaled"]
    assert v1["weights"] == weights["v1"] and not v1["scaled"]
    assert {"vae", "text_encoder", "tokenizer", "scheduler", "transformer"} <= set(default["parts"])
    fetched = server.fetched("alice/demo-hswq")
    assert not {"pickle/pytorch_model.bin", "run.py", "images/a.png", "vae/model.fp16.safetensors"} & fetched.keys()


def test_only_the_chosen_file_is_fetched(client, published, server):
    start = len(server.seen)
    assert client.ask("alice/both", variant="v1")["fp8"]
    requests = [seen for seen in server.seen[start:] if seen.path.endswith("v2.safetensors")]
    assert requests, "its header is read, to know what it is"
    assert sum(seen.sent for seen in requests) < 0.2 * (published / "demo-hswq-v2.safetensors").stat().st_size


def test_a_repo_with_several_models_asks_which(client):
    listed, odd = client.ask("bob/dozen"), client.ask("bob/dozen", weight_name="z.safetensors")
    assert listed["error"] == odd["error"] == "FormatError"
    assert "a.safetensors, b.safetensors, c.safetensors" in listed["message"] and "weight_name" in listed["message"]
    assert "bob/dozen has no file z.safetensors; it holds a.safetensors" in odd["message"]
    assert client.ask("bob/dozen", weight_name="b.safetensors", **OWN)["fp8"]
    assert client.ask("carol/two", weight_name="sub/z.safetensors", **OWN)["fp8"]
    two = client.ask("carol/two", variant="v1", **OWN)
    assert two["fp8"] and not two["scaled"]


def test_one_file_of_a_repo_by_path_and_by_address(client, weights, server):
    by_path = client.ask("alice/demo-hswq/demo-hswq-v1.safetensors")
    address = f"{server.url}/alice/demo-hswq/blob/main/demo-hswq-v1.safetensors"
    assert by_path["weights"] == client.ask(address, method="from_single_file")["weights"] == weights["v1"]


def test_a_file_with_the_names_of_diffusers_is_told_from_its_header(client):
    found = client.ask("erin/diffusers-names", variant="v1", **OWN)
    assert found.get("fp8"), found


def test_a_saved_pipeline_and_a_file_that_names_its_base(client, weights):
    assert client.ask("carol/saved")["weights"] == client.ask("bob/based")["weights"] == weights["v2"]


@pytest.mark.parametrize(
    ("reference", "arguments", "sentence"),
    [
        ("nobody/nothing", {}, "the Hub has no repo nobody/nothing that you may see"),
        ("alice/demo-hswq", {"revision": "v9"}, "alice/demo-hswq has no such revision"),
        ("dave/gated", {}, "gated"),
        ("dave/empty", {}, "no safetensors file"),
        ("alice/demo-hswq", {"variant": "v7"}, "no variant 'v7'"),
        ("not a reference", {}, "neither a file nor a folder here, nor a Hub repo"),
        ("alice/demo-hswq/../../etc/passwd", {}, "neither a file nor a folder here"),
    ],
    ids=["repo", "revision", "gated", "empty", "variant", "words", "path"],
)
def test_what_is_not_there_is_said_in_a_sentence(client, reference, arguments, sentence):
    assert sentence in client.ask(reference, **arguments)["message"]


def test_a_gated_repo_opens_with_its_token_and_tells_it_to_nobody_else(client, server):
    assert client.ask("dave/open", token=TOKEN, **OWN)["fp8"]
    carrying = {seen.host for seen in server.seen if TOKEN in str(seen.headers)}
    assert carrying == {server.url.removeprefix("http://")}, "not the storage"


def test_a_cache_of_ones_own(client, tmp_path):
    assert client.ask("alice/both", cache_dir=str(tmp_path))["fp8"]
    assert list(tmp_path.glob("models--alice--both"))


def test_offline_after_the_first_time(client, server):
    never = client.ask("alice/never", local_files_only=True)
    assert "not in the cache; load it once without local_files_only" in never["message"]
    online = client.ask("alice/demo-hswq")
    count = len(server.seen)
    offline = client.ask("alice/demo-hswq", variant="v2", local_files_only=True)
    assert offline.get("weights") == online["weights"], offline
    assert len(server.seen) == count


def test_importing_the_package_first_was_enough_for_diffusers_to_know_it(client):
    """The other order: `test_quantizer.py`."""
    assert client.ask("alice/demo-hswq")["registered"]


def test_the_repo_states_the_configuration_of_its_file_then_the_base(client):
    """A file of another tool says nothing of it; it is not the file's own repo whose weights are fetched for it."""
    assert client.ask("frank/states", **OWN)["theta"] == 20.0
    assert client.ask("frank/based", base="frank/base")["theta"] == 20.0
    assert client.ask("frank/based", **OWN)["theta"] == 256.0


@pytest.mark.parametrize("answer", [CUT, 429, 500])
def test_components_that_are_here_need_no_hub(answer, published, tmp_path, monkeypatch):
    with HubServer() as hub:
        hub.repos["alice/base"] = Repo(files(published))
        hub.adopt(monkeypatch, tmp_path)
        clock = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=lambda _: None)
        monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
        here = fetch_components("alice/base", ["vae"], HubOptions())
        hub.fail("GET", "", answer, times=1000)
        assert fetch_components("alice/base", ["vae"], HubOptions()) == here
        with pytest.raises(FormatError, match="alice/base"):
            fetch_components("alice/base", ["text_encoder"], HubOptions())
