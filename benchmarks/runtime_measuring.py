"""How `runtime.py` measures: load time, memory, a step, a single layer, LoRA, saving."""

import functools
import gc
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from runtime_candidates import dequantized, load, quanto_class

LORA_RANK = 16


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
    """Seconds of one layer's product with `tokens` rows, and how far `quantized_matmul` is off: for each of `sizes`."""
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
        plain.weight.data, fast.quantized_matmul = exact.dequantized_weight(), True
        row = {"inputs": inputs, "outputs": outputs}
        for name, layer in {"plain": plain, "exact": exact, "quantized_matmul": fast}.items():
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
            if "quantized_matmul" in name:
                from hswq_runtime import set_quantized_matmul

                set_quantized_matmul(again)
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
