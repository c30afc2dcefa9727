"""What the steps still to be done will take, in a line each: time and memory."""

from collections.abc import Sequence

from ..common.text import roughly
from .forecast import Forecast
from .memory import Memory
from .steps import Step


def time_line(forecast: Forecast, steps: Sequence[Step]) -> str:
    """How long `steps` will take, and what that rests on."""
    return f"{roughly(sum(forecast.seconds(step) for step in steps))}, an estimate from {forecast.basis}"


def estimate(forecast: Forecast, steps: Sequence[Step], memories: Sequence[Memory]) -> str:
    """Time and memory of `steps`, a line each."""
    if not steps:
        return "all of it was done before"
    return "\n".join([f"time: {time_line(forecast, steps)}", *(f"memory: {memory.line}" for memory in memories)])
