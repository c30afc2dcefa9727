"""Loading holds the file once: no second copy of a fused tensor, no float32 detour."""

import json
import subprocess
import sys

import accelerate
import diffusers
import pytest
import tiny
import torch
from safetensors.torch import save_file

MEASURE = """
import json, resource, sys, torch
from hswq_runtime import load_model
import hswq_runtime.loading, diffusers.loaders.single_file_model
from diffusers import ZImageTransformer2DModel
def resident():
    return int(next(line for line in open('/proc/self/status') if line.startswith('VmRSS')).split()[1]) * 1024
def peak():
    return int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]) * 1024
load_model(sys.argv[2])  # what is imported and allocated once
open('/proc/self/clear_refs', 'w').write('5')  # forget the peak so far
before = resident()
model = load_model(sys.argv[1])
touched = sum(int(p.detach().contiguous().view(torch.uint8).flatten()[::512].sum()) for p in model.parameters())
print(json.dumps({'peak': peak() - before, 'fp8': sum(p.dtype.itemsize == 1 for p in model.parameters())}))
"""


def big(path, dim=1536, layers=3):
    """A Z-Image of large layers, FP8 but for the small ones, in the layout of published files."""
    config = tiny.CONFIG | {"dim": dim, "n_layers": layers, "n_heads": dim // 48, "n_kv_heads": dim // 48}
    with accelerate.init_empty_weights():
        empty = diffusers.ZImageTransformer2DModel(**config)
    state = {name: torch.zeros(tensor.shape, dtype=torch.bfloat16) for name, tensor in empty.state_dict().items()}
    tensors = tiny.original_layout(state)
    for key in list(tensors):
        if key.endswith(".weight") and tensors[key].ndim == 2 and "t_embedder" not in key:
            tensors[key] = torch.full(tensors[key].shape, 0.5, dtype=torch.float8_e4m3fn)
            tensors[key.removesuffix("weight") + "scale"] = torch.tensor([0.01])
    save_file(tensors, path, metadata={"hswq_format": "v2"})
    return max(tensor.nbytes for tensor in tensors.values())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_while_loading(tmp_path):
    path = tmp_path / "big.safetensors"
    largest = big(path)
    small = tiny.quantized(tmp_path, "v2")
    run = [sys.executable, "-c", MEASURE, str(path), str(small)]
    found = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert found["fp8"] > 20
    size = path.stat().st_size
    assert size > 100e6, "large enough to be seen beside the rest of the process"
    assert 0.9 * size < found["peak"] <= 1.1 * size + largest
