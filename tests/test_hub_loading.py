"""Published models, straight from the Hub: the real client against a server that speaks the Hub's protocol."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from hub_server import TOKEN, HubServer, Repo
from safetensors.torch import load_file, save

from hswq_runtime import HSWQPipeline

CHILD = """
import hashlib, json, sys, torch
from hswq_runtime import HSWQPipeline, HSWQLinear
for reference, arguments in json.loads(sys.argv[1]):
    method = getattr(HSWQPipeline, arguments.pop("method", "from_pretrained"))
    try:
        pipe = method(reference, dtype=torch.float32, **arguments)
        weights = hashlib.sha256()
        for name, tensor in sorted(pipe.transformer.state_dict().items()):
            weights.update(name.encode() + bytes(tensor.contiguous().flatten().view(torch.uint8).numpy()))
        scaled = any(isinstance(m, HSWQLinear) and m.scale is not None for m in pipe.transformer.modules())
        fp8 = any(isinstance(m, HSWQLinear) for m in pipe.transformer.modules())
        found = dict(weights=weights.hexdigest(), fp8=fp8, scaled=scaled, parts=sorted(pipe.components))
    except Exception as error:
        found = dict(error=type(error).__name__, message=str(error))
    print(json.dumps(found))
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
        hub.repos["carol/saved"] = Repo(files(saved))
        hub.repos["carol/two"] = Repo({"x.safetensors": v1, "y.safetensors": v2, "sub/z.safetensors": v1})
        hub.repos["dave/gated"] = Repo({"only.safetensors": v2}, gated="auto")
        hub.repos["dave/open"] = Repo({"only.safetensors": v2}, gated="auto")
        hub.repos["dave/empty"] = Repo({"README.md": b"nothing"})
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def ask(server, home, questions):
    """What a process of its own finds for each (reference, arguments)."""
    environment = {**os.environ, **server.environment(home)}
    environment.pop("HF_TOKEN", None)
    run = [sys.executable, "-c", CHILD, json.dumps(list(questions.values()))]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(zip(questions, found, strict=True))


OWN = {"base": "alice/demo-hswq"}
QUESTIONS = {
    "offline before": ("alice/never", {"local_files_only": True}),
    "default": ("alice/demo-hswq", {}),
    "v1": ("alice/demo-hswq", {"variant": "v1"}),
    "tagged": ("alice/demo-hswq", {"revision": "v1.0", "weight_name": "demo-hswq-v2.safetensors"}),
    "one of both": ("alice/both", {"variant": "v1"}),
    "listed": ("bob/dozen", {}),
    "named": ("bob/dozen", {"weight_name": "b.safetensors", **OWN}),
    "odd name": ("bob/dozen", {"weight_name": "z.safetensors"}),
    "below": ("carol/two", {"weight_name": "sub/z.safetensors", **OWN}),
    "two": ("carol/two", {"variant": "v1", **OWN}),
    "by path": ("alice/demo-hswq/demo-hswq-v1.safetensors", {}),
    "saved": ("carol/saved", {}),
    "based": ("bob/based", {}),
    "diffusers names": ("erin/diffusers-names", {"variant": "v1", **OWN}),
    "with token": ("dave/open", {"token": TOKEN, **OWN}),
}
"""One process answers them all, because starting one takes seconds."""

SENTENCES = {
    ("nobody/nothing", ()): "no Hub repo nobody/nothing that you may read",
    ("alice/demo-hswq", (("revision", "v9"),)): "no revision v9",
    ("dave/gated", ()): "gated",
    ("dave/empty", ()): "no safetensors file",
    ("alice/demo-hswq", (("variant", "v7"),)): "no variant 'v7'",
    ("not a reference", ()): "neither a file nor a folder here, nor a Hub repo",
    ("alice/demo-hswq/../../etc/passwd", ()): "neither a file nor a folder here",
}


