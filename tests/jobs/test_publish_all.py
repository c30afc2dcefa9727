"""A list of models: what is done stays done, what fails for good is skipped, and a kill loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from support.jobs_server import JobsServer

from hswq_hub.cli.main import main
from hswq_hub.cli.publish import publish
from hswq_hub.cli.publish_all import read_entry
from hswq_hub.jobs import batch
from hswq_hub.jobs.batch import Entry, ListError, Manifest, publish_all, publish_all_as_jobs, read_list
from hswq_hub.jobs.jobs import Jobs, Need
from hswq_hub.jobs.settings import JobSettings
from hswq_hub.sources.errors import DownloadError, NotPermittedError
from hswq_hub.sources.find import resolve
from hswq_runtime.errors import UnknownArchitectureError

QUICK = "recipe: hswq, samples: 1, steps: 1, pairs: 1, picture-steps: 1"
SETTINGS = JobSettings(package="hswq-hub==9.9")


def entries(*references) -> list[Entry]:
    return [Entry((reference,)) for reference in references]


class Runner:
    """Publishes nothing, notes what it was asked for, and raises what it is told to."""

    def __init__(self, **raises):
        self.asked, self.raises = [], raises

    def __call__(self, entry):
        self.asked.append(entry.reference)
        if entry.reference in self.raises:
            raise self.raises[entry.reference]


@pytest.fixture
def models(tmp_path) -> Path:
    return tmp_path / "models.yaml"


def states(models, listed) -> list[str]:
    manifest = Manifest(models)
    return [manifest[entry].state for entry in listed]


def test_what_is_done_is_not_done_again(models):
    first, second = Runner(), Runner()
    publish_all(models, entries("a", "b"), first)
    publish_all(models, entries("a", "b", "c"), second)
    assert (first.asked, second.asked) == (["a", "b"], ["c"])


def test_an_entry_with_other_options_is_another_one(models):
    publish_all(models, [Entry(("a",))], Runner())
    publish_all(models, [Entry(("a", "--recipe", "hswq"))], runner := Runner())
    assert runner.asked == ["a"]


def test_what_fails_for_good_is_skipped_and_the_rest_tried_again(models):
    listed = entries("forbidden", "unknown", "network", "bug", "fine")
    runner = Runner(
        forbidden=NotPermittedError("its creator says no"),
        unknown=UnknownArchitectureError("never seen"),
        network=DownloadError("it broke off"),
        bug=ZeroDivisionError("oh"),
    )
    found = publish_all(models, listed, runner)
    assert [state.state for state in found] == ["impossible", "impossible", "failed", "failed", "done"]
    assert found[0].why == "its creator says no" and found[3].why == "ZeroDivisionError: oh"
    publish_all(models, listed, again := Runner())
    assert again.asked == ["network", "bug"]
    publish_all(models, listed, again := Runner(), again=True)
    assert again.asked == ["forbidden", "unknown"]
    assert states(models, listed) == ["done"] * 5


def test_another_version_of_the_tool_tries_what_this_one_cannot(models, monkeypatch):
    publish_all(models, entries("a"), Runner(a=UnknownArchitectureError("never seen")))
    document = json.loads(Manifest(models).path.read_text())
    for row in document.values():
        row["tool"] = "0.0.1"
    Manifest(models).path.write_text(json.dumps(document))
    publish_all(models, entries("a"), runner := Runner())
    assert runner.asked == ["a"]


def test_ctrl_c_stops_all_and_the_next_run_goes_on(models):
    with pytest.raises(KeyboardInterrupt):
        publish_all(models, entries("a", "b", "c"), Runner(b=KeyboardInterrupt()))
    publish_all(models, entries("a", "b", "c"), runner := Runner())
    assert runner.asked == ["b", "c"]


KILLED = """
import sys, time
from pathlib import Path
from hswq_hub.jobs.batch import Entry, publish_all

def run(entry):
    print(entry.reference, flush=True)
    if entry.reference == "second":
        time.sleep(60)

