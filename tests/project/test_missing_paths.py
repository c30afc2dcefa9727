"""A path that does not exist is said to be that, and not to be a file of the wrong kind."""

import pytest

from hswq_hub import Calibration, Card, Evaluation, write_card
from hswq_runtime import Checkpoint, FormatError

READERS = {
    "calibration": Calibration.load,
    "evaluation": Evaluation.load,
    "card": Card.from_folder,
    "write_card": write_card,
    "checkpoint": Checkpoint,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_what_is_not_there(tmp_path, read):
    path = tmp_path / "nothing.safetensors"
    with pytest.raises(FormatError, match=rf"{path.name} does not exist"):
        read(path)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_what_is_there_and_something_else(tmp_path, read):
    path = tmp_path / "notes.txt"
    path.write_text("no tensors, no figures")
    with pytest.raises(FormatError) as caught:
        read(path)
    assert "does not exist" not in str(caught.value)
