"""Blocks compiled ahead of time, by the functions of the installed `spaces`, on a CPU. It has not run on ZeroGPU."""

import pickle
import shutil
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import spaces
import torch

from hswq_runtime.layers.modules import HSWQLinear
from spaces_app.comparison.ahead import Form, NotCompiled, alike, as_written, compile_groups, load_groups
from spaces_app.comparison.worker import VariantDone, Worker
from spaces_app.models.registry import MULTIPLIED, ModelRegistry
from spaces_app.request import default_request

IN_FP8, *_ = MULTIPLIED


class Block(torch.nn.Module):
    """A quantized layer between two operations, as in a transformer."""

    def __init__(self):
        super().__init__()
        self.out = HSWQLinear(16, 16, scales=1, compute_dtype=torch.float32, device="cpu")
        weights = {
            "weight": torch.randn(16, 16).to(torch.float8_e4m3fn),
            "scale": torch.rand(1),
            "bias": torch.rand(16),
        }
        self.out.load_state_dict(weights, assign=True)
        self.times = 1

    def forward(self, x, mask=None, *, double: bool = False):
        return x + self.out(torch.sigmoid(x)) * (2 if double else 1) * self.times


class Denoiser(torch.nn.Module):
    _repeated_blocks = ("Block",)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(Block() for _ in range(2))

    def forward(self, x, double: bool = False):
        for layer in self.layers:
            x = layer(x, None, double=double)
        return x


@pytest.fixture(scope="module", autouse=True)
def functions_without_cuda():
    """`spaces.zero.torch` patches CUDA when it is imported, which a build of torch without CUDA has not. The module in
    it that has the functions needs none of that."""
    package = ModuleType("spaces.zero.torch")
    package.__path__ = [str(Path(find_spec("spaces").origin).parent / "zero/torch")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, package.__name__, package)
        patch.setattr("torch._inductor.config.aot_inductor.compile_wrapper_opt_level", "O0")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def compiled(folder) -> Denoiser:
    """A denoiser whose blocks have programs, compiled for `double=False`."""
    denoiser = Denoiser()
    groups = alike(denoiser)
    assert [len(group) for group in groups] == [2], "one program for both"
    forms = compile_groups(groups, lambda: denoiser(torch.randn(2, 6, 16)), folder)
    forms = pickle.loads(pickle.dumps(forms))  # they come from another process
    fresh = Denoiser()
    load_groups(alike(fresh), forms, folder)
    return fresh


def programs_run(denoiser: Denoiser, *args, **kwargs) -> tuple[torch.Tensor, int]:
    """The result, and how many blocks ran their program, in which no Python of theirs is."""
    written = []
    handles = [layer.out.register_forward_hook(lambda *_: written.append(1)) for layer in denoiser.layers]
    with torch.no_grad():
        result = denoiser(*args, **kwargs)
    for handle in handles:
        handle.remove()
    return result, len(denoiser.layers) - len(written)


@pytest.mark.parametrize("shape", [(2, 6, 16), (2, 40, 16), (3, 9, 16)], ids=str)
def test_programs_compute_what_the_blocks_do_each_with_its_own_weights_at_any_size(compiled, shape):
    x = torch.randn(shape)
    result, count = programs_run(compiled, x)
    assert count == 2 and torch.allclose(result, Denoiser()(x), atol=1e-5)


@pytest.mark.parametrize(
    ("x", "double"),
    [(torch.randn(1, 6, 16), False), (torch.randn(2, 6, 16), True)],
    ids=["batch of one", "other value"],
)
def test_calls_that_were_not_compiled_are_computed_as_written(compiled, x, double):
    result, count = programs_run(compiled, x, double)
    assert count == 0 and torch.equal(result, Denoiser()(x, double))


def test_what_is_put_into_a_block_counts_while_it_is_computed_as_written(compiled):
    x = torch.randn(2, 6, 16)
    with as_written(compiled):
        result, count = programs_run(compiled, x)
    assert count == 0 and torch.equal(result, Denoiser()(x))
    assert programs_run(compiled, x)[1] == 2


def test_a_program_that_is_not_the_block_is_refused(compiled, folder, tmp_path, monkeypatch):
    """Two blocks with weights of the same shapes, of which one does something else with them."""
    monkeypatch.setattr(spaces, "aoti_compile_and_save", lambda target, _: shutil.copytree(folder / "0", target))
    denoiser = Denoiser()
    denoiser.layers[1].times = 3
    with pytest.raises(NotCompiled, match=r"a compiled Block is .* off"):
        compile_groups(alike(denoiser), lambda: denoiser(torch.randn(2, 6, 16)), tmp_path)


def test_a_model_without_repeated_blocks_is_refused():
    with pytest.raises(NotCompiled, match="no repeated blocks of Linear"):
        alike(torch.nn.Linear(2, 2))


def test_the_page_compiles_what_it_starts_with_and_uses_it_for_what_was_compiled(monkeypatch, tmp_path):
    """With programs that count and then compute as written: compiling all of the demo's blocks takes minutes."""
    counted = []

    def compile_for_one_call(groups, run, folder):
        forms = []
        for blocks in groups:
            with torch.no_grad(), spaces.aoti_capture(blocks[0]) as call:
                run()
            leaves, nesting = torch.utils._pytree.tree_flatten((call.args, call.kwargs))
            values = [(x.dtype, *x.shape) if isinstance(x, torch.Tensor) else x for x in leaves]
            forms.append(Form(nesting, tuple(values)))
        return forms

    def load(module, package_dir):
        for block in module:
            written = block.forward
            block.forward = lambda *args, written=written: counted.append(1) or written(*args)

    monkeypatch.setattr("spaces_app.comparison.worker.AHEAD", True)
    monkeypatch.setattr("spaces_app.comparison.worker.compile_groups", compile_for_one_call)
    monkeypatch.setattr(spaces, "aoti_load_from_package_dir", load)
    model, worker = ModelRegistry().model(), Worker(local=True)
    usual = default_request(model.limits, model.examples[0])

    def pictures(worker, *variants, **changes):
        counted.clear()
        events = worker.run(model, replace(usual, variants=variants, steps=1, **changes))
        made = [event.image for event in events if isinstance(event, VariantDone)]
        return made, len(counted)

    worker.preload(model)
    compiled, count = pictures(worker, "original", "V2")
    assert count > 10
    written, none = pictures(Worker(local=True), "original", "V2")
    assert none == 0 and all(map(np.array_equal, compiled, written))
    alone = pictures(worker, "V2")[1]
    assert 0 < alone == pictures(worker, "V2", "V2" + IN_FP8)[1], "arithmetic in FP8 was not compiled"
