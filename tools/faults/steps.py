"""Where a run can be hurt: the steps of a publish as people see them, from the reference to the repo."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A step. held: the request, a method and a pattern of its path, that a host holds while the fault comes; None:
    the step has a product in the workspace, and holds itself."""

    name: str
    held: tuple[str, str] | None = None


CIVITAI_LISTING, CIVITAI_FILE = ("civitai", "/api/v1/model-versions/"), ("civitai", "/bucket/")
BASE_INDEX, COMMIT = ("GET", "alice/base"), ("POST", "/commit/")
BEFORE = (
    Place("look up", CIVITAI_LISTING),
    Place("base", BASE_INDEX),
    Place("pull", CIVITAI_FILE),
)
"""What comes before the steps of the plan: the listing, what the base says of the model, the file."""
PLANNED = ("calibrate", "search", "round", "measure", "write v1", "write v2", "naive", "evaluate", "folder")
"""The steps of the plan that is run; `tests/project/test_faults.py` holds that they are those that the code has."""
STEPS = (*BEFORE, *map(Place, PLANNED), Place("upload", COMMIT))
QUICK = "--size 128 --samples 2 --steps 2 --pairs 1 --picture-steps 1 --budget 0.8 --no-noise-floor --metrics none"
"""What is asked for: as little as there can be of each."""
PROMPTS = {"calibration.txt": "a cat\na dog\n", "evaluation.txt": "a red cat\na blue dog\n"}
"""Short ones: what is computed grows with them."""
