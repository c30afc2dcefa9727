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
import functools
import gc
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from results import put_section

TARGETS = r"(attention\.to_(q|k|v)|attention\.to_out\.0|feed_forward\.w[123])$"
"""The large layers of a block: what every candidate quantizes."""
LEFT_OUT = ["t_embedder", "cap_embedder", "all_x_embedder", "all_final_layer", "adaLN_modulation"]
"""The modules around all other linear layers, spelled in full, because each library matches names in its own way."""
PUBLISHED_WIDTH = 3840
LARGE_BLOCKS = 12
LORA_RANK = 16
STEP_GOAL = 1.05
"""On a GPU, compiled: a step in exact mode takes at most this, times that of the plain model."""
PRODUCT_GOAL = 1.5
"""On a GPU, compiled: `fp8_matmul` is at least so many times as fast as the plain layer."""


# --- Files ---------------------------------------------------------------------------------------------


def config(width: int, blocks: int) -> dict:
    """The published shapes, at the published width; `blocks` main blocks and one refiner of each kind."""
    heads = width // 128
    return {"dim": width, "n_heads": heads, "n_kv_heads": heads, "n_layers": blocks, "n_refiner_layers": 1}


def products(width: int) -> list[tuple[int, int]]:
    """Inputs and outputs of the large layers: attention, and the feed-forward's two ways."""
    hidden = int(width / 3 * 8)
    return [(width, width), (width, hidden), (hidden, width)]


def write_files(folder: Path, width: int, blocks: int) -> None:
    """`plain/` (bf16), `hswq/` (V2, saved by our quantizer), `hswq.safetensors` (the same in one file) and
    `bfl.safetensors` (a scale a row)."""
    import re

    import diffusers
    from safetensors.torch import save_file

    from hswq_runtime.layers import fp8
    from hswq_runtime.layers.modules import quantized_twin
    from hswq_runtime.quantizer import mark_quantized

    torch.manual_seed(0)
    model = diffusers.ZImageTransformer2DModel(**config(width, blocks)).to(torch.bfloat16)
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
    write_single(folder / "hswq.safetensors", model, model.state_dict())
    model.save_config(folder / "config")


def write_single(path: Path, model, state: dict) -> None:
    """`state` of `model` in one V2 file with diffusers' names."""
    from safetensors.torch import save_file

    from hswq_runtime.formats import Metadata
    from hswq_runtime.quantizer import QUANTIZATION_CONFIG

    plain = {name: value for name, value in json.loads(model.to_json_string()).items() if name != QUANTIZATION_CONFIG}
    described = {Metadata.FORMAT.value: "v2", Metadata.CONFIG.value: json.dumps(plain)}
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata=described)


def write_large(path: Path, width: int) -> None:
    """A file that is only loaded, never run: `LARGE_BLOCKS` blocks of one value."""
    import re

    import accelerate
    import diffusers

    from hswq_runtime.layers.modules import SCALE_BUFFER

    with accelerate.init_empty_weights():
        model = diffusers.ZImageTransformer2DModel(**config(width, LARGE_BLOCKS))
    state = {}
    for key, tensor in model.state_dict().items():
        layer = key.removesuffix(".weight")
        quantized = re.search(TARGETS, layer)
        state[key] = torch.full(tensor.shape, 0.5, dtype=torch.float8_e4m3fn if quantized else torch.bfloat16)
        if quantized:
            state[f"{layer}.{SCALE_BUFFER}"] = torch.ones(1)
    write_single(path, model, state)


def load_ratio(file: Path, repeats: int) -> str:
    """Time of `load_model` over that of `safetensors.torch.load_file`, every byte read: the fastest of several, taken
    in turns."""
    from safetensors.torch import load_file

    from hswq_runtime import load_model

    loaders = {"model": lambda: load_model(file).state_dict(), "file": lambda: load_file(file)}
    times = {name: [] for name in loaders}
    for _ in range(max(repeats, 5) + 1):
        for name, loader in loaders.items():
            gc.collect()  # what the last run mapped is unmapped before, not within this one
            start = time.perf_counter()
            read_all(loader().values())
            times[name].append(time.perf_counter() - start)
    model, plain = min(times["model"][1:]), min(times["file"][1:])
    return f"{model / plain:.2f}× for {file.stat().st_size / 1e9:.1f} GB ({model:.3f} s against {plain:.3f} s)"


