"""Where work and caches are kept."""

import os
from pathlib import Path


def home() -> Path:
    """Where work and caches are kept: $HSWQ_HOME, or ~/.cache/hswq-hub."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".cache" / "hswq-hub")


HOME_VARIABLE = "HSWQ_HOME"