@pytest.fixture(scope="module")
def answers(server, home, tmp_path_factory):
    by_url = f"{server.url}/alice/demo-hswq/blob/main/demo-hswq-v1.safetensors"
    cache = str(tmp_path_factory.mktemp("cache"))
    questions = {
        **QUESTIONS,
        "by address": (by_url, {"method": "from_single_file"}),
        "own cache": ("alice/both", {"cache_dir": cache}),
        **{question: (question[0], dict(question[1])) for question in SENTENCES},
    }
    server.seen.clear()
    return {"cache": cache, "seen": server.seen, **ask(server, home, questions)}


def weights(published, variant):
    """The digest that CHILD prints, of the local folder."""
    import hashlib

    pipe = HSWQPipeline.from_pretrained(published, variant=variant, dtype=torch.float32)
    digest = hashlib.sha256()
    for name, tensor in sorted(pipe.transformer.state_dict().items()):
        digest.update(name.encode() + bytes(tensor.contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def test_a_published_repo_is_its_folder(answers, published, server):
    default, v1, tagged = answers["default"], answers["v1"], answers["tagged"]
    assert default["weights"] == tagged["weights"] == weights(published, "v2") and default["scaled"]
    assert v1["weights"] == weights(published, "v1") and not v1["scaled"]
    assert {"vae", "text_encoder", "tokenizer", "scheduler", "transformer"} <= set(default["parts"])
    fetched = server.fetched("alice/demo-hswq")
    assert not {"pickle/pytorch_model.bin", "run.py", "images/a.png", "vae/model.fp16.safetensors"} & fetched.keys()


def test_only_the_chosen_file_is_fetched(answers, published, server):
    assert answers["one of both"]["fp8"]
    requests = [seen for seen in answers["seen"] if "/alice/both/" in seen.path and "v2.safetensors" in seen.path]
    before_the_next = requests[: next(i for i, seen in enumerate(requests) if seen.sent > 500_000)]
    assert before_the_next, "its header is read, to know what it is"
    assert sum(seen.sent for seen in before_the_next) < 0.2 * (published / "demo-hswq-v2.safetensors").stat().st_size


def test_a_repo_with_several_models_asks_which(answers):
    listed, odd = answers["listed"], answers["odd name"]
    assert listed["error"] == odd["error"] == "FormatError"
    assert "a.safetensors, b.safetensors, c.safetensors" in listed["message"] and "weight_name" in listed["message"]
    assert "bob/dozen has no file z.safetensors; it holds a.safetensors" in odd["message"]
    assert all(answers[name]["fp8"] for name in ("named", "below", "two")) and not answers["two"]["scaled"]


def test_one_file_of_a_repo_by_path_and_by_address(answers, published):
    assert answers["by path"]["weights"] == answers["by address"]["weights"] == weights(published, "v1")


def test_a_file_with_the_names_of_diffusers_is_told_from_its_header(answers):
    assert answers["diffusers names"].get("fp8"), answers["diffusers names"]


def test_a_saved_pipeline_and_a_file_that_names_its_base(answers, published):
    assert answers["saved"]["weights"] == answers["based"]["weights"] == weights(published, "v2")


@pytest.mark.parametrize(("question", "sentence"), SENTENCES.items(), ids=lambda value: str(value)[:40])
def test_what_is_not_there_is_said_in_a_sentence(answers, question, sentence):
    assert sentence in answers[question]["message"]


def test_a_gated_repo_opens_with_its_token_and_tells_it_to_nobody_else(answers, server):
    assert answers["with token"]["fp8"]
    carrying = {seen.host for seen in answers["seen"] if TOKEN in str(seen.headers)}
    assert carrying == {server.url.removeprefix("http://")}, "not the storage"


def test_a_cache_of_ones_own(answers):
    assert answers["own cache"]["fp8"] and list(Path(answers["cache"]).glob("models--alice--both"))


def test_offline_after_the_first_time(answers, server, home):
    assert "not in the cache; load it once without local_files_only" in answers["offline before"]["message"]
    count = len(server.seen)
    again = ask(server, home, {"offline": ("alice/demo-hswq", {"variant": "v2", "local_files_only": True})})
    assert again["offline"].get("weights") == answers["default"]["weights"], again["offline"]
    assert len(server.seen) == count
