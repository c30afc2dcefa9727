"""The table of faults: its steps are those that the code has, and a row that does not hold is seen."""

from faults.cases import Row
from faults.faults import FAULTS
from faults.page import FAILS, line_of, page, rows_of
from faults.steps import PLANNED, STEPS

from hswq_hub.sources.find import resolve
from hswq_hub.workflow.publish import PublishPlan


def test_the_steps_are_those_of_a_publish():
    assert tuple(step.name for step in PublishPlan.of(resolve("demo")).steps) == PLANNED


def test_a_row_that_does_not_hold_is_seen():
    fault, step = FAULTS[0].name, STEPS[0].name
    line = line_of(Row(fault, step, "1", "a|b", "", "differs", ("exit code 1",)))
    text = page({(fault, step): line})
    assert rows_of(text) == {(fault, step): line} and FAILS in line and "1 of 1 rows do not hold" in text
