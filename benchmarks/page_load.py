"""The page under load: visitors who come again and again, each as soon as he has his pictures, and some who leave.

    python benchmarks/page_load.py

The page is served in a process of its own, as `hswq-hub demo` does, and asked over loopback for its own defaults: by
half of the visitors as its button does, by the others as programs do. One in ten hangs up after a second, and comes
back as somebody else. Memory is the server's resident set, noted once a minute; the first minute is for warming up.
"""

import argparse
import itertools
import random
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from results import put_section

from hswq_hub.common.hardware import describe, pick_device

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.served_page import Served, Visitor, served

SECTION = "page_load"
LEAVING, PATIENCE = 0.1, 1.0
"""Which part of the visitors leaves, and after how many seconds."""


@dataclass
class Tally:
    """Seconds that answered visitors waited, how many left, and what went wrong."""

    waited: list[float] = field(default_factory=list)
    left: int = 0
    wrong: list[str] = field(default_factory=list)


def ask(visitor: Visitor, number: int, chance: random.Random, tally: Tally) -> bool:
    """Ask once, and read the answer or leave; returns whether the visitor is still there."""
    seed, leaves = chance.randrange(2**31), chance.random() < LEAVING
    start = time.monotonic()
    if number % 2:
        visitor.ask("a large red house on green hills by day", seed=seed, pictures=True)
    else:
        variants = ["original", "naive FP8", "V1", "V2", "INT8"]
        function = visitor.functions()["_make"]
        visitor.join(["demo", "a large red house", "", seed, 9, 0, 128, variants, "", []], function)
    messages = visitor.messages()
    for message in messages:
        if leaves and time.monotonic() - start > PATIENCE:
            messages.close()
            tally.left += 1
            return False
        if message["msg"] == "process_completed":
            if message["success"]:
                tally.waited.append(time.monotonic() - start)
            else:
                tally.wrong.append(f"{message['output']}")
    return True


def come_again(page: Served, number: int, end: float, tally: Tally) -> None:
    chance, visitor = random.Random(number), Visitor(page.url, patience=600)
    while time.monotonic() < end:
        try:
            if not ask(visitor, number, chance, tally):
                visitor = Visitor(page.url, patience=600)
        except Exception as error:
            tally.wrong.append(f"{type(error).__name__}: {error}")
            time.sleep(1)


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--visitors", type=int, default=20)
    command.add_argument("--minutes", type=int, default=10)
    command.add_argument("--no-section", action="store_true", help="print, and leave RESULTS.md as it is")
    asked = command.parse_args()
    with tempfile.TemporaryDirectory() as home, served(Path(home)) as page:
        time.sleep(10)
        idle, tally, end = page.cpu(30), Tally(), time.monotonic() + 60 * asked.minutes
        memory = [page.memory]
        crowd = [
            threading.Thread(target=come_again, args=(page, number, end, tally)) for number in range(asked.visitors)
        ]
        for one in crowd:
            one.start()
        for minute in itertools.count(1):
            time.sleep(max(0.0, end - 60 * (asked.minutes - minute) - time.monotonic()))
            memory.append(page.memory)
            print(f"minute {minute}: {len(tally.waited)} served, {memory[-1] / 1e6:.0f} MB", flush=True)
            if minute == asked.minutes:
                break
        for one in crowd:
            one.join()
        time.sleep(10)
        afterwards = page.cpu(30)
    waited = sorted(tally.waited)
    growth = memory[-1] / memory[1] - 1
    lines = [
        "## The page under load",
        "",
        f"`python benchmarks/page_load.py`, on {describe(pick_device('auto'))}, one thread, on a machine that others",
        f"kept busy as well: the bundled model, {asked.visitors} visitors for {asked.minutes} minutes, each of whom",
        "asks again as soon as he is answered; one in ten hangs up after a second, and comes back as somebody else.",
        "Asked for: all variants, 9 steps, 128 × 128.",
        "",
        "| | |",
        "|---|---:|",
        f"| comparisons served | {len(waited)} |",
        f"| visitors who left | {tally.left} |",
        f"| anything else | {len(tally.wrong)} |",
        f"| median wait | {waited[len(waited) // 2]:.0f} s |",
        f"| longest wait | {waited[-1]:.0f} s |",
        f"| memory at the start | {memory[0] / 1e6:.0f} MB |",
        f"| after a minute | {memory[1] / 1e6:.0f} MB |",
        f"| at the end | {memory[-1] / 1e6:.0f} MB, {100 * growth:+.1f} % since then |",
        f"| CPU while nobody is there, before | {100 * idle:.1f} % of a core |",
        f"| afterwards | {100 * afterwards:.1f} % of a core |",
    ]
    print("\n".join([*lines, *sorted(set(tally.wrong))]))
    if not asked.no_section:
        put_section(SECTION, lines)


if __name__ == "__main__":
    main()