# --- Candidates ----------------------------------------------------------------------------------------


def load(name: str, folder: Path, dtype: torch.dtype):
    """The model as a user of that library would load it."""
    import diffusers

    import hswq_runtime

    model_class = diffusers.ZImageTransformer2DModel
    plain = folder / "plain"
    if name == "plain":
        return model_class.from_pretrained(plain, torch_dtype=dtype)
    if name.startswith("HSWQ"):
        model = model_class.from_pretrained(folder / "hswq", torch_dtype=dtype)
        hswq_runtime.set_fp8_matmul(model, "fp8_matmul" in name)
        return model
    if name == "layerwise casting":
        model = model_class.from_pretrained(plain, torch_dtype=dtype)
        model.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn,
            compute_dtype=dtype,
            skip_modules_pattern=[*LEFT_OUT, "norm", "pad_token"],
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

        quantization = diffusers.TorchAoConfig(Float8WeightOnlyConfig(), modules_to_not_convert=[*LEFT_OUT])
    elif name == "SDNQ":
        import sdnq

        quantization = sdnq.SDNQConfig(weights_dtype="float8_e4m3fn", modules_to_not_convert=[*LEFT_OUT])
    else:  # diffusers' own way to it goes by the last part of a name alone, which to_out.0 and adaLN_modulation.0 share
        from optimum.quanto import qfloat8

        left_out = [f"*{part}*" for part in LEFT_OUT]
        model = model_class.from_pretrained(plain, torch_dtype=dtype)
        return quanto_class().quantize(model, weights=qfloat8, exclude=left_out)
    return model_class.from_pretrained(plain, torch_dtype=dtype, quantization_config=quantization)


def quanto_class():
    """Z-Image as optimum-quanto saves it and opens it again."""
    import diffusers
    from optimum.quanto import QuantizedDiffusersModel

    return type("QuantizedZImage", (QuantizedDiffusersModel,), {"base_class": diffusers.ZImageTransformer2DModel})


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

    from hswq_runtime.layers.modules import HSWQLayer

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


def read_all(tensors) -> None:
    """Read every byte once: memory-mapped files are not read before."""
    for tensor in tensors:
        for part in flattened(tensor):
            bytes = part.detach().contiguous().flatten().view(torch.uint8)
            words = len(bytes) // 8 * 8
            bytes[:words].view(torch.int64).sum()


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


def fp8_values(model) -> int:
    """How many values are stored in one byte."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(part.numel() for tensor in tensors for part in flattened(tensor) if part.dtype.itemsize == 1)


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


@torch.no_grad()
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


@contextmanager
def compiled(model):
    """While open, the blocks of `model` are compiled."""
    model.compile_repeated_blocks(fullgraph=True)
    try:
        yield
    finally:
        for module in model.modules():
            module._compiled_call_impl = None


def step(model, args, dtype) -> dict:
    """Seconds of a forward pass, compiled if asked for; if that is refused, as it is, and why."""
    given, refused = inputs(args, dtype), {}
    if args.compile:
        try:
            with compiled(model):
                return {"step": seconds(lambda: model(**given), args.device, args.repeats)}
        except Exception as error:
            refused = {"not compiled": refusal(error).removeprefix("no: ")}
    return {"step": seconds(lambda: model(**given), args.device, args.repeats), **refused}


def product_times(sizes: list[tuple[int, int]], tokens: int, args) -> list[dict]:
    """Seconds of one layer's product with `tokens` rows, and by how much `fp8_matmul` is off: for each of `sizes`."""
    from hswq_runtime.layers import fp8
    from hswq_runtime.layers.modules import quantized_twin

    dtype, found = getattr(torch, args.dtype), []
    for inputs, outputs in sizes:
        torch.manual_seed(3)
        given = torch.randn(tokens, inputs).to(args.device, dtype)
        weight = torch.randn(outputs, inputs) * 0.02
        scale = fp8.fresh_scale(weight, 1)
        plain = torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype)
        exact, fast = (quantized_twin(plain, scales=1, compute_dtype=dtype) for _ in range(2))
        for layer in (exact, fast):
            layer.load_state_dict({"weight": fp8.quantize(weight, scale), "scale": scale}, assign=True)
        plain.weight.data, fast.fp8_matmul = exact.dequantized_weight(), True
        row = {"inputs": inputs, "outputs": outputs}
        for name, layer in {"plain": plain, "exact": exact, "fp8_matmul": fast}.items():
            layer.to(args.device).requires_grad_(False)
            torch._dynamo.reset()  # or it would compile the next shape for any shape
            call = functools.partial(torch.compile(layer, fullgraph=True) if args.compile else layer, given)
            row[name] = seconds(call, args.device, 10 * args.repeats)
        row["error"] = ((fast(given) - plain(given)).norm() / plain(given).norm()).item()
        found.append(row)
    return found


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


