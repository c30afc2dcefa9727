"""Speed and memory of quantization from given statistics, on a checkpoint of Z-Image's real shapes.

    python benchmarks/quantize.py --work build/quantize [--blocks 30]

A checkpoint of random bf16 weights is written to --work once (12.3 GB with all 30 blocks). Each case then runs in a
process of its own: a loop that reads, casts and writes the same tensors and does nothing else, and the recipes. A run
that was stopped goes on where it was. Then the amax search of one layer, against the same search with one candidate
evaluated at a time.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from results import put_section

from hswq_hub.calibrate import Calibration, LayerStatistics
from hswq_hub.files import atomic_file
from hswq_hub.hardware import describe
from hswq_hub.quantize import keep, plan_everything, plan_naive, write_quantized
from hswq_hub.quantize.plan import unread_plan
from hswq_hub.quantize.search import search_amax, weighted_histogram
from hswq_hub.settings import SearchSettings, recipe
from hswq_runtime import Checkpoint, Format
from hswq_runtime.formats import layer_of
from hswq_runtime.fp8 import FP8, FP8_MAX, saturating_cast

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny

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
CASES = ("read, cast, write", "naive", "hswq V1", "hswq V2", "V2, exact search", "V2, no search")


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
    """One case; the first is what the others are compared with."""
    checkpoint = Checkpoint(source)
    if case == CASES[0]:
        quantized = {d.key for d in unread_plan(checkpoint, Format.V1, recipe()).quantized}
        with atomic_file(output) as file:
            for key in checkpoint.tensors:
                tensor = checkpoint.tensor(key)
                tensor = saturating_cast(tensor) if key in quantized else tensor
                file.write(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))
        return
    if case == CASES[1]:
        plan = plan_naive(checkpoint)
    else:
        search = {"V2, exact search": "exact", "V2, no search": "none"}.get(case)
        how = recipe("hswq", search=search, keep_ratio=0)
        version = Format.V1 if "V1" in case else Format.V2
        plan = plan_everything(checkpoint, statistics(checkpoint), [version], how)[version]
        plan = keep(plan, checkpoint, how)
    write_quantized(checkpoint, plan, output, source_sha256="0" * 64)


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
    """Seconds of the amax search of one layer: one candidate at a time, and as we do it; both from the histogram."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(3840, 2560, generator=generator) * 0.02
    histogram = weighted_histogram(weight, torch.rand(2560, generator=generator), bins=4096)
    settings = SearchSettings()
    start = time.perf_counter()
    slow = slow_search(histogram.values, histogram.mass, histogram.maximum, settings)
    middle = time.perf_counter()
    rounds = 20
    for _ in range(rounds):
        histogram.__dict__.pop("sums", None)
        fast = search_amax(histogram, True, settings)
    end = time.perf_counter()
    if abs(slow - fast) > 1e-3 * slow:
        raise RuntimeError(f"the two searches found {slow} and {fast}")
    return middle - start, (end - middle) / rounds


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=Z_IMAGE["n_layers"])
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    source = arguments.work / f"z-image-{arguments.blocks}.safetensors"
    output = arguments.work / "output.safetensors"
    if arguments.case:
        memory = _Memory()
        memory.start()
        start = time.perf_counter()
        run_case(arguments.case, source, output)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "anonymous": memory.anonymous, "whole": memory.whole}))
        return
    if not source.exists():
        write_checkpoint(source, arguments.blocks)
    kept = arguments.work / f"cases-{arguments.blocks}.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for case in CASES:
        if case in found:
            continue
        command = [
            sys.executable,
            __file__,
            "--work",
            arguments.work,
            "--blocks",
            str(arguments.blocks),
            "--case",
            case,
        ]
        found[case] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(case, found[case], flush=True)
        output.unlink()
        kept.write_text(json.dumps(found))
    slow, fast = measure_search()
    size, plain = source.stat().st_size, found[CASES[0]]["seconds"]
    whole = (
        "" if arguments.blocks == Z_IMAGE["n_layers"] else f" ({arguments.blocks} of the {Z_IMAGE['n_layers']} blocks)"
    )
    lines = [
        "## Speed and memory of quantization",
        "",
        f"From given statistics, a checkpoint of {size / 1e9:.1f} GB with Z-Image's shapes{whole}, on "
        f"{describe(torch.device('cpu'))}. Speed is that of the plain loop, 1. Memory: what the process has for "
        "itself, and with the pages of the mapped source that the system had not taken back yet.",
        "",
        "| case | seconds | GB/s | speed | own memory | with mapped pages |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for case, row in found.items():
        lines.append(
            f"| {case} | {row['seconds']:.1f} | {size / row['seconds'] / 1e9:.2f} | {plain / row['seconds']:.2f} | "
            f"{row['anonymous'] / 2**30:.2f} GiB | {row['whole'] / 2**30:.2f} GiB |"
        )
    lines += [
        "",
        f"The amax search of one layer (3840 × 2560, 4096 bins, 200 candidates, 4 rounds): {1e3 * slow:.0f} ms with "
        f"one candidate at a time, {1e3 * fast:.1f} ms with all at once, × {slow / fast:.0f}.",
    ]
    put_section("quantize", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