publish_all(Path(sys.argv[1]), [Entry((name,)) for name in ("first", "second", "third")], run, log=lambda _: None)
"""


def test_kill_9_loses_nothing(models):
    """Killed in the midst of the second one: the first stays done, and nothing keeps the list locked."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(models)], stdout=subprocess.PIPE, text=True)
    assert [process.stdout.readline().strip() for _ in range(2)] == ["first", "second"]
    with pytest.raises(ListError, match=r"another hswq-hub is at models\.yaml"):
        publish_all(models, entries("first"), Runner())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert states(models, entries("first", "second", "third")) == ["done", "running", "open"]
    publish_all(models, entries("first", "second", "third"), runner := Runner())
    assert runner.asked == ["second", "third"]
    assert [path.name for path in models.parent.iterdir()] == ["models.manifest.json"]


def test_an_empty_manifest_is_begun_again(models):
    models.with_suffix(".manifest.json").write_text("{}")
    publish_all(models, entries("a"), runner := Runner())
    assert runner.asked == ["a"]


@pytest.mark.parametrize("text", ["", "[]", "null", '{"a": {"state": "done", "surprise": 1}}'])
def test_a_manifest_of_somebody_else_is_left_alone(models, text):
    path = models.with_suffix(".manifest.json")
    path.write_text(text)
    with pytest.raises(ListError, match="is no manifest of ours"):
        publish_all(models, entries("a"), Runner())
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- demo\n- demo\n", "entry 2 of models.yaml: demo is listed twice"),
        ("- {reference: demo, sampels: 2}", "there is no option 'sampels'; did you mean samples?"),
        ("- {reference: demo, keep_ration: 0.1}", "did you mean keep-ratio?"),
        ("- {reference: demo, samples: many}", "'many' is not a valid integer"),
        ("- {reference: demo, samples: 0}", "not in the range"),
        ("- {reference: demo, samples: [1, 2]}", "samples takes one value, not [1, 2]"),
        ("- {reference: demo, samples: true}", "samples takes one value, not True"),
        ("- {reference: demo, row-scales: 1}", "row-scales is true or false, not 1"),
        ("- {reference: demo, recipe: fast}", "is not one of"),
        ("- {reference: demo, on: hf-jobs}", "there is no option"),
        ("- {reference: 7}", "it needs a reference"),
        ("- {repo: a/b}", "it needs a reference"),
        ("demo", "is no list of models"),
        ("[]", "is no list of models"),
        ("- [", "is no YAML"),
        ("- !!python/object:os.system {}", "is no YAML"),
    ],
)
def test_lists_that_are_not_right(models, text, said):
    models.write_text(text)
    with pytest.raises(ListError) as caught:
        read_list(models, read_entry)
    assert said in str(caught.value)


def test_an_entry_says_what_the_command_line_would(models):
    models.write_text(
        "- demo\n"
        "- reference: civitai:1@2\n"
        "  keep_ratio: 0.25\n  row-scales: true\n  verify: false\n  i-have-permission: true\n  format: v2\n"
    )
    one, other = read_list(models, read_entry)
    assert one.words == ("demo",)
    given = publish.make_context("publish", list(other.words)).params
    assert given["reference"] == "civitai:1@2" and given["permitted"] and given["row_scales"] and not given["verify"]
    assert (given["keep_ratio"], given["format_"]) == (0.25, "v2")


