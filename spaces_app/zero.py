"""ZeroGPU: a Space that borrows a GPU for the length of one call. Anywhere else nothing happens here."""

import os
from collections.abc import Callable
from importlib.util import find_spec

ON_ZERO_GPU = bool(os.environ.get("SPACES_ZERO_GPU"))
"""Whether this is such a Space: it has to place its models while it starts, and may not compile."""


def gpu(duration: Callable[..., int]):
    """Decorate a generator that needs the GPU; `duration` takes its arguments and says for how many seconds."""
    if find_spec("spaces") is None:
        return lambda function: function
    import spaces

    return spaces.GPU(duration=duration)
