"""How fast, how large and how exact FP8 models run, ours beside its peers: one run, one table in RESULTS.md.

The model is a Z-Image transformer with the layer shapes of the published one (width 3840, feed-forward 10240) and
random weights: for speed and memory, never for quality. Every candidate loads it in a process of its own.

    python benchmarks/runtime.py --work build/benchmark
    python benchmarks/runtime.py --work build/benchmark --device cuda

On a GPU that is the whole model at 1024 x 1024 pixels, in bfloat16 and compiled, then the products of its large layers
by themselves, and whether the goals were reached; the table has a section of its own.

Peers that are not installed (pip install torchao sdnq optimum-quanto) are left out, and said to be.

Columns: `load`: seconds until every byte of the weights was read. `peak`: memory at load, above what the process held
before. `weights`: bytes of parameters and buffers; all candidates are told to quantize the same layers. `step`:
seconds of one forward pass, the fastest of several. `error`: largest difference of the output from the same model with
its weights dequantized beforehand, relative to the largest output. `LoRA`: loaded, and the output is that of the
dequantized model with the same LoRA, but for the error that the candidate has without it. `saved`: saved, opened
again, the same output. `on the GPU`: the most memory that it had there, while loading and running.

Below the table, the time of `load_model` over that of `safetensors.torch.load_file` on the same file, which the system
has cached. Both only map a file: by itself that takes `load_file` two milliseconds, whatever the size, and nobody has a
weight then. So both are timed until every byte was read once, by a sum over each tensor, as a copy to a GPU would
read it. The rest of `load_model` is building the model, which does not grow with the bytes: hence two files, one with
the layers of the table, and one of `LARGE_BLOCKS` blocks.
"""

import argparse
import gc
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
from results import put_section
from runtime_candidates import CANDIDATES
from runtime_files import LARGE_BLOCKS, PUBLISHED_WIDTH, products, write_files, write_large
from runtime_measuring import files_of, load_ratio, measure, product_times, settings_of

STEP_GOAL = 1.05
"""On a GPU, compiled: a step in exact mode takes at most this, times that of the plain model."""
PRODUCT_GOAL = 1.5
"""On a GPU, compiled: `quantized_matmul` is at least so many times as fast as the plain layer."""


def hardware(args) -> str:
    from hswq_hub.common.hardware import describe
    from hswq_hub.common.identity import versions

    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"{describe(torch.device(args.device))}, {args.threads} threads; {found}, Python {platform.python_version()}"


def same_layers(rows: list[dict]) -> str:
    """Whether all that hold FP8 hold the same layers in it."""
    counts = {row["name"]: row["values"] for row in rows if row["name"] != "plain"}
    if len(set(counts.values())) == 1:
        return f"All others hold the same {next(iter(counts.values())) / 1e6:.0f} million values in FP8."
    held = ", ".join(f"{name} {count / 1e6:.1f}" for name, count in counts.items())
    return f"They do not hold the same layers in FP8; millions of values: {held}."


