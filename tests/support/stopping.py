"""For killing.py: kill this process while a step is under way, and count what is computed."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import ZImageTransformer2DModel

from hswq_hub.common import pieces
from hswq_hub.common.pieces import Pieces

KILLS = (
    ("calibrate", 1, "after"),
    ("round", 4, "after"),
    ("round", 6, "while"),
    ("measure", 3, "full"),
    ("evaluate", 3, "after"),
)
"""A step, the saving in it at which a run ends, and how: killed after it or while it writes, or with a full disk."""


def count_calls(path: Path) -> None:
    """From now on add a character to `path` for each call of the denoiser."""
    file = path.open("ab", buffering=0)

    def count(module: torch.nn.Module, *_: object) -> None:
        if isinstance(module, ZImageTransformer2DModel):
            file.write(b".")

    torch.nn.modules.module.register_module_forward_pre_hook(count)


def end_at(step: str, number: int, how: str) -> None:
    """Save wherever that can be, and have this process end at the `number`-th saving in `step`, see `KILLS`."""
    keep, save, saved = Pieces.keep, pieces.save_tensors, 0
    save_always()

    def counted(kept: Pieces, done: str, state: Callable[[], object]) -> None:
        nonlocal saved
        saved += kept.folder is not None and kept.folder.name.startswith(step)
        if saved == number and how == "while":
            pieces.save_tensors = half
        if saved == number and how == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        keep(kept, done, state)
        if saved == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def half(path: Path, content: object) -> None:
        if path.name != "state":
            return save(path, content)
        temporary = path.with_name(".state.0123")
        save(temporary, content)
        os.truncate(temporary, temporary.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    Pieces.keep = counted


def save_always() -> None:
    """Time is no matter."""
    pieces.INTERVAL = pieces.TIMES = 0
