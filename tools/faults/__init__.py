"""A table of faults, `make faults`: a publish that is hurt in every step, in every way, and then run again.

run.py tries all cases, one after the other, and writes docs/faults.md. steps.py says where a run can be hurt, faults.py
how, promises.py what has to hold then. cases.py is a case: hurt, looked at (left.py), run again, compared; bench.py is
where it is tried, place.py its small disk, hosts.py Civitai and the Hub on loopback. children.py are the runs as the
script sees them, each a process of its own, forked.py the same from inside. page.py is the page.
"""
