"""How fast, how large and how exact FP8 models run, ours beside its peers: one run, one table in RESULTS.md.

The model is a Z-Image transformer with the layer shapes of the published one (width 3840, feed-forward 10240) and
random weights: for speed and memory, never for quality. Every candidate loads it in a process of its own.

    python benchmarks/runtime.py --work build/benchmark
    python benchmarks/runtime.py --work build/benchmark --device cuda --blocks 30 --compile

Peers that are not installed (pip install torchao sdnq optimum-quanto) are left out, and said to be.

Columns: `load`: seconds until every byte of the weights was read. `peak`: memory at load, above what the process held
before. `weights`: bytes of parameters and buffers. `step`: seconds of one forward pass, the fastest of several.
`error`: largest difference of the output from the same model with its weights dequantized beforehand, relative to the
largest output. `LoRA`: loaded and it changes the output as on the dequantized model. `saved`: saved, opened again, the
same output.
"""

import argparse
import gc
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from results import put_section

TARGETS = r"(attention\.to_(q|k|v)|attention\.to_out\.0|feed_forward\.w[123])$"
"""The large layers of a block: what every candidate quantizes."""
LORA_RANK = 16


# --- Files ---------------------------------------------------------------------------------------------


def config(blocks: int) -> dict:
    """Published shapes; `blocks` main blocks and one refiner of each kind."""
    return {"n_layers": blocks, "n_refiner_layers": 1}


def write_files(folder: Path, blocks: int) -> None:
    """`plain/` (bf16), `hswq/` (V2, saved by our quantizer), `hswq.safetensors` (the same in one file) and
    `bfl.safetensors` (a scale a row)."""
    import re

    import diffusers
    from safetensors.torch import save_file

    from hswq_runtime import fp8
    from hswq_runtime.formats import Metadata
    from hswq_runtime.layers import quantized_twin
    from hswq_runtime.quantizer import mark_quantized

    torch.manual_seed(0)
    model = diffusers.ZImageTransformer2DModel(**config(blocks)).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(std=0.02 if "embedder" not in name else 0.05)
    model.save_pretrained(folder / "plain", max_shard_size="100GB")
    names = [name for name, module in model.named_modules() if re.search(TARGETS, name)]
    bfl = dict(model.state_dict())
    for name in names:
        layer = model.get_submodule(name)
        rows = fp8.fresh_scale(layer.weight, len(layer.weight))
        bfl[f"{name}.weight"] = fp8.quantize(layer.weight, rows)
        bfl[f"{name}.weight_scale"] = rows
        twin = quantized_twin(layer, scales=1, compute_dtype=torch.bfloat16)
        scale = fp8.fresh_scale(layer.weight, 1)
        twin.load_state_dict({"weight": fp8.quantize(layer.weight, scale), "scale": scale}, assign=True)
        model.set_submodule(name, twin)
    save_file({key: tensor.contiguous() for key, tensor in bfl.items()}, folder / "bfl.safetensors")
    mark_quantized(model, torch.bfloat16)
    model.save_pretrained(folder / "hswq", max_shard_size="100GB")
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    plain = {name: value for name, value in json.loads(model.to_json_string()).items() if name != "quantization_config"}
    described = {Metadata.FORMAT.value: "v2", Metadata.CONFIG.value: json.dumps(plain)}
    save_file(state, folder / "hswq.safetensors", metadata=described)
    model.save_config(folder / "config")


def load_ratio(args) -> float:
    """Time of `load_model` over that of `safetensors.torch.load_file` on the same file, every byte read, the fastest
    of several, taken in turns."""
    from safetensors.torch import load_file

    from hswq_runtime import load_model

    file, times = args.work / "hswq.safetensors", {"model": [], "file": []}
    for _ in range(args.repeats + 1):
        start = time.perf_counter()
        touch(load_model(file).state_dict().values())
        times["model"].append(time.perf_counter() - start)
        start = time.perf_counter()
        touch(load_file(file).values())
        times["file"].append(time.perf_counter() - start)
    return min(times["model"][1:]) / min(times["file"][1:])


# --- Candidates ----------------------------------------------------------------------------------------


