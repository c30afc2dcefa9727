"""Somebody else's GPU: what is sent there, what it costs, what comes back; driven by the Hub's real client."""

import json

import pytest
from click.testing import CliRunner
from support import jobs_server
from support.jobs_server import TOKEN, JobsServer

from hswq_hub.cli import terminal
from hswq_hub.cli.main import main
from hswq_hub.cli.publish import publish
from hswq_hub.jobs import jobs
from hswq_hub.jobs.jobs import JobError, Jobs, Need, check_portable, requirement, seconds_of
from hswq_hub.jobs.settings import JobSettings
from hswq_hub.settings import SourceSettings

CIVITAI_TOKEN = "civitai-secret-0123"
PACKAGE = "hswq-hub==9.9"
SETTINGS = JobSettings(package=PACKAGE)


@pytest.fixture
def hub(monkeypatch):
    with JobsServer() as server, server.as_the_hub(monkeypatch):
        yield server


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command line, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words, **how: CliRunner().invoke(main, [str(word) for word in words], **how)


def start(run, *words, reference="demo"):
    return run(
        "publish", reference, "--repo", "alice/demo-hswq", "--on", "hf-jobs", "--package", PACKAGE, "--yes", *words
    )


def test_the_same_command_becomes_a_job_and_is_followed(hub, run):
    hub.starts["lines"] = ["calibrate 1/2", "SSIM 0.9995"]
    result = start(run, "--flavor", "t4", "--timeout", "90m", "--samples", 2, "--recipe", "hswq", "--row-scales")
    assert result.exit_code == 0, result.output
    (job,) = hub.jobs.values()
    assert job.spec["command"] == [
        "uv", "run", "--no-project", "--python", jobs.PYTHON, "--with", PACKAGE,
        "hswq-hub", "publish", "demo", "--recipe", "hswq", "--row-scales", "--samples", "2", "--repo",
        "alice/demo-hswq", "--device", "cuda", "--yes",
    ]  # fmt: skip
    assert (job.spec["flavor"], job.spec["timeoutSeconds"], job.spec["dockerImage"]) == ("t4", 5400, jobs.IMAGE)
    assert "calibrate 1/2\nSSIM 0.9995\n" in result.stdout and f"/jobs/alice/{job.id}" in result.stdout


def test_what_the_job_runs_is_understood_by_the_command_line(hub, run):
    start(run, "--samples", 2, "--keep-ratio", 0.25, "--keep-by", "variance")
    (job,) = hub.jobs.values()
    words = job.spec["command"][job.spec["command"].index("publish") + 1 :]
    given = publish.make_context("publish", words).params
    assert (given["samples"], given["keep_ratio"], given["keep_by"], given["on"]) == (2, 0.25, "variance", None)


def test_a_gpu_that_is_paid_for_is_not_replaced_by_the_cpu(hub, run):
    start(run, "--flavor", "l40sx1")
    start(run, "--flavor", "cpu-basic")
    start(run, "--flavor", "l40sx1", "--device", "cpu")
    commands = [job.spec["command"] for job in hub.jobs.values()]
    assert ["--device cuda" in " ".join(command) for command in commands] == [True, False, False]
    assert "--device cpu" in " ".join(commands[2])


def test_tokens_are_secrets_and_nothing_else(hub, run, monkeypatch):
    monkeypatch.setenv("CIVITAI_API_TOKEN", CIVITAI_TOKEN)
    account = Jobs()
    account.submit(["hswq-hub", "publish", "civitai:1@2"], "civitai:1@2", SETTINGS)
    result = start(run)
    of_civitai, of_demo = (job.spec for job in hub.jobs.values())
    assert of_civitai.pop("secrets") == {"HF_TOKEN": TOKEN, "CIVITAI_API_TOKEN": CIVITAI_TOKEN}
    assert of_demo.pop("secrets") == {"HF_TOKEN": TOKEN}, "a token goes only where it is needed"
    for text in (json.dumps([of_civitai, of_demo]), result.output):
        assert TOKEN not in text and CIVITAI_TOKEN not in text
    with pytest.raises(JobError, match="holds a token"):
        account.submit(["hswq-hub", "publish", "demo", "--licence", TOKEN], "demo", SETTINGS)
    assert len(hub.jobs) == 2


