"""What threads gain, and what two runs side by side cost each other.

    python benchmarks/threads.py --work build/threads

First, calls of transformers of several widths with one thread and with all, by the operations of their typical product:
where that is less than `_WORTH` in `hswq_hub/common/threads.py`, one thread computes. Then `publish demo` alone, and
twice at once, each in a workspace of its own. Run it on a machine that does nothing else.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import diffusers
import torch
from results import put_section

from hswq_hub.common.hardware import describe, pick_device
from hswq_hub.generation.generate import product_flops

SECTION = "threads"
WIDTHS, SIDES = (192, 384, 768, 1536), (16, 32, 64)
RUNS = 5
STEPS = [sys.executable, "-m", "hswq_hub", "publish", "demo", "--samples", "32", "--pairs", "4", "--steps", "4"]


@torch.no_grad()
def call_seconds(model: torch.nn.Module, side: int, threads: int) -> float:
    torch.set_num_threads(threads)
    arguments = [torch.zeros(16, 1, side, side)], torch.tensor([0.4]), [torch.zeros(32, 128)]
    model(*arguments)
    taken = []
    for _ in range(RUNS):
        start = time.perf_counter()
        model(*arguments)
        taken.append(time.perf_counter() - start)
    return median(taken)


def gains() -> list[tuple[str, ...]]:
    rows, every = [], torch.get_num_threads()
    for width in WIDTHS:
        heads = width // 64
        model = diffusers.ZImageTransformer2DModel(
            dim=width, n_layers=2, n_refiner_layers=1, n_heads=heads, n_kv_heads=heads, cap_feat_dim=128,
            axes_dims=[16, 24, 24],
        ).eval()  # fmt: skip
        for side in SIDES:
            flops = product_flops(model, side, token=2)
            one, several = (call_seconds(model, side, count) for count in (1, every))
            rows.append((f"{width}", f"{side * side // 4}", f"{flops / 1e6:.1f}", f"{one / several:.2f}"))
    torch.set_num_threads(every)
    return sorted(rows, key=lambda row: float(row[2]))


def publish(work: Path, count: int) -> float:
    """Seconds until the last of `count` runs at once has ended."""
    start, running = time.perf_counter(), []
    for number in range(count):
        home = work / f"home-{number}"
        shutil.rmtree(home, ignore_errors=True)
        command = [*STEPS, "--folder", str(home / "out")]
        running.append(subprocess.Popen(command, env=os.environ | {"HSWQ_HOME": str(home)}, stdout=subprocess.DEVNULL))
    for process in running:
        if process.wait() != 0:
            raise SystemExit("publish failed; its message is above")
    return time.perf_counter() - start


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--work", type=Path, required=True, help="folder for what is published")
    work = command.parse_args().work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    rows = gains()
    alone, together = publish(work, 1), publish(work, 2)
    headings = ("width", "tokens", "million operations of a product", "one thread / all")
    lines = [
        "## Threads",
        "",
        f"`python benchmarks/threads.py`, on {describe(pick_device('auto'))}, {torch.get_num_threads()} threads.",
        "",
        *("| " + " | ".join(row) + " |" for row in (headings, ["---:"] * len(headings), *rows)),
        "",
        f"`{' '.join(STEPS[2:])}` took {alone:.0f} s alone; two at once took {together:.0f} s, "
        f"{together / alone:.2f} times as long.",
    ]
    print("\n".join(lines))
    put_section(SECTION, lines)


if __name__ == "__main__":
    main()
