"""Runs of the command line, each in a process of its own, forked from this one, which has imported everything.

    python -m faults.forked

Reads orders, a line of JSON each, and answers each with one: see `children.py`. In a run, tries follow each other
without a pause, time is not measured (times are the one thing that differs from run to run), and nothing is tried out
for the forecast. A run that is to be held says so with a file in `gates`, and waits for another one.
"""

import atexit
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

from .steps import PROMPTS, QUICK

NOBODY = 65534
YEARS = 10 * 365 * 86_400


def serve() -> None:
    """Take orders until there are no more."""
    warm_up(Path(sys.argv[1]))
    answer({"ready": True})
    for line in sys.stdin:
        order = json.loads(line)
        if "poll" in order:
            found, status = os.waitpid(order["poll"], os.WNOHANG)
            answer({"code": os.waitstatus_to_exitcode(status) if found else None})
            continue
        child = os.fork()
        if not child:
            run(order)
        answer({"pid": child})


def answer(value: dict[str, object]) -> None:
    print(json.dumps(value), flush=True)


def warm_up(model: Path) -> None:
    """Publish once, so that all is imported and compiled that a publish needs; measure nothing from now on."""
    from huggingface_hub.utils import _http

    from hswq_hub.cli.main import main
    from hswq_hub.common import retry
    from hswq_hub.common.speed import trial
    from hswq_hub.generation import generate
    from hswq_hub.hub import upload  # noqa: F401
    from hswq_hub.sources.find import resolve

    generate.time = SimpleNamespace(perf_counter=lambda: 0.0)
    trial._timed, trial.disk_rate = lambda _: 1e-4, lambda _: 1e9
    retry.sleep = lambda _: None
    _http.time = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=lambda _: None)
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(sys.stderr):
        os.environ["HSWQ_HOME"] = place
        base = resolve("demo").base
        words = ["publish", str(model), "--base", base, "--folder", f"{place}/out", *QUICK.split()]
        for option, name in zip(("--prompts", "--evaluation-prompts"), PROMPTS, strict=True):
            words += [option, str(model.parent / name)]
        main(words, standalone_mode=False)


def run(order: dict) -> None:
    """One run; never returns."""
    for file, name in ((1, "said"), (2, "log")):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGUSR1, set_back)
    os.environ.update(order["environment"])
    os.chdir(order["cwd"])
    if order["as_nobody"]:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    tempfile.tempdir = os.environ["TMPDIR"]
    import matplotlib
    from huggingface_hub import constants

    from hswq_hub.cli.main import main

    matplotlib.rcParams  # noqa: B018 (read now, not where a home may be full)
    constants.HF_HUB_CACHE = os.environ["HF_HUB_CACHE"]
    if order["step"]:
        hold_in(order["step"], order["moment"], Path(order["gates"]))
    code = 0
    try:
        main(order["words"], prog_name="hswq-hub")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def set_back(*_: object) -> None:
    """The clock is ten years behind from now on."""
    real = time.time
    time.time = lambda: real() - YEARS


def hold_in(step: str, moment: str, gates: Path) -> None:
    """Hold this run once in `step`: as it begins, or as its first file is to get its name; and once it is done."""
    from hswq_hub.workflow import steps

    replace_folder = steps.replace_folder
    name = step.replace(" ", "-")

    def replacing(folder: Path, fill) -> None:
        if folder.name.rpartition("-")[0] != name:
            return replace_folder(folder, fill)

        def filling(new: Path) -> None:
            if moment == "begin":
                hold(gates, "reached")
            else:
                watch(name, gates)
            fill(new)

        replace_folder(folder, filling)
        hold(gates, "done")

    steps.replace_folder = replacing


def watch(name: str, gates: Path) -> None:
    """Hold before the next rename of something that `step` makes."""
    part = "/.tiny-hswq." if name == "folder" else f"/.{name}-"
    held = False

    def look(event: str, arguments: tuple) -> None:
        nonlocal held
        if event == "os.rename" and not held and part in os.fspath(arguments[0]):
            held = True
            hold(gates, "reached")

    sys.addaudithook(look)


def hold(gates: Path, name: str) -> None:
    """Say that this run is there, and wait until it may go on."""
    os.close(os.open(gates / name, os.O_WRONLY | os.O_CREAT))
    while not os.path.exists(gates / f"{name}.go"):
        time.sleep(0.005)


if __name__ == "__main__":
    serve()
