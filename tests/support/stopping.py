"""Publish a small model in children: without harm, and killed inside its long steps.

    python stopping.py FOLDER

Run by test_inside_steps.py in a process of its own. FOLDER/<name>.log has what each run said, FOLDER/<name>.calls a
character for each call of the denoiser.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import ZImageTransformer2DModel

from hswq_hub.common import pieces
from hswq_hub.common.pieces import Pieces
from hswq_hub.generation import generate
from hswq_hub.settings import CalibrationSettings, ErrorSettings, EvaluationSettings, PublishSettings, recipe
from support import tiny
from support.killing import child, die, end, import_everything

SETTINGS = PublishSettings(
    recipe=replace(recipe(budget=0.8), measurement=ErrorSettings(calls=3)),
    calibration=CalibrationSettings(samples=3, steps=1),
    evaluation=EvaluationSettings(pairs=2, steps=1),
    calibration_memory=float(os.environ.get("MEM", 8)),
)
KILLS = (
    ("calibrate", 1, False),
    ("calibrate", 1, True),
    *[("round", 5, False)] * 12,
    *[("measure", 4, False)] * 6,
    ("evaluate", 3, False),
)
"""A step, the saving in it at which a run is killed, and whether that is in the middle of writing."""


def count_calls(path: Path) -> None:
    file = path.open("ab", buffering=0)

    def count(module: torch.nn.Module, *_: object) -> None:
        if isinstance(module, ZImageTransformer2DModel):
            file.write(b".")

    torch.nn.modules.module.register_module_forward_pre_hook(count)


def die_at(step: str, number: int, writing: bool) -> None:
    """Have this process killed at the `number`-th saving in `step`: after it, or in the middle of the state's file."""
    keep, save, saved = Pieces.keep, pieces.save_tensors, 0

    def counted(kept: Pieces, done: str, state: Callable[[], object]) -> None:
        nonlocal saved
        saved += kept.folder is not None and kept.folder.name.startswith(step)
        if saved == number and writing:
            pieces.save_tensors = half
        keep(kept, done, state)
        if saved == number:
            die()

    def half(path: Path, content: object) -> None:
        if path.name != "state":
            return save(path, content)
        temporary = path.with_name(".state.0123")
        save(temporary, content)
        os.truncate(temporary, temporary.stat().st_size // 2)
        die()

    Pieces.keep = counted


def run(folder: Path, name: str, kill: tuple[str, int, bool] | None = None) -> int:
    """The exit code of a run in the workspace `name`."""

    def before() -> None:
        count_calls(folder / f"{name}.calls")
        if kill is not None:
            die_at(*kill)

    return end(child(folder, name, before, SETTINGS))


if __name__ == "__main__":
    generate.time = SimpleNamespace(perf_counter=lambda: 0.0)
    pieces.INTERVAL = pieces.TIMES = 0
    place = Path(sys.argv[1])
    tiny.checkpoint(place)
    import_everything(place)
    assert run(place, "whole") == 0
    for kill in KILLS:
        assert run(place, "stopped", kill) == -signal.SIGKILL, kill
    assert run(place, "stopped") == 0
