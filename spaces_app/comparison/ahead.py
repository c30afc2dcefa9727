"""Blocks compiled ahead of time: on ZeroGPU each call is a process of its own, where `torch.compile` would begin anew.

Most of a denoiser's work is in the blocks that diffusers lists as repeated. Those that have the same form, which
quantization decides, share one program; each is given its own weights.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim
from torch.export.graph_signature import InputKind, TensorArgument
from torch.utils import _pytree

from hswq_runtime.errors import HSWQError

_FORWARD = "forward"
_CLOSE = 0.02
"""How far a compiled block may be from the block, as a share of the largest value: some steps of bfloat16."""


class NotCompiled(HSWQError):
    """The blocks cannot be compiled, or what they then compute is something else."""


@dataclass(frozen=True)
class Form:
    """The calls that a program is for: how arguments are nested, of each tensor dtype and sizes (None: any from 2 on),
    and the value of anything else."""

    nesting: Any
    values: tuple[Any, ...]

    @classmethod
    def of(cls, exported: torch.export.ExportedProgram, args: tuple, kwargs: dict) -> "Form":
        """Of an exported block, from the call that it was exported with."""
        leaves, nesting = _pytree.tree_flatten((args, kwargs))
        sizes = {node.name: node.meta["val"].shape for node in exported.graph.find_nodes(op="placeholder")
                 if isinstance(node.meta.get("val"), torch.Tensor)}  # fmt: skip
        inputs = [spec.arg for spec in exported.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
        values = [
            (leaf.dtype, *(size if isinstance(size, int) else None for size in sizes[given.name]))
            if isinstance(given, TensorArgument)
            else leaf
            for given, leaf in zip(inputs, leaves, strict=True)
        ]
        return cls(nesting, tuple(values))

    def fits(self, args: tuple, kwargs: dict) -> bool:
        """Whether a call is one of them."""
        leaves, nesting = _pytree.tree_flatten((args, kwargs))
        return nesting == self.nesting and all(map(_agrees, self.values, leaves))


def _agrees(wanted: Any, leaf: Any) -> bool:
    if not isinstance(leaf, torch.Tensor):
        return type(wanted) is type(leaf) and wanted == leaf
    if not isinstance(wanted, tuple) or len(wanted) != leaf.dim() + 1 or wanted[0] is not leaf.dtype:
        return False
    return all(
        size == there or (size is None and there > 1) for size, there in zip(wanted[1:], leaf.shape, strict=True)
    )


def alike(denoiser: torch.nn.Module) -> list[list[torch.nn.Module]]:
    """Its repeated blocks, those of the same form together.

    Raises:
        NotCompiled: diffusers lists none of this model.
    """
    names = getattr(denoiser, "_repeated_blocks", None) or ()
    groups: dict[tuple, list[torch.nn.Module]] = {}
    for block in denoiser.modules():
        if type(block).__name__ in names:
            parts = tuple((name, type(part)) for name, part in block.named_modules())
            weights = tuple((name, value.dtype, value.shape) for name, value in block.state_dict().items())
            groups.setdefault((parts, weights), []).append(block)
    if not groups:
        raise NotCompiled(f"diffusers lists no repeated blocks of {type(denoiser).__name__}; unset HSWQ_AOT")
    return list(groups.values())


def compile_groups(groups: Sequence[list[torch.nn.Module]], run: Callable[[], object], folder: Path) -> list[Form]:
    """Compile one block of each group as `run` calls it, into a folder each, and check what all of them compute.

    On ZeroGPU this is done in a call that has the GPU; the blocks of the process that made that call stay as they are.

    Raises:
        NotCompiled: a block's program computes something else than the block.
    """
    import spaces

    forms = []
    for number, blocks in enumerate(groups):
        with torch.no_grad():
            with spaces.aoti_capture(blocks[0]) as call:
                run()
            exported = torch.export.export(
                blocks[0], call.args, call.kwargs, dynamic_shapes=_any_size(blocks[0], call.args, call.kwargs)
            )
            spaces.aoti_compile_and_save(folder / str(number), exported)
            expected = [block(*call.args, **call.kwargs) for block in blocks]
            forms.append(Form.of(exported, call.args, call.kwargs))
            load_groups([blocks], forms[-1:], folder, first=number)
            for block, wanted in zip(blocks, expected, strict=True):
                _check(wanted, block(*call.args, **call.kwargs), type(block).__name__)
    return forms


def load_groups(
    groups: Sequence[list[torch.nn.Module]], forms: Sequence[Form], folder: Path, *, first: int = 0
) -> None:
    """Let blocks compute with what `compile_groups` left in `folder`; calls of another form are computed as written."""
    import spaces

    for number, (blocks, form) in enumerate(zip(groups, forms, strict=True), first):
        spaces.aoti_load_from_package_dir(torch.nn.ModuleList(blocks), folder / str(number))
        for block in blocks:
            vars(block)[_FORWARD] = _Either(block, vars(block)[_FORWARD], form)


@dataclass(frozen=True, eq=False)
class _Either:
    """A block's forward: its program where the call has that form, else as written."""

    block: torch.nn.Module
    program: Callable[..., Any]
    form: Form

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.form.fits(args, kwargs):
            return self.program(*args, **kwargs)
        return type(self.block).forward(self.block, *args, **kwargs)


@contextmanager
def as_written(denoiser: torch.nn.Module) -> Iterator[None]:
    """Its blocks without their programs, for what was not compiled: a LoRA, arithmetic in FP8."""
    compiled = {
        block: vars(block).pop(_FORWARD)
        for block in denoiser.modules()
        if isinstance(vars(block).get(_FORWARD), _Either)
    }
    try:
        yield
    finally:
        for block, forward in compiled.items():
            vars(block)[_FORWARD] = forward


def _any_size(block: torch.nn.Module, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Every size of every argument may be another, unless the block's code depends on it."""
    given = inspect.signature(type(block).forward).bind(block, *args, **kwargs).arguments
    _, *named = given.items()
    return {name: _pytree.tree_map(_sizes, value) for name, value in named}


def _sizes(value: Any) -> dict[int, Any] | None:
    return {axis: Dim.AUTO for axis in range(value.dim())} if isinstance(value, torch.Tensor) else None


def _check(wanted: Any, found: Any, name: str) -> None:
    for one, other in zip(_pytree.tree_leaves(wanted), _pytree.tree_leaves(found), strict=True):
        if not isinstance(one, torch.Tensor):
            continue
        error, largest = (one - other).abs().max().item(), one.abs().max().item()
        if not error <= _CLOSE * largest:
            raise NotCompiled(f"a compiled {name} is {error:.2g} off, where the largest value is {largest:.2g}")
