"""The command line: a command parses, calls one function, prints. Nothing imports this room.

Everything heavy is imported inside the commands, so that help is there at once.
"""

import os
import sys
from typing import Any

import click

from hswq_runtime.errors import HSWQError
from hswq_runtime.text import sentence

from .. import __version__
from ..calibration.processes import check_shared
from .demo import demo
from .jobs import jobs
from .models import cache, inspect, login, models, pull
from .publish import publish, status, upload
from .publish_all import publish_all
from .steps import calibrate, card, compare, evaluate, quantize
from .terminal import say

DEBUG_VARIABLE = "HSWQ_DEBUG"


class _Group(click.Group):
    """The one place where an error becomes a sentence on stderr and exit code 2."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (HSWQError, OSError) as error:
            if os.environ.get(DEBUG_VARIABLE) or isinstance(error, BrokenPipeError):
                raise
            say(f"Error: {sentence(str(error))}")
            sys.exit(2)


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
    *(jobs, demo),
):
    main.add_command(command)