def try_lora(model, reference, args, dtype, own, exact) -> str:
    """Whether a LoRA works. `own`, `exact`: outputs of `model` and of the dequantized `reference` without it.

    It is added in full precision to a layer's product, so that it adds no error of its own: with it the output may
    differ from the reference's by what it differs without it, times 1.5, since the activations are others then, and by
    0.1 % of the LoRA's effect, for the order of sums. All distances are Euclidean.
    """
    try:
        add_lora(model)
        add_lora(reference)
        found, expected = run(model, args, dtype), run(reference, args, dtype)
    except Exception as error:
        return refusal(error)
    effect, without, with_it = ((a - b).norm() for a, b in ((expected, exact), (own, exact), (found, expected)))
    if with_it > 1.5 * without + 1e-3 * effect:
        return f"wrong by {with_it / effect:.0%} of its effect"
    return f"yes, error {with_it / without:.1f}× that without" if without > 1e-3 * exact.norm() else "yes"


def try_saving(name, model, expected, args, dtype) -> str:
    import diffusers

    try:
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            model.save_pretrained(folder, max_shard_size="100GB")
            if name == "optimum-quanto":
                again = quanto_class().from_pretrained(folder).to(args.device)
            else:
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
    folder = files_of(args)
    before, start = resident("VmRSS"), time.perf_counter()
    model = load(name, folder, dtype)
    if args.device == "cuda":
        model.to("cuda")
        torch.cuda.synchronize()
    read_all([*model.parameters(), *model.buffers()])
    row = {"name": name, "load": time.perf_counter() - start, "peak": resident("VmHWM") - before}
    row["weights"], row["values"] = weight_bytes(model), fp8_values(model)
    expected = run(model, args, dtype)
    row |= step(model, args, dtype)
    if args.device == "cuda":
        row["gpu"] = torch.cuda.max_memory_allocated()
    reference = dequantized(name, model, folder, dtype).to(args.device)
    exact = run(reference, args, dtype)
    row["error"] = ((expected - exact).abs().max() / exact.abs().max()).item()
    row["saved"] = try_saving(name, model, expected, args, dtype)
    row["lora"] = try_lora(model, reference, args, dtype, expected, exact)
    return row


def files_of(args) -> Path:
    """Where the models of this width and length are."""
    return args.work / f"{args.width}x{args.blocks}"


def settings_of(args) -> str:
    """What figures depend on besides the files."""
    return f"{args.device}-{args.dtype}-{args.latent}-{args.threads}{'-compiled' * args.compile}"


# --- The table -----------------------------------------------------------------------------------------


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
        f"| one layer, {tokens} tokens | plain | HSWQ | fp8_matmul | error of fp8_matmul |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in found:
        times = (f"{row[name] * 1e3:.3f} ms ({row[name] / row['plain']:.2f}×)" for name in ("exact", "fp8_matmul"))
        cells = [f"{row['inputs']} to {row['outputs']}", f"{row['plain'] * 1e3:.3f} ms", *times, f"{row['error']:.1e}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def goals(rows: list[dict], found: list[dict]) -> list[str]:
    """Whether what a GPU is meant to reach was reached."""
    steps = {row["name"]: row["step"] for row in rows}
    ratio = steps["HSWQ"] / steps["plain"]
    slowest = min(row["plain"] / row["fp8_matmul"] for row in found)
    return [
        "| goal | reached | measured |",
        "|---|---|---:|",
        f"| step of HSWQ over that of plain at most {STEP_GOAL} | {said(ratio <= STEP_GOAL)} | {ratio:.3f} |",
        f"| every layer with fp8_matmul at least {PRODUCT_GOAL} times as fast as plain | "
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
        "`fp8_matmul` rounds the input of every large layer to FP8, with one scale a token. With three bits of "
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
