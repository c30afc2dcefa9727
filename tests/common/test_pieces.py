"""What a long work keeps while it is under way: it is found by the same work, and by no other."""

import os

import pytest
import torch

from hswq_hub.common import pieces
from hswq_hub.common.pieces import Pieces
from hswq_runtime.errors import FormatError


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """It is always time to save."""
    monkeypatch.setattr(pieces, "INTERVAL", 0)
    monkeypatch.setattr(pieces, "TIMES", 0)


def work(folder, upto: int, log=lambda _: None, facts: object = "ours") -> tuple[list[float], float]:
    """Squares of the numbers below `upto`, and their sum, with what was kept of them; as many as are new are made."""
    kept = Pieces(folder, log=log)
    total = kept.begin(facts) or torch.zeros(1)
    squares = [piece.item() for piece in kept.found()]
    for number in range(len(squares), upto):
        squares.append(float(number**2))
        total = total + number**2
        kept.add(torch.tensor(squares[-1]))
        kept.keep(f"{number + 1} numbers", lambda total=total: total)
    return squares, total.item()


def test_it_goes_on_where_it_was(tmp_path):
    said = []
    work(tmp_path / "kept", 3, said.append)
    assert said == [] and sorted(os.listdir(*(tmp_path / "kept").iterdir())) == ["0", "1", "2", "state"]
    assert work(tmp_path / "kept", 5, said.append) == work(tmp_path / "other", 5)
    assert said == ["going on after 3 numbers"]


def test_nothing_of_another_work_is_taken(tmp_path):
    said = []
    work(tmp_path, 3)
    work(tmp_path, 3, said.append, facts="theirs")
    assert said == []
    work(tmp_path, 3, said.append)
    assert said == ["going on after 3 numbers"], "the other one's are still there"


def test_what_a_state_does_not_know_of_is_written_anew(tmp_path):
    """A run was killed between a piece and its state, and in the middle of a file."""
    work(tmp_path, 2)
    (place,) = tmp_path.iterdir()
    state = (place / "state").read_bytes()
    work(tmp_path, 4)
    (place / "state").write_bytes(state)
    (place / ".state.0123").write_bytes(state[:100])
    kept = Pieces(tmp_path)
    kept.begin("ours")
    assert [piece.item() for piece in kept.found()] == [0, 1]
    assert work(tmp_path, 5)[0] == [0, 1, 4, 9, 16]
    assert not (place / ".state.0123").exists()


def test_it_is_kept_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "INTERVAL", 60)
    work(tmp_path, 3)
    assert list(tmp_path.iterdir()) == []


def test_a_large_state_is_kept_less_often(tmp_path, monkeypatch):
    """Saving takes no more than its share of the time."""
    monkeypatch.setattr(pieces, "TIMES", 1e9)
    work(tmp_path, 3)
    assert sorted(os.listdir(*tmp_path.iterdir())) == ["0", "state"]


@pytest.mark.parametrize("name", ["state", "1"])
def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path, name):
    work(tmp_path, 3)
    (place,) = tmp_path.iterdir()
    (place / name).write_bytes((place / name).read_bytes()[:50])
    with pytest.raises(FormatError, match=f"{name} is damaged; remove {place}"):
        work(tmp_path, 3)


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert work(None, 3) == ([0, 1, 4], 5)
    assert list(tmp_path.iterdir()) == []


def test_time_that_was_spent_counts(tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(pieces.time, "monotonic", lambda: next(clock))
    work(tmp_path, 1)
    kept = Pieces(tmp_path)
    kept.begin("ours")
    assert kept.spent > 0


def test_all_of_it_can_go(tmp_path):
    work(tmp_path / "kept", 3)
    work(tmp_path / "kept", 3, facts="theirs")
    Pieces(tmp_path / "kept").clear()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["[enforce fail] DefaultCPUAllocator: can't allocate memory", None])
def test_a_full_memory_is_not_taken_for_a_damaged_file(tmp_path, monkeypatch, text):
    """Or people were told to remove hours of work."""
    error = MemoryError() if text is None else RuntimeError(text)

    def load(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(type(error)):
        pieces.load_tensors(tmp_path / "x")
