"""ZeroGPU: a Space that borrows a GPU for the length of one call. Anywhere else nothing happens here."""

import os
from collections.abc import Callable
from importlib.util import find_spec

ON_ZERO_GPU = bool(os.environ.get("SPACES_ZERO_GPU"))
"""Whether this is such a Space: it has to place its models while it starts, and `torch.compile` is of no use there."""
AHEAD = ON_ZERO_GPU and os.environ.get("HSWQ_AOT", "").lower() == "true"
"""Whether the models that it starts with are compiled ahead of time, which takes minutes of a GPU at every start."""


def gpu(duration: Callable[..., int]):
    """Decorate a function or generator that needs the GPU; `duration` takes its arguments and says how many seconds."""
    if find_spec("spaces") is None:
        return lambda function: function
    import spaces

    return spaces.GPU(duration=duration)
