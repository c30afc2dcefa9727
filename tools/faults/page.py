"""The page: a table for each fault, a row for each step."""

from collections.abc import Iterable, Mapping

from .cases import Row
from .faults import FAULTS
from .steps import STEPS

FAILS = "**does not hold**"
HEADINGS = ("step", "exit", "it says", "what remains", "the next run")
_INTRODUCTION = """\
# What happens when something goes wrong

Made by `make faults`; do not edit it. A Z-Image of one block is fetched from a Civitai, its base from a Hub, both on
loopback, and `hswq-hub publish` does with it all that it does with any model, up to the commit in a Hub repo. In each
of its steps it is hurt in each of {faults} ways, and then the same command is run again. Every run is a process of its
own, with everything it writes on a small disk of its own (tmpfs).

It holds if the exit code is the right one, the message is one sentence that says what to do, steps that were done are
not done again, the next run publishes the bytes of a run without harm, in the folder and in the repo, and then nothing
is left but finished products; what a process that was killed had in the system's temporary folder is the system's to
remove. Where something of this is not so, the row says “does not hold” and what, and the script fails. {verdict}

Three things differ from a run as people have it: everything was imported before, there are no pauses between two tries,
and time is not measured, since times are the one thing in the files that differs from run to run. `make faults` needs
root on Linux, for its disks and for `nobody`, and takes half an hour on two cores.

Of the steps, *look up* is the question to Civitai what the reference leads to, *base* that to the Hub about the
other components, *pull* the file, of which half had arrived, *upload* the commit; the others are those that
`hswq-hub status` shows. A fault in one of these four lasts until the run ends. *What remains* are the steps that are
done then, and what is there besides. An upload completes the record in the folder, which `status` then calls to do, and
the next run puts it together anew: of `folder` it is not asked that it is done once.
"""


def page(rows: Mapping[tuple[str, str], str]) -> str:
    """All of it as Markdown. rows: by fault and step, see `line_of`."""
    failing = sum(FAILS in row for row in rows.values())
    verdict = "All rows hold." if not failing else f"{failing} of {len(rows)} rows do not hold."
    parts = [_INTRODUCTION.format(faults=len(FAULTS), verdict=verdict)]
    for fault in FAULTS:
        lines = [rows[key] for step in STEPS if (key := (fault.name, step.name)) in rows]
        table = "\n".join([_line(HEADINGS), _line(["---"] * len(HEADINGS)), *lines])
        parts.append(f"## {fault.name}\n\n{fault.how}\n\n{table}\n")
    return "\n".join(parts)


def line_of(row: Row) -> str:
    """A row of a table."""
    after = row.after if not row.broken else f"{FAILS}: {'; '.join(row.broken)}"
    return _line([row.step, row.code, *map(_cell, (row.message, row.left, after))])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """As it is shown between two bars."""
    return (text or "—").replace("|", "\\|").replace("<", "&lt;").replace("_", "\\_").replace("[", "\\[")


def rows_of(text: str) -> dict[tuple[str, str], str]:
    """(fault, step) -> the row, of a page."""
    found, fault = {}, ""
    for line in text.splitlines():
        if line.startswith("## "):
            fault = line.removeprefix("## ")
        elif line.startswith("| ") and fault:
            step = line.split(" | ")[0].removeprefix("| ")
            if step not in (HEADINGS[0], "---"):
                found[fault, step] = line
    return found
