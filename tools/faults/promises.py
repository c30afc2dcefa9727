"""What has to hold of every case."""

from .children import Run
from .faults import CTRL_C, KILL, TERM, Fault

LONGEST = 300
IN_TMP = "a file in the system's temporary folder"
"""What a killed process leaves there the system removes."""
_STOPPED = "stopped; what was finished is kept, run the same command again to go on after it"
_NEXT = ("run ", "check ", "choose ", "free ", "give ")
"""One of these is in a message that says what to do."""


def message_of(lines: list[str]) -> str:
    """What a run says of its end: the error; else the last line, without how long that took."""
    errors = [line for line in lines if line.startswith("Error: ")]
    if errors:
        return errors[-1]
    waited = [line for line in lines if line.startswith("another hswq-hub")]
    return waited[-1] if waited else lines[-1] if lines and lines[-1].startswith("stopped") else ""


def broken_promises(
    fault: Fault,
    codes: list[int | None],
    lines: list[str],
    again: Run,
    differing: list[str],
    left: list[str],
    done: list[str],
) -> list[str]:
    """What does not hold. codes: of the runs that were hurt; lines: what one of them said. differing: published files
    that are not those of a run without harm. left: what is there after the run `again`. done: steps that were done
    before it."""
    broken = [f"exit code {code}" for code in codes if code not in fault.codes]
    broken += _of_the_message(fault, codes, lines)
    if again.code != 0:
        broken.append(f"the next run ends with {again.code}: {message_of(again.lines)}")
    elif differing:
        broken.append(f"other bytes: {', '.join(differing)}")
    broken += [f"{what} stays" for what in left if (fault, what) != (KILL, IN_TMP)]
    twice = [name for name in done if f"{name}: begun" in again.lines and name != "folder"]
    return broken + [f"{name} is done again" for name in twice]


def _of_the_message(fault: Fault, codes: list[int | None], lines: list[str]) -> list[str]:
    if any(line.startswith("Traceback") for line in lines):
        return [f"a traceback: {lines[-1][:LONGEST]}"]
    errors = [line for line in lines if line.startswith("Error: ")]
    if fault in (TERM, CTRL_C):
        return [] if lines and lines[-1] == _STOPPED else ["it does not say that it was stopped"]
    if fault is KILL or 2 not in codes:
        return []
    if len(errors) != 1 or lines[-1] != errors[0]:
        return ["not one sentence"]
    (said,) = errors
    broken = [] if len(said) <= LONGEST else [f"a message of {len(said)} characters"]
    return broken + ([] if any(word in said for word in _NEXT) else ["it does not say what to do"])
