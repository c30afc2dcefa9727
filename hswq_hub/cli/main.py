"""The command line: a command parses, calls one function, prints. Nothing imports this room.

Everything heavy is imported inside the commands, so that help is there at once.
"""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from hswq_runtime.errors import HSWQError, is_out_of_memory
from hswq_runtime.text import sentence

from .. import __version__
from ..calibration.processes import Stopped, check_shared, is_launched
from .demo import demo, my_repo
from .jobs import jobs
from .models import cache, inspect, login, models, pull
from .publish import publish, status, upload
from .publish_all import publish_all
from .steps import calibrate, card, compare, evaluate, quantize
from .terminal import say

DEBUG_VARIABLE = "HSWQ_DEBUG"


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_GO_ON = "then run the same command again to go on after what was finished"


class _Group(click.Group):
    """The one place where an error becomes a sentence on stderr and exit code 2; and where a run that is stopped ends,
    with 130 after Ctrl-C and 143 after SIGTERM, as shells count signals."""

    def invoke(self, context: click.Context) -> Any:
        try:
            with _stoppable():
                return super().invoke(context)
        except KeyboardInterrupt as stop:
            if not is_launched():  # the launcher says it once
                say("stopped; what was finished is kept, run the same command again to go on after it")
            sys.exit(128 + (signal.SIGTERM if isinstance(stop, Stopped) else signal.SIGINT))
        except Exception as error:
            said = _of_the_machine(error) or (str(error) if isinstance(error, HSWQError | OSError) else None)
            if said is None or os.environ.get(DEBUG_VARIABLE) or isinstance(error, BrokenPipeError):
                raise
            say(f"Error: {sentence(said)}")
            sys.exit(2)


def _of_the_machine(error: Exception) -> str | None:
    """What is said of a full disk, of one that may not be written to, of a full memory; None of other errors."""
    if is_out_of_memory(error):
        return f"no memory is left; end other programs, or take a machine with more, {_GO_ON}"
    if not isinstance(error, OSError):
        return None
    path = error.filename2 or error.filename  # of two, the one that is written
    where = os.fsdecode(path) if isinstance(path, str | bytes) else None
    if error.errno in _NO_ROOM:
        where = f", where {where} is" if where else ""
        prune = "`hswq-hub cache prune` removes what nothing needs any more"
        return f"no room is left on the disk{where}; free some ({prune}), {_GO_ON}"
    if error.errno in _CLOSED and where:
        return f"{where} is out of reach ({str(error.strerror).lower()}); change that, {_GO_ON}"
    return None


@contextmanager
def _stoppable() -> Iterator[None]:
    """Inside of it SIGTERM raises :class:`Stopped`, so that nothing half-written is left."""
    if is_launched() or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="hswq-hub")
@click.pass_context
def main(context: click.Context) -> None:
    """Quantize diffusion checkpoints to HSWQ FP8, measure them against the original, publish them.

    \b
    hswq-hub publish demo                                   try it: offline, on the bundled model
    hswq-hub publish model.safetensors --folder OUT         your own checkpoint
    """
    check_shared(context.invoked_subcommand)


for command in (
    *(publish, status, upload, publish_all),
    *(calibrate, quantize, evaluate, card, compare),
    *(inspect, pull, models, cache, login),
    *(jobs, demo, my_repo),
):
    main.add_command(command)