def load(name: str, folder: Path, dtype: torch.dtype):
    """The model as a user of that library would load it."""
    import diffusers

    import hswq_runtime

    model_class = diffusers.ZImageTransformer2DModel
    plain, keep = folder / "plain", ["embedder", "adaLN", "final_layer"]
    if name == "plain":
        return model_class.from_pretrained(plain, torch_dtype=dtype)
    if name.startswith("HSWQ"):
        model = model_class.from_pretrained(folder / "hswq", torch_dtype=dtype)
        hswq_runtime.set_fp8_matmul(model, "fp8_matmul" in name)
        return model
    if name == "layerwise casting":
        model = model_class.from_pretrained(plain, torch_dtype=dtype)
        model.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype, skip_modules_pattern=[*keep, "norm", "pad_token"]
        )
        return model
    if name == "diffusers BFL fp8r":
        quantization = diffusers.BFLQuantizationConfig(compute_dtype=dtype)
        return model_class.from_single_file(
            str(folder / "bfl.safetensors"),
            config=str(folder / "config"),
            quantization_config=quantization,
            torch_dtype=dtype,
        )
    if name == "torchao":
        from torchao.quantization import Float8WeightOnlyConfig

        quantization = diffusers.TorchAoConfig(Float8WeightOnlyConfig(), modules_to_not_convert=keep)
    elif name == "SDNQ":
        import sdnq

        quantization = sdnq.SDNQConfig(weights_dtype="float8_e4m3fn", modules_to_not_convert=keep)
    else:
        quantization = diffusers.QuantoConfig(weights_dtype="float8", modules_to_not_convert=keep)
    return model_class.from_pretrained(plain, torch_dtype=dtype, quantization_config=quantization)


CANDIDATES = {
    "plain": None,
    "HSWQ": None,
    "HSWQ fp8_matmul": None,
    "layerwise casting": None,
    "diffusers BFL fp8r": None,
    "torchao": "torchao",
    "SDNQ": "sdnq",
    "optimum-quanto": "optimum.quanto",
}
"""What is compared, and the package that it needs."""


def dequantized(name: str, model, folder: Path, dtype: torch.dtype):
    """A plain model whose weights are what the candidate's FP8 weights mean."""
    import diffusers

    from hswq_runtime.layers import HSWQLayer

    reference = diffusers.ZImageTransformer2DModel.from_pretrained(folder / "plain", torch_dtype=dtype)
    reference.requires_grad_(False)
    for path, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        if weight is None or not isinstance(weight, torch.Tensor) or layer is model:
            continue
        if isinstance(layer, HSWQLayer):
            expanded = layer.dequantized_weight(dtype)
        elif name == "diffusers BFL fp8r" and hasattr(layer, "weight_scale"):
            expanded = (weight.float() * layer.weight_scale.reshape(-1, 1)).to(dtype)
        elif hasattr(layer, "sdnq_dequantizer"):
            expanded = layer.sdnq_dequantizer(weight, layer.scale, layer.zero_point, layer.svd_up, layer.svd_down)
        elif hasattr(weight, "__tensor_flatten__"):  # a wrapper subclass
            expanded = weight.dequantize()
        else:
            expanded = weight
        shape = reference.get_submodule(path).weight.shape
        expanded = expanded.detach().to(dtype).reshape(shape).clone()
        reference.get_submodule(path).weight = torch.nn.Parameter(expanded, requires_grad=False)
    return reference


# --- Measuring -----------------------------------------------------------------------------------------


def resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def touch(tensors) -> None:
    """Read every page: memory-mapped files are not read before."""
    for tensor in tensors:
        for part in flattened(tensor):
            part.detach().contiguous().flatten().view(torch.uint8)[::1024].sum()


