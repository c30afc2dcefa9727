"""Before and after a publish: the plan that --dry-run prints, and what `status` knows; nothing heavy, no host asked."""

import os
import re
import shutil
import sys
from types import SimpleNamespace

import diffusers
import pytest
import torch
from click.testing import CliRunner
from support import tiny
from support.civitai_server import MODEL, TOKEN, VERSION, CivitaiServer
from torch.utils.flop_counter import FlopCounterMode

from hswq_hub.cli.main import main
from hswq_hub.generation.cost import denoiser_cost
from hswq_hub.sources.find import resolve
from hswq_hub.sources.http import cache
from hswq_runtime import Checkpoint

REFERENCE = f"civitai:{MODEL}@{VERSION}"
QUICK = ("--recipe", "hswq", "--samples", 1, "--steps", 1, "--pairs", 1, "--picture-steps", 1)
STEPS = ("calibrate", "search", "write v1", "write v2", "naive", "evaluate", "folder")
BASE = resolve("demo").base


def hub(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def states(result) -> dict[str, str]:
    """Step -> what its row says of it."""
    assert result.exit_code == 0, result.output
    found = re.findall(rf"^({'|'.join(STEPS)}) +(done|missing|stale|to do)\b", result.stdout, re.MULTILINE)
    assert [name for name, _ in found] == list(STEPS), result.stdout
    return dict(found)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The demo, published once; home and working directory are this module's."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("published")
        patch.setenv("HSWQ_HOME", str(place / "home"))
        patch.chdir(place)
        shutil.copyfile(resolve("demo").path, "model.safetensors")
        result = hub("publish", "model.safetensors", "--base", BASE, *QUICK)
        assert result.exit_code == 0, result.output
    return place


@pytest.fixture
def here(published, tmp_path, monkeypatch):
    """A copy of it, to change."""
    shutil.copytree(published / "home", tmp_path / "home")
    monkeypatch.setenv("HSWQ_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(published)
    return tmp_path


def status(*options):
    return states(hub("status", "model.safetensors", *QUICK, *options))


def test_all_is_missing_of_what_was_never_published(tmp_path):
    assert set(states(hub("status", "demo", *QUICK)).values()) == {"missing"}
    shutil.copyfile(resolve("demo").path, tmp_path / "my.safetensors")
    assert set(states(hub("status", tmp_path / "my.safetensors", "--base", BASE, *QUICK)).values()) == {"missing"}
    assert "nothing was made of civitai:1@2 here" in hub("status", "civitai:1@2").stdout
    assert "work" not in os.listdir(os.environ["HSWQ_HOME"])


def test_all_is_done_of_what_was_published(here, monkeypatch):
    """With no more than its name: the base is the one it had. The original is not read, let alone a model."""
    monkeypatch.setattr("hswq_hub.sources.http.cache.file_sha256", lambda _: pytest.fail("read in full"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was tried"))
    result = hub("status", "model.safetensors", *QUICK, "--base", BASE)
    assert set(states(result).values()) == {"done"} and "all is done" in result.stdout
    assert "hswq-published/model-hswq" in result.stdout
    for step in STEPS[:-1]:
        product = re.search(rf"{step.replace(' ', '-')}-[0-9a-f]{{12}}$", result.stdout, re.MULTILINE)[0]
        assert len(list((here / "home/work").glob(f"*/{product}/made.json"))) == 1


def test_other_settings_are_other_work(here):
    changed = status("--base", BASE, "--keep-ratio", 0.5)
    assert [name for name, state in changed.items() if state != "done"] == [
        "write v1", "write v2", "evaluate", "folder"
    ]  # fmt: skip
    assert set(status("--base", BASE, "--pairs", 2).values()) == {"done", "missing"}


def test_a_product_that_is_gone_and_one_of_something_that_changed(here):
    (calibration,) = (here / "home/work").glob("*/calibrate-*")
    (calibration / "made.json").write_text((calibration / "made.json").read_text().replace('.json": "', '.json": "0'))
    found = status("--base", BASE)
    assert (found["calibrate"], found["search"], found["folder"]) == ("done", "stale", "stale")
    shutil.rmtree(calibration)
    assert status("--base", BASE)["calibrate"] == "missing"


def test_redo_and_from(here):
    """The calibration gives the same bytes again, so nothing after it is done; --from does all of that anyway."""
    command = ("publish", "model.safetensors", "--base", BASE, *QUICK, "--folder", here / "out")
    redone = hub(*command, "--redo", "calibrate")
    assert redone.exit_code == 0, redone.output
    assert re.findall(r"^(.+): begun", redone.stderr, re.MULTILINE) == ["calibrate", "folder"], "the folder is another"
    again = hub(*command, "--from", "evaluate")
    assert re.findall(r"^(.+): begun", again.stderr, re.MULTILINE) == ["evaluate", "folder"]
    assert hub(*command, "--from", "evaluate", "--redo", "quantize").exit_code == 2


def test_the_plan_is_said_and_nothing_is_done(here):
    before = sorted(here.rglob("*"))
    result = hub("publish", "model.safetensors", "--base", BASE, *QUICK, "--keep-ratio", 0.5, "--dry-run")
    found = states(result)
    assert (found["calibrate"], found["write v1"]) == ("done", "to do")
    assert sorted(here.rglob("*")) == before and not (here / "out").exists()
    for heading in ("licence", "components", "model       Z-Image", "disk", "memory", "time", "folder"):
        assert f"  {heading}" in result.stdout
    assert set(states(hub("publish", "model.safetensors", "--base", BASE, *QUICK, "--dry-run")).values()) == {"done"}


def test_the_plan_says_what_is_guessed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    guessed = hub("publish", tiny.checkpoint(tmp_path), "--base", BASE, "--dry-run")
    stated = hub("publish", "demo", "--dry-run")
    assert guessed.exit_code == stated.exit_code == 0
    assert "nothing states the configuration of tiny.safetensors" in guessed.stdout
    assert "nothing states" not in stated.stdout


def test_sizes_in_the_plan_are_bounds(here):
    result = hub("publish", "model.safetensors", "--base", BASE, *QUICK, "--dry-run", "--from", "calibrate")
    planned = dict(re.findall(r"^(write v\d|naive) +to do +≤ ([\d.]+) MB", result.stdout, re.MULTILINE))
    assert planned.keys() == {"write v1", "write v2", "naive"}
    for name, size in planned.items():
        (file,) = (here / "home/work").glob(f"*/{name.replace(' ', '-')}-*/*.safetensors")
        assert 0.8 * float(size) <= file.stat().st_size / 1e6 <= float(size) + 0.05


@pytest.mark.parametrize(
    ("scarce", "sentence"),
    [
        (("hswq_hub.common.targets.shutil.disk_usage", lambda _: SimpleNamespace(free=1000)), "free some, then run"),
        (("hswq_hub.workflow.memory.total_memory", lambda _: 1000), "which has 0.0 MB; a larger one is needed"),
    ],
    ids=["disk", "memory"],
)  # fmt: skip
def test_what_does_not_suffice_is_refused_before_anything_is_done(tmp_path, monkeypatch, scarce, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(*scarce)
    monkeypatch.setattr("hswq_hub.workflow.stages.calibrate.calibrate", lambda *_: pytest.fail("begun"))
    for options in ((), ("--dry-run",)):
        result = hub("publish", "demo", *QUICK, *options)
        assert result.exit_code == 2 and sentence in result.stderr
        assert bool(result.stdout) == bool(options), "the plan is said all the same"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("CIVITAI_API_TOKEN", TOKEN)
    monkeypatch.setitem(sys.modules, "keyring", None)
    monkeypatch.chdir(tmp_path)
    with CivitaiServer(tiny.checkpoint(tmp_path).read_bytes()) as server:
        server.chunk = 1 << 14
        yield server


def test_of_a_model_that_is_elsewhere_the_header_tells_all(server, tmp_path, monkeypatch):
    """Architecture, steps, disk and memory are known from the first kilobytes, and so is what does not suffice."""
    arguments = ("publish", REFERENCE, "--civitai-endpoint", server.url, "--base", BASE, *QUICK)
    result = hub(*arguments, "--dry-run")
    assert set(states(result).values()) == {"to do"}
    for said in ("alice_01", "apache-2.0", "commercial use: sell images", "model       Z-Image", server.sha256):
        assert said in result.stdout
    monkeypatch.setattr(
        "hswq_hub.workflow.publish.memory_of", lambda *_: [SimpleNamespace(check=lambda: 1 / 0, is_tight=False)]
    )
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert cache.contents() == [], "nothing but the header was fetched"
    assert sorted(os.listdir(tmp_path)) == ["tiny.safetensors"]


def test_a_refused_model_is_refused_by_the_plan(server):
    server.model["allowDerivatives"] = False
    result = hub("publish", REFERENCE, "--civitai-endpoint", server.url, "--base", BASE, "--dry-run")
    assert result.exit_code == 2 and "--i-have-permission" in result.stderr


def test_people_are_asked_before_long_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hswq_hub.cli.publish.chooser", lambda: lambda *_: 0)
    monkeypatch.setattr("hswq_hub.workflow.forecast.Forecast.seconds", lambda *_: 3600.0)
    monkeypatch.setattr("hswq_hub.workflow.stages.calibrate.calibrate", lambda *_: pytest.fail("begun"))
    result = CliRunner().invoke(main, ["publish", "demo"], input="n\n")
    assert result.exit_code == 1 and "This will take ~ 9.0 h. Go on?" in result.stderr
    assert list(tmp_path.iterdir()) == []


def flops(model, **arguments) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**arguments)
    return counter.get_total_flops()


def test_the_work_of_a_call_is_about_what_torch_counts(tmp_path):
    """Within a factor of two, which is what an estimate is worth."""
    arguments = {"x": [torch.zeros(4, 1, 32, 32)], "t": torch.zeros(1), "cap_feats": [torch.zeros(32, 32)]}
    counted = flops(tiny.model().float(), **arguments)
    assert 0.5 < denoiser_cost(Checkpoint(tiny.checkpoint(tmp_path)), 256).flops / counted < 2


def test_a_unet_sees_fewer_places_the_deeper_it_is():
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(64, 128), layers_per_block=1, cross_attention_dim=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    arguments = {"sample": torch.zeros(1, 4, 32, 32), "encoder_hidden_states": torch.zeros(1, 77, 64)}
    counted = flops(unet, timestep=torch.zeros(1), **arguments)
    weights = {name: w for name, w in unet.named_parameters() if name.endswith(".weight") and w.ndim > 1}
    checkpoint = SimpleNamespace(
        architecture=SimpleNamespace(is_sensitive=lambda _: False),
        parameters=weights,
        layers=weights,
        tensors={n: SimpleNamespace(values=w.numel(), shape=w.shape) for n, w in weights.items()},
        modules={name: [name] for name in weights},
    )
    assert 0.5 < denoiser_cost(checkpoint, 256).flops / counted < 2


def test_a_plan_can_be_asked_for_a_gpu_that_is_not_here():
    said = hub("publish", "demo", "--dry-run", "--on-gpu", "rtx 4090").stdout
    assert "on a RTX 4090 with 24.00 GB" in said and "50% of the published peaks of the RTX 4090" in said
    assert " machine with" not in said


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        (["--dry-run", "--on-gpu", "RTX 9999"], "'rtx 3060 12gb'"),
        (["--on-gpu", "RTX 4090"], "--dry-run"),
        (["--on-gpu", "RTX 4090", "--dry-run", "--dtype", "float32"], "16 bits"),
    ],
    ids=["unknown", "not dry", "32 bits"],
)
def test_another_gpu_is_for_a_dry_run_and_one_of_the_table(options, refusal):
    result = CliRunner().invoke(main, ["publish", "demo", *options])
    assert result.exit_code == 2 and refusal in result.stderr
