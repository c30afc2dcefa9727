"""Try all cases and write the page.

    PYTHONPATH=tools:tests python -m faults.run [--only FAULT] [--step STEP] [--page docs/faults.md]

Fails if a promise does not hold in one of them. With --only or --step, the other rows stay as they are.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from support import tiny
from support.hub_server import TOKEN

from .bench import Bench, whole
from .cases import Row, tried
from .children import Children
from .faults import FAULTS
from .hosts import Hosts
from .page import line_of, page, rows_of
from .steps import PROMPTS, STEPS


def main() -> int:
    arguments = _parsed()
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        print("make faults needs root on Linux: it mounts small disks, and runs as nobody", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no disk stays mounted
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    place.chmod(0o755)
    try:
        rows = _rows(place, arguments.only, arguments.step)
    finally:
        shutil.rmtree(place)
    known = rows_of(arguments.page.read_text(encoding="utf-8")) if arguments.page.exists() else {}
    found = known | {(row.fault, row.step): line_of(row) for row in rows}
    arguments.page.write_text(page(found), encoding="utf-8")
    return int(any(row.broken for row in rows))


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=[fault.name for fault in FAULTS])
    parser.add_argument("--step", action="append", choices=[place.name for place in STEPS])
    parser.add_argument("--page", type=Path, default=Path("docs/faults.md"))
    return parser.parse_args()


def _rows(place: Path, only: list[str] | None, steps: list[str] | None) -> list[Row]:
    from hswq_hub.sources.find import resolve

    tiny.CONFIG |= tiny.FITS_DEMO
    os.environ["HSWQ_HOME"] = str(place / "own")
    model, base = tiny.checkpoint(place), Path(resolve("demo").base)
    for name, text in PROMPTS.items():
        (place / name).write_text(text)
    rows = []
    with Hosts(model, base) as hosts:
        environment = hosts.hub.environment(place / "hf") | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        with Children(model, environment) as children:
            bench = Bench(place, children, hosts, TOKEN)
            reference = whole(bench)
            for fault in FAULTS:
                for step in STEPS:
                    if fault.name in (only or [fault.name]) and step.name in (steps or [step.name]):
                        rows.append(tried(bench, fault, step, reference))
                        _show(rows[-1])
    return rows


def _show(row: Row) -> None:
    """Say how far it is."""
    print(
        f"{'FAILS' if row.broken else 'ok':<6}{row.fault}, {row.step}: {row.code} | {row.message} | {row.left}",
        flush=True,
    )
    for broken in row.broken:
        print(f"      {broken}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
