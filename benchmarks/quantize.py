"""Speed and memory of quantization from given statistics, on a checkpoint of Z-Image's real shapes.

    python benchmarks/quantize.py --work build/quantize [--blocks 30]

A checkpoint of random bf16 weights is written to --work once (12.3 GB with all 30 blocks). Each case runs in a process
of its own, with nothing of the checkpoint in the system's cache, and between two runs of the plain loop: one that
reads, casts and writes the same tensors and does nothing else. So what else the machine does slows both. A run that
was stopped goes on where it was. Then the amax search of one layer, against the same search with one candidate
evaluated at a time.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from results import put_section

from hswq_hub.calibration.calibrate import Calibration, LayerStatistics
from hswq_hub.common.files import atomic_file
from hswq_hub.common.hardware import describe
from hswq_hub.quantization.choices.keep import keep
from hswq_hub.quantization.plan import plan_everything, plan_naive, unread_plan
from hswq_hub.quantization.search import search_amax, weighted_histogram
from hswq_hub.quantization.writer import write_quantized
from hswq_hub.settings import SearchSettings, recipe
from hswq_runtime import Checkpoint, Format
from hswq_runtime.formats import layer_of
from hswq_runtime.layers.fp8 import FP8, FP8_MAX, saturating_cast

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support import tiny

Z_IMAGE = {
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "cap_feat_dim": 2560,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1024, 512, 512],
}
PLAIN = "read, cast, write"
CASES = ("naive", "hswq V1", "hswq V2", "V2, exact search", "V2, no search")


def write_checkpoint(path: Path, blocks: int) -> None:
    """Random weights with σ 0.02, tensor by tensor, so that it needs no more memory than what it is to measure."""
    import accelerate
    import diffusers

    with accelerate.init_empty_weights():
        model = diffusers.ZImageTransformer2DModel(**Z_IMAGE | {"n_layers": blocks})
    tensors = tiny.original_layout(model.to(torch.bfloat16).state_dict())
    header, offset = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    generator = torch.Generator().manual_seed(0)
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            values = torch.empty(tensor.shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            file.write(memoryview(values.flatten().view(torch.uint8).numpy()))


def statistics(checkpoint: Checkpoint) -> Calibration:
    """As many numbers as a calibration has, made up."""
    generator = torch.Generator().manual_seed(1)
    layers = {}
    for key in checkpoint.layers:
        channels = checkpoint.tensors[key].shape[1]
        for name in checkpoint.modules[key]:
            importance = torch.rand(channels, generator=generator, dtype=torch.float64)
            layers[layer_of(name)] = LayerStatistics(importance, 0.0, torch.rand(1, generator=generator).item(), 1)
    return Calibration(layers)


def run_case(case: str, source: Path, output: Path) -> None:
    """From opening the checkpoint to the file under its name, flushed to the disk."""
    checkpoint = Checkpoint(source)
    if case == PLAIN:
        plain_loop(checkpoint, output)
        return
    if case == "naive":
        plan = plan_naive(checkpoint)
    else:
        search = {"V2, exact search": "exact", "V2, no search": "none"}.get(case)
        how = recipe("hswq", search=search, keep_ratio=0)
        version = Format.V1 if "V1" in case else Format.V2
        plan = plan_everything(checkpoint, statistics(checkpoint), [version], how)[version]
        plan = keep(plan, checkpoint, how)
    write_quantized(checkpoint, plan, output, source_sha256="0" * 64)


def plain_loop(checkpoint: Checkpoint, output: Path) -> None:
    """What the cases are compared with: the same bytes read, cast and written, without a range and without a header."""
    quantized = {d.key for d in unread_plan(checkpoint, Format.V1, recipe()).quantized}
    with atomic_file(output) as file:
        for key in checkpoint.tensors:
            tensor = checkpoint.tensor(key)
            tensor = saturating_cast(tensor) if key in quantized else tensor
            file.write(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))


def forget(path: Path) -> None:
    """Take a file's pages out of the system's cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class _Memory(threading.Thread):
    """Largest anonymous and largest whole resident memory of this process, in bytes, looked at 50 times a second.

    The whole counts pages of the mapped source as well, which the system takes back when it needs them.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.anonymous = self.whole = 0

    def run(self):
        while True:
            lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.anonymous = max(self.anonymous, int(lines["RssAnon"].split()[0]) * 1024)
            self.whole = max(self.whole, int(lines["VmRSS"].split()[0]) * 1024)
            time.sleep(0.02)


def measure_search() -> tuple[float, float]:
    """Median seconds of the amax search of one layer, from its histogram: one candidate at a time, and as we do it."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(3840, 2560, generator=generator) * 0.02
    histogram = weighted_histogram(weight, torch.rand(2560, generator=generator), bins=4096)
    settings = SearchSettings()
    seconds = {"slow": [], "fast": []}
    for _ in range(15):
        start = time.perf_counter()
        slow = slow_search(histogram.values, histogram.mass, histogram.maximum, settings)
        middle = time.perf_counter()
        fast = search_amax(replace(histogram), True, settings)  # a copy, which has no sums yet
        seconds["slow"].append(middle - start)
        seconds["fast"].append(time.perf_counter() - middle)
        if abs(slow - fast) > 1e-3 * slow:
            raise RuntimeError(f"the two searches found {slow} and {fast}")
    return median(seconds["slow"]), median(seconds["fast"])


