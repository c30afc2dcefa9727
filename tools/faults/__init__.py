"""A table of faults, `make faults`: a publish that is hurt in every step, in every way, and then run again.

    run.py        all cases, one after the other -> docs/faults.md
    steps.py      where a run can be hurt
    faults.py     how
    promises.py   what has to hold then
    cases.py      a case: hurt, looked at, run again, compared
    place.py      a small disk for it
    hosts.py      Civitai and the Hub on loopback
    children.py   the runs, each a process of its own, as the script sees them
    forked.py     the same from inside
    page.py       the page
"""