def flattened(tensor) -> list[torch.Tensor]:
    """The tensors that a wrapper subclass is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return [part for name in names for part in flattened(getattr(tensor, name))]
    data = tensor.data if isinstance(tensor, torch.nn.Parameter) else tensor
    if data is not tensor and hasattr(data, "__tensor_flatten__"):
        return flattened(data)
    return [data]


def weight_bytes(model) -> int:
    return sum(part.nbytes for tensor in [*model.parameters(), *model.buffers()] for part in flattened(tensor))


def inputs(args, dtype: torch.dtype) -> dict:
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(args.device, dtype)  # noqa: E731
    return {
        "x": [draw(16, 1, args.latent, args.latent)],
        "t": torch.tensor([0.4], device=args.device, dtype=dtype),
        "cap_feats": [draw(32, 2560)],
        "return_dict": False,
    }


@torch.no_grad()
def run(model, args, dtype) -> torch.Tensor:
    return model(**inputs(args, dtype))[0][0].float().cpu()


def seconds(call, device: str, repeats: int) -> float:
    """The fastest of `repeats`, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def add_lora(model) -> None:
    from peft import LoraConfig

    torch.manual_seed(2)
    model.add_adapter(LoraConfig(r=LORA_RANK, target_modules=["to_q", "w2"], init_lora_weights="gaussian"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)


def refusal(error: Exception) -> str:
    sentence = " ".join(str(error).split())
    return f"no: {type(error).__name__}, {sentence[:60]}{'…' if len(sentence) > 60 else ''}"


def try_lora(model, reference, args, dtype, without) -> str:
    try:
        add_lora(model)
        add_lora(reference)
        found, expected = run(model, args, dtype), run(reference, args, dtype)
    except Exception as error:
        return refusal(error)
    moved, wrong = (expected - without).abs().max().item(), (found - expected).abs().max().item()
    return "yes" if wrong < 0.1 * moved else f"wrong by {wrong / moved:.0%}"


def try_saving(name, model, expected, args, dtype) -> str:
    import diffusers

    try:
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            model.save_pretrained(folder, max_shard_size="100GB")
            again = diffusers.ZImageTransformer2DModel.from_pretrained(folder, torch_dtype=dtype).to(args.device)
            held = weight_bytes(again)
            if "fp8_matmul" in name:
                from hswq_runtime import set_fp8_matmul

                set_fp8_matmul(again)
            same = torch.equal(run(again, args, dtype), expected)
    except Exception as error:
        return refusal(error)
    if not same:
        return "other output"
    return "yes" if held <= 1.05 * weight_bytes(model) else "yes, no longer FP8"


def measure(name: str, args) -> dict:
    """All columns of one candidate; runs in a process of its own."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = resident("VmRSS"), time.perf_counter()
    model = load(name, args.work, dtype)
    if args.device == "cuda":
        model.to("cuda")
        torch.cuda.synchronize()
    touch([*model.parameters(), *model.buffers()])
    row = {"name": name, "load": time.perf_counter() - start, "peak": resident("VmHWM") - before}
    row["weights"] = weight_bytes(model)
    expected = run(model, args, dtype)
    reference = dequantized(name, model, args.work, dtype).to(args.device)
    exact = run(reference, args, dtype)
    row["error"] = ((expected - exact).abs().max() / exact.abs().max()).item()
    row["saved"] = try_saving(name, model, expected, args, dtype)
    stepping = model
    if args.compile:
        model.compile_repeated_blocks(fullgraph=True)
    row["step"] = seconds(lambda: run(stepping, args, dtype), args.device, args.repeats)
    if args.device == "cuda":
        row["gpu"] = torch.cuda.max_memory_allocated()
    row["lora"] = try_lora(model, reference, args, dtype, exact)
    return row


# --- The table -----------------------------------------------------------------------------------------


def hardware(args) -> str:
    from hswq_hub.hardware import describe, versions

    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"{describe(torch.device(args.device))}, {args.threads} threads; {found}, Python {platform.python_version()}"


def table(rows: list[dict]) -> list[str]:
    base = rows[0]
    lines = [
        "| | load | peak at load | weights | step | error | LoRA | saved |",
        "|---|---:|---:|---:|---:|---:|---|---|",
    ]
    for row in rows:
        cells = [
            row["name"],
            f"{row['load']:.1f} s ({row['load'] / base['load']:.2f}×)",
            f"{row['peak'] / 1e9:.2f} GB",
            f"{row['weights'] / 1e9:.2f} GB",
            f"{row['step']:.3f} s ({row['step'] / base['step']:.2f}×)",
            f"{row['error']:.1e}" if row["error"] else "0",
            row["lora"],
            row["saved"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the models (kept, and used again)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="default: float32 on the CPU, bfloat16 on CUDA"
    )
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--latent", type=int, default=32, help="side of the latents; a token is 2 x 2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only", choices=CANDIDATES, help="measure one, print its figures as JSON")
    args = parser.parse_args()
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    return args


def main():
    args = parse_arguments()
    if args.only:
        print(json.dumps(measure(args.only, args)))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "config").exists():
        write_files(args.work, args.blocks)
        gc.collect()
    rows, absent, failed = [], [], []
    for name, package in CANDIDATES.items():
        if package and not importlib.util.find_spec(package.split(".")[0]):
            absent.append(name)
            continue
        measured = args.work / f"{name.replace(' ', '-')}.json"
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
        "## Running FP8 models",
        "",
        f"A Z-Image transformer of published widths, {args.blocks} main blocks and two refiners, random weights, "
        f"{tokens} tokens, {args.dtype}, {'compiled' if args.compile else 'not compiled'}, on {hardware(args)}. "
        "Columns: see `benchmarks/runtime.py`. Ratios are to `plain`. Libraries match the names of layers to leave out "
        "each in its own way, so some quantize embedders and the final layer as well: compare `weights`.",
        "",
        *table(rows),
    ]
    lines += [
        "",
        f"`load_model` takes {load_ratio(args):.2f}× the time of `safetensors.torch.load_file` on the same file.",
    ]
    for name in absent:
        lines += ["", f"{name} was not measured: not installed."]
    for line in failed:
        lines += ["", f"Failed: {line}"]
    print("\n".join(lines))
    put_section("runtime", lines)


if __name__ == "__main__":
    main()