def test_a_token_that_a_job_writes_is_not_shown(hub, run):
    hub.starts["lines"] = [f"the token is {TOKEN}!"]
    assert "the token is …!" in start(run).stdout


def test_a_civitai_model_needs_its_token(hub):
    with pytest.raises(JobError, match="hswq-hub login civitai"):
        Jobs().submit(["hswq-hub", "publish", "civitai:1@2"], "civitai:1@2", SETTINGS)
    assert not hub.jobs


def test_the_price_is_the_hubs(hub, run):
    hub.machines = [jobs_server.machine("l40sx1", "48 GB", cents=4.5)]
    result = start(run, "--timeout", "2h")
    assert "$2.70 an hour" in result.stderr and "at most $5.40 for 2 h" in result.stderr
    hub.machines[0] |= {"unitLabel": "fortnight"}
    assert "billed by the fortnight" in start(run).stderr


def test_nothing_starts_before_somebody_agreed(hub, run, monkeypatch):
    words = ("publish", "demo", "--repo", "a/b", "--on", "hf-jobs", "--package", PACKAGE)
    result = run(*words)
    assert result.exit_code == 2 and "say --yes" in result.stderr
    monkeypatch.setattr(terminal, "is_attended", lambda: True)
    assert run(*words, input="n\n").exit_code == 1
    assert not hub.jobs
    assert run(*words, input="y\n").exit_code == 0 and len(hub.jobs) == 1


def test_a_dry_run_says_what_it_would_cost_and_starts_nothing(hub, run):
    result = start(run, "--dry-run")
    assert result.exit_code == 0 and "at most $5.40" in result.stderr and not hub.jobs


@pytest.mark.parametrize(
    ("weights", "complete", "said"),
    [
        (40 * 10**9, True, None),
        (49 * 10**9, True, "takes 49.00 GB in memory, but l40sx1 has 48.00 GB"),
        (49 * 10**9, False, "takes 49.00 GB"),
        (10**9, False, "is not known"),
    ],
)
def test_too_little_memory_is_said_before(hub, weights, complete, said):
    warnings = [line for line in Jobs().offer(SETTINGS, Need(weights, complete)).lines() if "Warning" in line]
    assert len(warnings) == bool(said) and (said is None or said in warnings[0])


def test_the_need_is_what_the_hosts_list(hub, run):
    hub.repos = {
        "bob/finetune": {"big.safetensors": 20 * 10**9, "README.md": 100},
        "bob/base": {"model_index.json": 500, "transformer/x.safetensors": 90 * 10**9, "vae/y.safetensors": 9 * 10**9},
    }
    result = start(run, "--base", "bob/base", "--flavor", "t4", reference="bob/finetune/big.safetensors")
    assert result.exit_code == 0, result.output
    assert "takes 29.00 GB in memory, but t4 has 16.00 GB" in result.stderr
    assert "publish hf:bob/finetune/big.safetensors" in " ".join(next(iter(hub.jobs.values())).spec["command"])


def test_memory_of_one_gpu_of_several_counts(hub):
    hub.machines.append(jobs_server.machine("l40sx4", "192 GB"))
    hub.machines[-1]["accelerator"]["quantity"] = "4"
    offer = Jobs().offer(JobSettings(flavor="l40sx4"), Need(60 * 10**9, True))
    assert offer.memory == 48 * 10**9 and "Warning" in offer.lines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model.safetensors",), "cannot read model.safetensors, which is on this machine"),
        (("demo", "--base", "here"), "cannot read the base here"),
        (("demo", "--folder", "out"), "leave out --folder"),
        (("demo", "--prompts", "my.txt"), "cannot read the prompts my.txt"),
        (("demo", "--evaluation-prompts", "my.txt"), "or publish here, without --on"),
    ],
)
def test_what_is_on_this_machine_is_refused(hub, run, tmp_path, words, said):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "here").mkdir()
    result = run("publish", *words, "--repo", "a/b", "--on", "hf-jobs", "--package", PACKAGE, "--yes")
    assert result.exit_code == 2 and said in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not hub.jobs


