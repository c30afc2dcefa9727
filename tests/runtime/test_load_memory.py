"""Loading holds the file once, without a second copy of a fused tensor; running expands one layer at a time."""

import json
import subprocess
import sys

import accelerate
import diffusers
import pytest
import torch
from safetensors.torch import save_file
from support import tiny

from hswq_hub.sources.find import resolve

MEASURE = """
import ctypes, gc, json, sys
from pathlib import Path
import torch
from diffusers import ZImageTransformer2DModel
from hswq_runtime import HSWQConfig, HSWQPipeline, load_model
small, big, base = sys.argv[1:]

def of_diffusers(path):
    config = str(Path(path).parent / "config")
    return ZImageTransformer2DModel.from_single_file(
        path, config=config, quantization_config=HSWQConfig(), torch_dtype=torch.bfloat16)

def of_a_saved_folder(path):
    return ZImageTransformer2DModel.from_pretrained(Path(path).parent / "saved", torch_dtype=torch.bfloat16)

loaders = {
    "load_model": load_model,
    "HSWQPipeline.from_pretrained": lambda path: HSWQPipeline.from_pretrained(path, base=base).transformer,
    "HSWQPipeline.from_single_file": lambda path: HSWQPipeline.from_single_file(path, base=base).transformer,
    "from_single_file of diffusers": of_diffusers,
    "from_pretrained of diffusers": of_a_saved_folder,
}

@torch.no_grad()
def run(model):
    x, caption = torch.randn(4, 1, 8, 8).bfloat16(), torch.randn(20, 32).bfloat16()
    return model(x=[x], t=torch.tensor([0.4]), cap_feats=[caption], return_dict=False)

def status(field):
    return int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1]) * 1024

def growth(call):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back, and not used again unseen
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
    before = status("VmRSS")
    result = call()
    return status("VmHWM") - before, result

def read(loader):
    model = loader(big)
    for parameter in model.parameters():
        parameter.detach().contiguous().view(torch.uint8).flatten()[::512].sum()
    return model

for path in (small, big):
    load_model(path).save_pretrained(Path(path).parent / "saved", max_shard_size="50MB")
found = {}
for name, loader in loaders.items():
    run(loader(small))  # what is imported and allocated once
    found[name], model = growth(lambda: read(loader))
    assert sum(p.dtype.itemsize == 1 for p in model.parameters()) > 20
    if name == "load_model":
        found["run"], _ = growth(lambda: run(model))
    del model
found["unread"], _ = growth(lambda: load_model(big))
print(json.dumps(found))
"""


def big(path, dim=1536, layers=3):
    """A Z-Image of large layers, FP8 but for the small ones, in the layout of published files."""
    config = tiny.CONFIG | {"dim": dim, "n_layers": layers, "n_heads": dim // 48, "n_kv_heads": dim // 48}
    with accelerate.init_empty_weights():
        empty = diffusers.ZImageTransformer2DModel(**config)
    empty.save_config(path.parent / "config")
    state = {name: torch.zeros(tensor.shape, dtype=torch.bfloat16) for name, tensor in empty.state_dict().items()}
    tensors = tiny.original_layout(state)
    for key in list(tensors):
        if key.endswith(".weight") and tensors[key].ndim == 2 and "t_embedder" not in key:
            tensors[key] = torch.full(tensors[key].shape, 0.5, dtype=torch.float8_e4m3fn)
            tensors[key.removesuffix("weight") + "scale"] = torch.tensor([0.01])
    save_file(tensors, path, metadata={"hswq_format": "v2"})
    return max(tensor.nbytes for tensor in tensors.values())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Bytes by loader that a process grew by, and by running the model; size of the file and its largest tensor."""
    folder = tmp_path_factory.mktemp("big")
    path, largest = folder / "big.safetensors", big(folder / "big.safetensors")
    small = tiny.quantized(tmp_path_factory.mktemp("small"), "v2")
    tiny.model().save_config(small.parent / "config")
    run = [sys.executable, "-c", MEASURE, str(small), str(path), str(resolve("demo").base)]
    found = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert path.stat().st_size > 100e6, "large enough to be seen beside the rest of the process"
    yield found, path.stat().st_size, largest
    path.unlink()


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@LINUX
@pytest.mark.parametrize(
    "loader",
    ["load_model"]
    + [f"HSWQPipeline.{name}" for name in ("from_pretrained", "from_single_file")]
    + [f"{name} of diffusers" for name in ("from_single_file", "from_pretrained")],
)
def test_peak_memory_while_loading(measured, loader):
    found, size, largest = measured
    assert 0.9 * size < found[loader] <= 1.1 * size + largest


@LINUX
def test_what_is_not_needed_is_not_read(measured):
    """The file is mapped: its bytes come into memory when a layer runs."""
    found, size, _ = measured
    assert found["unread"] < 0.3 * size


@LINUX
def test_peak_memory_while_running(measured):
    """A second copy of the weights, in bfloat16, would take twice the file."""
    found, _, largest = measured
    assert found["run"] < 4 * 2 * largest