def table(rows: list[dict]) -> list[str]:
    base, gpu = rows[0], "gpu" in rows[0]
    lines = [
        f"| | load | peak at load | weights | {'on the GPU | ' * gpu}step | error | LoRA | saved |",
        f"|---|---:|---:|---:|{'---:|' * gpu}---:|---:|---|---|",
    ]
    for row in rows:
        cells = [
            row["name"],
            f"{row['load']:.1f} s ({row['load'] / base['load']:.2f}×)",
            f"{row['peak'] / 1e9:.2f} GB",
            f"{row['weights'] / 1e9:.4f} GB",
            *([f"{row['gpu'] / 1e9:.2f} GB"] if gpu else []),
            f"{row['step']:.3f} s ({row['step'] / base['step']:.2f}×){', not compiled' * ('not compiled' in row)}",
            f"{row['error']:.1e}" if row["error"] else "0",
            row["lora"],
            row["saved"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def product_table(found: list[dict], tokens: int) -> list[str]:
    """Times of single layers, in milliseconds."""
    lines = [
        f"| one layer, {tokens} tokens | plain | HSWQ | quantized_matmul | error of quantized_matmul |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in found:
        times = (
            f"{row[name] * 1e3:.3f} ms ({row[name] / row['plain']:.2f}×)" for name in ("exact", "quantized_matmul")
        )
        cells = [f"{row['inputs']} to {row['outputs']}", f"{row['plain'] * 1e3:.3f} ms", *times, f"{row['error']:.1e}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def goals(rows: list[dict], found: list[dict]) -> list[str]:
    """Whether what a GPU is meant to reach was reached."""
    steps = {row["name"]: row["step"] for row in rows}
    ratio = steps["HSWQ"] / steps["plain"]
    slowest = min(row["plain"] / row["quantized_matmul"] for row in found)
    return [
        "| goal | reached | measured |",
        "|---|---|---:|",
        f"| step of HSWQ over that of plain at most {STEP_GOAL} | {said(ratio <= STEP_GOAL)} | {ratio:.3f} |",
        f"| every layer with quantized_matmul at least {PRODUCT_GOAL} times as fast as plain | "
        f"{said(slowest >= PRODUCT_GOAL)} | {slowest:.3f} |",
    ]


def said(reached: bool) -> str:
    return "yes" if reached else "no"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the models (kept, and used again)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="default: float32 on the CPU, bfloat16 on CUDA"
    )
    parser.add_argument("--blocks", type=int, help="default: 2 on the CPU, 30 on CUDA, as published")
    parser.add_argument("--width", type=int, default=PUBLISHED_WIDTH, help="a multiple of 384; less is only a trial")
    parser.add_argument("--latent", type=int, help="side of the latents; a token is 2 x 2; default: 32, 128 on CUDA")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on CUDA")
    parser.add_argument("--only", choices=CANDIDATES, help="measure one, print its figures as JSON")
    args = parser.parse_args()
    cuda = args.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    args.dtype = args.dtype or ("bfloat16" if cuda else "float32")
    args.blocks, args.latent = args.blocks or (30 if cuda else 2), args.latent or (128 if cuda else 32)
    args.compile = cuda if args.compile is None else args.compile
    return args


def main():
    args = parse_arguments()
    if args.only:
        print(json.dumps(measure(args.only, args)))
        return
    folder = files_of(args)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config").exists():
        write_files(folder, args.width, args.blocks)
        gc.collect()
    rows, absent, failed = [], [], []
    for name, package in CANDIDATES.items():
        if package and not importlib.util.find_spec(package.split(".")[0]):
            absent.append(name)
            continue
        measured = folder / f"{name.replace(' ', '-')}-{settings_of(args)}.json"
        if measured.exists():  # a run that was stopped goes on where it was
            rows.append(json.loads(measured.read_text()))
            continue
        process = subprocess.run([sys.executable, *sys.argv, "--only", name], capture_output=True, text=True)
        if process.returncode:
            failed.append(f"{name}: {process.stderr.strip().splitlines()[-1]}")
            continue
        measured.write_text(process.stdout.splitlines()[-1])
        rows.append(json.loads(measured.read_text()))
        print(rows[-1], file=sys.stderr, flush=True)
    tokens = args.latent**2 // 4 + 32
    lines = [
        f"## Running FP8 models{' on a GPU' * (args.device == 'cuda')}",
        "",
        f"A Z-Image transformer of width {args.width}, {args.blocks} main blocks and two refiners, random weights, "
        f"{tokens} tokens, {args.dtype}, {'compiled' if args.compile else 'not compiled'}, on {hardware(args)}. "
        f"Columns: see `benchmarks/runtime.py`. Ratios are to `plain`. {same_layers(rows)}",
        "",
        *table(rows),
    ]
    torch.set_num_threads(args.threads)
    if args.device == "cuda":
        found = product_times(products(args.width), tokens, args)
        lines += ["", *product_table(found, tokens), "", *goals(rows, found)]
    large = args.work / f"{args.width}x{LARGE_BLOCKS}.safetensors"
    if not large.exists():
        write_large(large, args.width)
    ratios = ", ".join(load_ratio(file, args.repeats) for file in (folder / "hswq.safetensors", large))
    lines += [
        "",
        "Time of `load_model` over that of `safetensors.torch.load_file` on the same file, until every byte of the "
        f"weights was read: {ratios}.",
        "",
        "`quantized_matmul` rounds the input of every large layer to FP8, with one scale a token. With three bits of "
        "mantissa that is an error of 2.6 % (root mean square) in each value, and so in each product, whatever the "
        "scale; its LoRA is judged by that, see `try_lora`. On a CPU it is there for tests only.",
    ]
    for row in rows:
        if "not compiled" in row:
            lines += ["", f"{row['name']} was not compiled: {row['not compiled']}."]
    for name in absent:
        lines += ["", f"{name} was not measured: not installed."]
    for line in failed:
        lines += ["", f"Failed: {line}"]
    print("\n".join(lines))
    if args.width == PUBLISHED_WIDTH:
        put_section("runtime", lines, "on CUDA" * (args.device == "cuda"))


if __name__ == "__main__":
    main()