def slow_search(values, mass, maximum: float, settings: SearchSettings) -> float:
    """The published search from its formulas: for each candidate every bin is clipped, scaled, cast and compared."""
    floor = settings.lowest * maximum
    low, high, best, least = floor, maximum, maximum, float("inf")
    x = values.float()
    for _ in range(settings.refinements + 1):
        for candidate in torch.linspace(high, low, settings.candidates, dtype=torch.float64).tolist():
            scale = candidate / FP8_MAX
            rounded = (x.clamp(max=candidate) / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8).float() * scale
            error = ((rounded.double() - values) ** 2 * mass).sum().item()
            if error < least:
                best, least = candidate, error
        step = (high - low) / (settings.candidates - 1)
        low, high = max(best - step, floor), min(best + step, maximum)
    return best


def measure(case: str, source: Path, output: Path) -> None:
    """Run one case in this process and print what it took."""
    forget(source)
    memory = _Memory()
    memory.start()
    start, begun = time.perf_counter(), time.process_time()
    run_case(case, source, output)
    seconds, cpu = time.perf_counter() - start, time.process_time() - begun
    output.unlink()
    print(json.dumps({"seconds": seconds, "cpu": cpu, "anonymous": memory.anonymous, "whole": memory.whole}))


def table(found: list[dict], size: int) -> list[str]:
    """`found`: what was measured, in the order in which it ran, every other time the plain loop."""
    lines = [
        "| case | seconds | GB/s | speed | CPU seconds | own memory | with mapped pages |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    plain = found[::2]
    average = {name: sum(run[name] for run in plain) / len(plain) for name in ("seconds", "cpu")}
    peak = {name: max(run[name] for run in plain) for name in ("anonymous", "whole")}
    rows = [(PLAIN, average | peak, 1.0)]
    for case, before, run, after in zip(CASES, plain[:-1], found[1::2], plain[1:], strict=True):
        rows.append((case, run, (before["seconds"] + after["seconds"]) / 2 / run["seconds"]))
    for case, run, speed in rows:
        lines.append(
            f"| {case} | {run['seconds']:.1f} | {size / run['seconds'] / 1e9:.2f} | {speed:.2f} | {run['cpu']:.1f} | "
            f"{run['anonymous'] / 2**30:.2f} GiB | {run['whole'] / 2**30:.2f} GiB |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=Z_IMAGE["n_layers"])
    parser.add_argument("--case", choices=(PLAIN, *CASES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    source = arguments.work / f"z-image-{arguments.blocks}.safetensors"
    if arguments.case:
        measure(arguments.case, source, arguments.work / "output.safetensors")
        return
    if not source.exists():
        write_checkpoint(source, arguments.blocks)
    kept = arguments.work / f"cases-{arguments.blocks}.json"
    found = json.loads(kept.read_text()) if kept.exists() else []
    runs = [PLAIN, *(name for case in CASES for name in (case, PLAIN))]
    for case in runs[len(found) :]:
        command = [sys.executable, __file__, *sys.argv[1:], "--case", case]
        found.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        print(case, found[-1], flush=True)
        kept.write_text(json.dumps(found))
    size = source.stat().st_size
    slow, fast = measure_search()
    part = f" ({arguments.blocks} of the {Z_IMAGE['n_layers']} blocks)" * (arguments.blocks != Z_IMAGE["n_layers"])
    lines = [
        "## Speed and memory of quantization",
        "",
        f"From given statistics, a checkpoint of {size / 1e9:.1f} GB with Z-Image's shapes{part}, on "
        f"{describe(torch.device('cpu'))}, {torch.get_num_threads()} threads; at the start nothing of it is in the "
        "system's cache. Speed is that of the plain loop, 1, which ran before and after each case; its own row is the "
        f"mean of {len(found[::2])} runs. Memory: the most that the process had for itself, and with the pages of the "
        "mapped source that the system had not taken back yet.",
        "",
        *table(found, size),
        "",
        f"The amax search of one layer (3840 × 2560, 4096 bins, 200 candidates, 4 rounds): {1e3 * slow:.0f} ms with "
        f"one candidate at a time, {1e3 * fast:.1f} ms with all at once, × {slow / fast:.0f}.",
    ]
    put_section("quantize", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
