"""What runs elsewhere after a push is what is here."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_each_job_runs_something_that_there_is():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert runs == {"test": ["bash .ci/run"], "lowest": ["make test-lowest NOT_LOWEST="], "audit": ["make audit"]}
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    script = (ROOT / ".ci/run").read_text()
    for line in [*script.splitlines(), *(run for commands in runs.values() for run in commands)]:
        if line.startswith("make "):
            assert line.split()[1] in targets
