"""Publish a small model in children: without harm, killed in every step, inside of the long ones, and two at once.

    python killing.py FOLDER

Run by test_resume.py in a process of its own. Children are forked, so that everything is imported once. <name>.log has
what the runs in a workspace said, <name>.calls a character for each call of the denoiser.
"""

import os
import signal
import sys
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from hswq_hub.common import targets
from hswq_hub.evaluation import plots
from hswq_hub.generation import generate
from hswq_hub.settings import CalibrationSettings, ErrorSettings, EvaluationSettings, PublishSettings, recipe
from hswq_hub.sources.find import resolve
from hswq_hub.workflow import steps
from hswq_hub.workflow.publish import publish
from hswq_hub.workflow.stages import folder as folder_stage
from hswq_runtime import load_model
from support import tiny
from support.stopping import KILLS, count_calls, end_at

tiny.CONFIG |= tiny.FITS_DEMO
NAMES = ("calibrate", "search", "round", "measure", "write v1", "write v2", "naive", "evaluate")
SETTINGS = PublishSettings(
    recipe=replace(recipe(budget=0.8), measurement=ErrorSettings(calls=2)),
    calibration=CalibrationSettings(samples=2, steps=2, calls=3),
    evaluation=EvaluationSettings(pairs=2, steps=1, noise_floor=False),
    calibration_memory=0.006,  # GB, so that the model is replayed in parts
)


def child(folder: Path, name: str, before=lambda: None, settings=SETTINGS) -> int:
    """Start a publish below `folder`, in the workspace `name`; its log is added to that of earlier ones."""
    process = os.fork()
    if process:
        return process
    try:
        os.environ["HSWQ_HOME"] = str(folder / name / "home")
        with (folder / f"{name}.log").open("a", buffering=1) as log:
            count_calls(folder / f"{name}.calls")
            before()
            source = resolve(str(folder / "tiny.safetensors"), base=resolve("demo").base)
            publish(source, folder / name / "out", settings, log=lambda line: log.write(line + "\n"))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def end(process: int) -> int:
    """The exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def die(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in(name: str):
    """Have the step `name` killed when its product is on the disk under a temporary name."""

    def arm():
        original = steps.replace_folder

        def replace_folder(folder, fill):
            if folder.name.rpartition("-")[0] == name.replace(" ", "-"):
                targets.flush = die
            original(folder, fill)

        steps.replace_folder = replace_folder

    return arm


def die_while_renaming():
    """Have the finished folder killed when the old one is out of the way and the new one not yet in its place."""
    rename = Path.rename

    def dying(path, target):
        die() if path.name == "new" and Path(target).name == "out" else rename(path, target)

    Path.rename = dying


def kill(folder: Path) -> None:
    assert end(child(folder, "whole")) == 0
    for name in NAMES:
        assert end(child(folder, "killed", die_in(name))) == -signal.SIGKILL, name
    assert end(child(folder, "killed", lambda: setattr(folder_stage, "fill_folder", die))) == -signal.SIGKILL
    assert end(child(folder, "killed")) == 0
    other = replace(SETTINGS, recipe=replace(SETTINGS.recipe, budget=0.85))
    assert end(child(folder, "killed", die_while_renaming, other)) == -signal.SIGKILL
    assert not (folder / "killed/out").exists()
    assert end(child(folder, "killed")) == 0


def kill_inside(folder: Path) -> None:
    for kill in KILLS:
        code = 1 if kill[-1] == "full" else -signal.SIGKILL
        assert end(child(folder, "inside", partial(end_at, *kill))) == code, kill
    assert end(child(folder, "inside")) == 0


def together(folder: Path) -> None:
    settings = replace(SETTINGS, recipe=recipe("hswq"))
    both = [child(folder, "together", settings=settings) for _ in range(2)]
    assert [end(process) for process in both] == [0, 0]


def import_everything(folder: Path) -> None:
    """What a publish loads on its way, loaded before anything is forked."""
    source = resolve(str(folder / "tiny.safetensors"), base=resolve("demo").base)
    denoiser = load_model(source.checkpoint, torch.float32)
    generate.open_pipeline(source.checkpoint, denoiser, source.base, torch.device("cpu"))
    plots.save(plots.error_against_size({"V1": (0.5, 1e-3)}), folder / "plot.png")


if __name__ == "__main__":
    # A clock that stands still: times are the one thing that differs from run to run.
    generate.time = SimpleNamespace(perf_counter=lambda: 0.0)
    place = Path(sys.argv[1])
    tiny.checkpoint(place)
    import_everything(place)
    kill(place)
    kill_inside(place)
    together(place)