def test_without_a_repo_nothing_would_be_left():
    with pytest.raises(JobError, match="--repo OWNER/NAME"):
        check_portable("demo", SourceSettings(), None, None)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, "Invalid token"), "hf auth login"),
        ((402, "Credit balance is empty"), r"asks for credit .*Credit balance is empty.*settings/billing"),
        ((403, f"token {TOKEN} may not"), r"the token may not do this .*token … may not.*settings/tokens"),
        ((500, "oops"), r"answers 500 .*run the same command again later"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_refusals_are_sentences(hub, run, answer, said):
    hub.refuse = {"start": answer}
    result = start(run)
    assert result.exit_code == 2 and TOKEN not in result.output
    with pytest.raises(JobError, match=said):
        raise JobError(result.stderr)


def test_no_token_and_no_network(hub, monkeypatch):
    monkeypatch.setattr(jobs, "hub_token", lambda: None)
    with pytest.raises(JobError, match="needs a Hugging Face token"):
        Jobs()
    monkeypatch.setattr(jobs, "hub_token", lambda: TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(JobError, match="cannot be reached"):
        Jobs()


def test_an_unknown_flavour_names_those_with_a_gpu(hub, run):
    result = start(run, "--flavor", "l40s")
    assert result.exit_code == 2 and "those with a GPU are l40sx1, t4" in result.stderr


def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(hub, run, monkeypatch):
    def interrupted(*_, **__):
        yield "first line"
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.HfApi.fetch_job_logs", interrupted)
    result = start(run)
    (job,) = hub.jobs.values()
    assert result.exit_code == 0 and "first line" in result.stdout and job.running
    assert f"hswq-hub jobs logs alice/{job.id}" in result.stderr


def test_a_job_that_failed_is_a_failure(hub, run):
    hub.starts = {"stage": "ERROR", "message": "OOM", "lines": ["boom"]}
    result = start(run)
    assert result.exit_code == 1 and "boom" in result.stdout and "ended as ERROR, OOM" in result.stderr


def test_jobs_are_listed_followed_and_cancelled(hub, run):
    account = Jobs("lab")
    job = account.submit(["hswq-hub", "publish", "demo"], "demo", SETTINGS)
    hub.jobs["f0"] = jobs_server.Job("f0", "lab", {"labels": {"name": "x"}})
    listed = run("jobs", "--namespace", "lab")
    assert f"lab/{job.id}" in listed.stdout and "10 min" in listed.stdout and "lab/f0" not in listed.stdout
    assert f"lab/{job.id}" not in run("jobs").stdout, "another namespace"
    assert run("jobs", "cancel", f"lab/{job.id}").exit_code == 0 and hub.jobs[job.id].stage == "CANCELED"
    result = run("jobs", "--namespace", "lab", "logs", job.id)
    assert "made" in result.stdout and result.exit_code == 1 and "CANCELED" in result.stderr
    assert "does not know" in run("jobs", "logs", "f" * 24).stderr
    assert "no id of a job" in run("jobs", "logs", "../../etc").stderr


@pytest.mark.parametrize(
    ("direct_url", "installs"),
    [
        (None, "hswq-hub=="),
        ({"url": "https://example.org/w.whl", "archive_info": {}}, "hswq-hub @ https://example.org/w.whl"),
        (
            {"url": "https://example.org/r.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "hswq-hub @ git+https://example.org/r.git@abc",
        ),
    ],
    ids=["release", "wheel", "git"],
)
def test_a_job_installs_what_runs_here(monkeypatch, direct_url, installs):
    class Distribution:
        def read_text(self, name):
            return json.dumps(direct_url) if name == "direct_url.json" and direct_url else None

    monkeypatch.setattr(jobs, "distribution", lambda name: Distribution())
    assert requirement().startswith(installs)


def test_what_is_installed_from_this_machine_has_to_be_named(monkeypatch, tmp_path):
    class Editable:
        def read_text(self, name):
            return json.dumps({"url": "file:///home/alice/hswq", "dir_info": {"editable": True}})

    monkeypatch.setattr(jobs, "distribution", lambda name: Editable())
    with pytest.raises(JobError, match="say with --package"):
        requirement()
    (tmp_path / "own.whl").write_bytes(b"PK")
    with pytest.raises(JobError, match=r"cannot install own\.whl from this machine"):
        requirement(str(tmp_path / "own.whl"))


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("3h", 10800), ("1.5h", 5400), ("1d", 86400)])
def test_times(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "3", "3 h", "0s", "-1h", "3y"])
def test_what_is_no_time(text):
    with pytest.raises(JobError, match="write 90m"):
        seconds_of(text)
