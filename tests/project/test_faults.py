"""The table of faults: its steps are those that the code has, and a row that does not hold is seen."""

from pathlib import Path

import pytest
from faults.cases import Row
from faults.faults import FAULTS
from faults.page import FAILS, line_of, page, rows_of
from faults.steps import PLANNED, STEPS

from hswq_hub.sources.find import resolve
from hswq_hub.workflow.publish import PublishPlan

PAGE = Path(__file__).parents[2] / "docs/faults.md"


@pytest.fixture(scope="module")
def rows():
    return rows_of(PAGE.read_text(encoding="utf-8"))


def test_the_page_has_a_row_for_every_step_and_fault(rows):
    assert list(rows) == [(fault.name, step.name) for fault in FAULTS for step in STEPS]
    assert page(rows) == PAGE.read_text(encoding="utf-8")


def test_every_row_holds(rows):
    assert [key for key, row in rows.items() if FAILS in row] == []


def test_the_steps_are_those_of_a_publish():
    assert tuple(step.name for step in PublishPlan.of(resolve("demo")).steps) == PLANNED


def test_a_row_that_does_not_hold_is_seen():
    fault, step = FAULTS[0].name, STEPS[0].name
    line = line_of(Row(fault, step, "1", "a|b", "", "differs", ("exit code 1",)))
    text = page({(fault, step): line})
    assert rows_of(text) == {(fault, step): line} and FAILS in line and "1 of 1 rows do not hold" in text
