"""Where a tensor begins in a file changes no bit of what is computed with it, on a CPU of whatever make.

MKL's kernels for Intel's CPUs do not care; those for others do. `support/other_cpu.c` makes it take the others.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from safetensors.torch import load_file
from support import tiny

from hswq_runtime import HSWQConfig, load_model
from hswq_runtime.layers.alignment import ALIGNMENT, aligned

TESTS = Path(__file__).parents[1]
OFFSETS = (0, 8, 16, 32)


def begins_at(tensor: torch.Tensor, offset: int) -> torch.Tensor:
    """A copy that begins `offset` bytes after a multiple of 64."""
    memory = torch.empty(tensor.nbytes + 2 * ALIGNMENT, dtype=torch.uint8)
    start = -memory.data_ptr() % ALIGNMENT + offset
    copy = memory[start : start + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
    return copy.copy_(tensor)


def shifted(path: Path, offset: int) -> Path:
    """The same file with a header that is padded until the tensors begin `offset` bytes after a multiple of 64."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    padding = (offset - 8 - size) % ALIGNMENT
    new = path.with_name(f"{path.stem}-{offset}{path.suffix}")
    header = data[8 : 8 + size] + b" " * padding
    new.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    return new


def loaders(folder: Path):
    """All that opens a quantized model, each as a function from the original layout's file."""
    tiny.model().save_config(folder / "config")

    def of_diffusers(path):
        return ZImageTransformer2DModel.from_single_file(
            path, config=str(folder / "config"), quantization_config=HSWQConfig(), torch_dtype=torch.float32
        )

    def of_a_saved_folder(path):
        saved = folder / f"saved-{path.stem}"
        load_model(path, torch.float32).save_pretrained(saved)
        whole = saved / "diffusion_pytorch_model.safetensors"
        shifted(whole, int(path.stem.split("-")[-1])).replace(whole)
        return ZImageTransformer2DModel.from_pretrained(saved, torch_dtype=torch.float32)

    return {
        "load_model": lambda path: load_model(path, torch.float32),
        "from_single_file of diffusers": of_diffusers,
        "from_pretrained of diffusers": of_a_saved_folder,
    }


def wide(tensors):
    """Kept layers are stored in the dtype that is computed in, so that nothing has to be converted."""
    for key, tensor in tensors.items():
        if tensor.dtype == torch.bfloat16:
            tensors[key] = tensor.float()


def test_aligned_copies_only_what_is_not():
    tensor = torch.randn(3, 5)
    assert aligned(begins_at(tensor, 8)).data_ptr() % ALIGNMENT == 0
    assert torch.equal(aligned(begins_at(tensor, 8)), tensor)
    assert aligned(tensor) is tensor
    meta = torch.empty(3, device="meta")
    assert aligned(meta) is meta


@pytest.mark.parametrize("style", ["v1", "v2"])
@pytest.mark.parametrize("loader", ["load_model", "from_single_file of diffusers", "from_pretrained of diffusers"])
def test_where_a_file_s_tensors_begin_changes_no_bit(tmp_path, style, loader):
    path = tiny.quantized(tmp_path, style, change=wide)
    expected = tiny.run(load_model(path, torch.float32))
    for offset in OFFSETS:
        moved = shifted(path, offset)
        assert tiny.same_bytes(load_file(moved), load_file(path))
        model = loaders(tmp_path)[loader](moved)
        misplaced = [n for n, p in model.named_parameters() if p.dtype.itemsize > 1 and p.data_ptr() % ALIGNMENT]
        assert not misplaced
        assert torch.equal(tiny.run(model), expected)


def test_an_original_is_computed_from_aligned_memory_too(tmp_path):
    path = tiny.checkpoint(tmp_path)
    for offset in OFFSETS:
        model = load_model(shifted(path, offset), torch.bfloat16)
        assert all(p.data_ptr() % ALIGNMENT == 0 for p in model.parameters())


PRODUCTS = """
import sys
sys.path[:0] = sys.argv[1:]
import torch
from runtime.test_alignment import begins_at
torch.manual_seed(0)
for rows, n, m in [(1, 256, 384), (77, 144, 432), (1, 64, 64)]:
    x, weight = torch.randn(rows, n), torch.randn(m, n)
    print(torch.equal(x @ begins_at(weight, 8).T, x @ begins_at(weight, 0).T))
"""


@pytest.fixture(scope="module")
def other_cpu(tmp_path_factory) -> dict[str, str]:
    """Environment of a process in which products depend on alignment."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, and Linux")
    library = tmp_path_factory.mktemp("other-cpu") / "other_cpu.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, TESTS / "support/other_cpu.c"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-c", PRODUCTS, str(TESTS)]
    found = subprocess.run(run, env=environment, check=True, capture_output=True, text=True).stdout
    if "False" not in found:
        pytest.skip("this BLAS does not care where a matrix begins")
    return environment


def test_nothing_here_changes_on_a_cpu_of_another_make(other_cpu):
    """The tests of this file, and those that compare what came by two ways bit for bit."""
    here = "runtime/test_alignment.py", "runtime/test_lora.py", "runtime/test_quantizer.py", "runtime/test_behaviour.py"
    wanted = "begin or aligned or fused_is_near or three_ways or device_map or saving_and_opening or group_offloading"
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", wanted, *here]
    done = subprocess.run(run, cwd=TESTS, env=other_cpu, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