def test_from_the_command_line(models, tmp_path, monkeypatch):
    """One after another, for real; what cannot be is listed, and the exit code says that something is left."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.safetensors").write_text("no tensors here")
    base = resolve("demo").base
    models.write_text(
        f"- nobody_v9\n- {{reference: broken.safetensors, base: {base}}}\n- {{reference: demo, {QUICK}}}\n"
    )
    result = CliRunner().invoke(main, ["publish-all", "models.yaml"])
    assert result.exit_code == 1, result.output
    assert (tmp_path / "hswq-published/demo-hswq/README.md").is_file() and "naive FP8" in result.stdout
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert "impossible" in rows["nobody_v9"] and "neither a file here nor a known reference" in rows["nobody_v9"]
    assert "failed" in rows["broken.safetensors"] and "not a complete safetensors file" in rows["broken.safetensors"]
    models.write_text(f"- {{reference: demo, {QUICK}}}\n")
    before = (tmp_path / "hswq-published/demo-hswq/README.md").stat().st_mtime_ns
    result = CliRunner().invoke(main, ["publish-all", "models.yaml"])
    assert result.exit_code == 0 and (tmp_path / "hswq-published/demo-hswq/README.md").stat().st_mtime_ns == before


def test_options_of_a_job_without_a_job(models):
    models.write_text("- demo")
    result = CliRunner().invoke(main, ["publish-all", str(models), "--flavor", "h200"])
    assert result.exit_code == 2 and "--on hf-jobs" in result.stderr


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(batch, "POLL_SECONDS", 0.01)
    with JobsServer() as server, server.as_the_hub(monkeypatch):
        server.starts = {"stage": "COMPLETED"}
        yield server


def prepare(entry):
    return "demo", ["publish", *entry.words], Need(0, True)


def as_jobs(models, listed, agree=lambda *_: None, **how):
    return publish_all_as_jobs(models, listed, Jobs(), SETTINGS, prepare, agree, log=lambda _: None, **how)


def test_each_becomes_a_job_and_is_asked_for_once(models, hub):
    asked = []
    found = as_jobs(models, entries("a", "b"), lambda *what: asked.append(what))
    assert [state.state for state in found] == ["done", "done"] and len(hub.jobs) == 2
    assert asked == [(2, pytest.approx(2 * 3 * 1.8))]
    as_jobs(models, entries("a", "b"), lambda *_: pytest.fail("nothing is left to start"))
    assert len(hub.jobs) == 2


def test_nothing_starts_if_that_is_not_agreed_to(models, hub):
    def no(*_):
        raise click.Abort

    with pytest.raises(click.Abort):
        as_jobs(models, entries("a"), no)
    assert not hub.jobs and states(models, entries("a")) == ["open"]


def test_a_job_that_failed_is_started_anew_by_the_next_run(models, hub):
    hub.starts = {"stage": "ERROR", "message": "OOM"}
    (state,) = as_jobs(models, entries("a"))
    assert state.state == "failed" and "ended as ERROR, OOM" in state.why and f"jobs logs {state.job}" in state.why
    hub.starts = {"stage": "COMPLETED"}
    (state,) = as_jobs(models, entries("a"))
    assert state.done and len(hub.jobs) == 2


def test_running_jobs_are_left_by_ctrl_c_and_found_again(models, hub, monkeypatch):
    hub.starts = {"stage": "SCHEDULING"}

    def interrupt(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", interrupt)
        (state,) = as_jobs(models, entries("a"))
    assert state.state == "running"
    hub.jobs[state.job.split("/")[1]].stage = "COMPLETED"
    (state,) = as_jobs(models, entries("a"))
    assert state.done and len(hub.jobs) == 1


def test_a_run_that_died_while_it_started_a_job_does_not_pay_twice(models, hub):
    """The job was taken, but the manifest does not know it: its label does."""
    (entry,) = entries("a")
    Manifest(models)[entry] = batch.State(batch.STARTING)
    Jobs().submit(["hswq-hub", "publish", "a"], "demo", SETTINGS, entry.key)
    (state,) = as_jobs(models, [entry])
    assert state.done and len(hub.jobs) == 1
    hub.starts = {"stage": "ERROR"}
    as_jobs(models, [failed := Entry(("c",))])
    Manifest(models)[failed] = batch.State(batch.STARTING)
    hub.starts = {"stage": "COMPLETED"}
    assert as_jobs(models, [failed])[0].done, "its job of an earlier run is none for this one"
    before = len(hub.jobs)
    (other,) = entries("b")
    Manifest(models)[other] = batch.State(batch.STARTING)
    as_jobs(models, [other])
    assert len(hub.jobs) == before + 1, "that one was never taken"


def test_what_a_run_on_this_machine_left_half_done_is_begun_as_a_job(models, hub):
    (entry,) = entries("a")
    Manifest(models)[entry] = batch.State(batch.RUNNING)
    (state,) = as_jobs(models, [entry])
    assert state.done and len(hub.jobs) == 1


def test_a_refused_start_is_written_down(models, hub):
    hub.refuse = {"start": (402, "Credit balance is empty")}
    (state,) = as_jobs(models, entries("a"))
    assert state.state == "failed" and "asks for credit" in state.why
    del hub.refuse["start"]
    assert as_jobs(models, entries("a"))[0].done
