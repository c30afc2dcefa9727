"""What is done, what is done again, and what is not: steps of text files, without a model."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hswq_hub.common import pieces
from hswq_hub.common.pieces import Pieces
from hswq_hub.common.targets import clear_away, replace_folder
from hswq_hub.workflow.steps import PRODUCT_RECORD, State, Step, forget, make, remaining_steps, silent
from hswq_hub.workflow.workspace import Workspace


class Kitchen:
    """Three steps in a row; `done` lists what was made."""

    def __init__(self, place: Path):
        self.place, self.done, self.flour = place, [], "rye"

    def steps(self, heat: int = 200) -> list[Step]:
        def write(name, text):
            def fill(folder: Path, _):
                self.done.append(name)
                (folder / f"{name}.txt").write_text(text())

            return fill

        def read(step, name):
            return (step.folder / f"{name}.txt").read_text()

        dough = Step("dough", "mix", self.place, "1 kg", write("dough", lambda: self.flour))
        crust = Step("crust", "bake", self.place, heat, write("crust", lambda: read(dough, "dough")), (dough,))
        loaf = Step("loaf", "bake", self.place, None, write("loaf", lambda: read(crust, "crust")), (dough, crust))
        return [dough, crust, loaf]

    def make(self, again=(), **settings) -> list[str]:
        """What was made of it."""
        self.done.clear()
        steps = self.steps(**settings)
        forget(step for step in steps if step.stage in again)
        make(steps, silent)
        return list(self.done)


@pytest.fixture
def kitchen(tmp_path):
    return Kitchen(tmp_path / "kitchen")


def test_each_is_done_once(kitchen):
    assert [step.state for step in kitchen.steps()] == [State.MISSING] * 3
    assert kitchen.make() == ["dough", "crust", "loaf"]
    assert kitchen.make() == []
    assert [step.state for step in kitchen.steps()] == [State.DONE] * 3


def test_a_setting_makes_another_product_and_all_after_it(kitchen):
    kitchen.make()
    assert kitchen.make(heat=180) == ["crust", "loaf"]
    assert kitchen.make() == [], "the first one is there still"


def test_what_is_redone_with_the_same_bytes_changes_nothing_after_it(kitchen):
    kitchen.make()
    assert kitchen.make(again=["mix"]) == ["dough"]


def test_what_is_redone_with_other_bytes_is_felt_by_all_that_was_made_from_it(kitchen):
    kitchen.make()
    kitchen.flour = "wheat"
    assert [step.name for step in remaining_steps(kitchen.steps(), ["mix"])] == ["dough", "crust", "loaf"]
    forget(kitchen.steps()[:1])
    make(kitchen.steps()[:1], silent)  # and then the run is killed
    assert [step.state for step in kitchen.steps()] == [State.DONE, State.STALE, State.STALE]
    assert kitchen.make() == ["crust", "loaf"]
    assert (kitchen.steps()[2].folder / "loaf.txt").read_text() == "wheat"


def test_a_product_without_its_record_is_none(kitchen):
    """A run that is killed while it forgets has removed that first."""
    kitchen.make()
    (kitchen.steps()[1].folder / PRODUCT_RECORD).unlink()
    assert kitchen.make() == ["crust"]


def test_what_is_finished_of_a_step_is_of_the_inputs_as_they_were(kitchen, monkeypatch):
    """An input that is made again with other bytes, as sums on a GPU may be, is another one."""
    monkeypatch.setattr(pieces, "INTERVAL", 0)
    kitchen.make()

    def knead(folder: Path, pieces: Pieces) -> None:
        if (found := pieces.begin()) is None:
            flour = (kitchen.steps()[0].folder / "dough.txt").read_text()
            pieces.keep("half of it", lambda: flour)
            raise KeyboardInterrupt
        (folder / "bread.txt").write_text(found)

    def bake(log=silent) -> Step:
        step = Step("bread", "bake", kitchen.place, None, knead, tuple(kitchen.steps()[:1]))
        make([step], log)
        return step

    with pytest.raises(KeyboardInterrupt):
        bake()
    kitchen.flour = "wheat"
    kitchen.make(again=["mix"])
    with pytest.raises(KeyboardInterrupt):
        bake()
    said = []
    assert (bake(said.append).folder / "bread.txt").read_text() == "wheat"
    assert said[:2] == ["bread: begun", "bread: going on after half of it"]


def test_a_step_that_fails_leaves_nothing(kitchen):
    steps = kitchen.steps()
    make(steps[:1], silent)
    with pytest.raises(ZeroDivisionError):
        make([steps[0], replace(steps[1], make=lambda folder, _: (folder / "half").write_text("") / 0)], silent)
    assert os.listdir(kitchen.place) == [steps[0].folder.name]


def test_a_target_outside_that_was_changed_is_made_again(kitchen, tmp_path):
    plate = tmp_path / "plate"

    def serve(_, __):
        kitchen.done.append("served")
        plate.write_text("bread")

    served = Step("serve", "serve", kitchen.place, None, serve, target=plate, holds=lambda _: plate.exists())
    for _ in range(2):
        make([served], silent)
    assert kitchen.done == ["served"]
    plate.unlink()
    make([served], silent)
    assert kitchen.done == ["served", "served"]


def dead(parent: Path, name: str, *folders: str) -> Path:
    """What a run leaves beside the folder `name` if it is killed."""
    staging = parent / f".{name}.abc123"
    staging.mkdir(parents=True)
    (staging / ".hswq-lock").touch()
    for folder in folders:
        (staging / folder).mkdir()
        (staging / folder / "file").write_text(folder)
    return staging


def test_what_the_dead_left_is_removed_and_what_they_moved_away_is_put_back(tmp_path):
    dead(tmp_path, "out", "new", "old")
    dead(tmp_path, "other", "new")
    replace_folder(tmp_path / "out", lambda new: (new / "file").write_text("ours"))
    assert sorted(os.listdir(tmp_path)) == [".other.abc123", "out"], "the other folder's owner may be alive"
    shutil.rmtree(tmp_path / "out")
    dead(tmp_path, "out", "old")
    clear_away(tmp_path)
    assert os.listdir(tmp_path) == ["out"] and (tmp_path / "out/file").read_text() == "old"


def test_what_only_looks_like_it_is_left_alone(tmp_path):
    theirs = dead(tmp_path, "out", "new")
    (theirs / "thesis.txt").write_text("years of work")
    clear_away(tmp_path)
    assert (theirs / "thesis.txt").exists()


def test_the_living_are_left_alone(tmp_path):
    def fill(new):
        clear_away(tmp_path)
        (new / "file").write_text("whole")

    replace_folder(tmp_path / "out", fill)
    assert (tmp_path / "out/file").read_text() == "whole"


def test_a_workspace_that_is_free_is_not_waited_for():
    said = []
    for _ in range(2):
        with Workspace("demo", "0" * 64).locked(said.append):
            pass
    assert said == []
