"""A denoiser that computes in another dtype than the pipeline around it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import recursively_apply
from torch import nn
from torch.overrides import TorchFunctionMode

_PRODUCTS = (F.linear, F.conv2d)


def other_dtype(reference: torch.dtype) -> torch.dtype:
    """What the noise floor is computed in: bfloat16 where the reference is float32, as on a CPU; float32 where it has
    16 bits, as on a GPU. Either way it is the distance between the two."""
    return torch.bfloat16 if reference == torch.float32 else torch.float32


@contextmanager
def computing_in(denoiser: nn.Module, dtype: torch.dtype, outside: torch.dtype) -> Iterator[None]:
    """Within this, `denoiser`, whose weights are in `dtype`, takes inputs in `outside` and returns outputs in it.

    Inputs of one dimension or none stay as they are: pipelines leave timesteps in float32 where their precision
    matters. float32 on CUDA multiplies in TF32, whose eleven bits are far finer than bfloat16's eight: by the makers'
    figures that takes twice the time of bfloat16, instead of ten times and more.
    """

    def before(_: nn.Module, arguments: Any, named: Any) -> tuple[Any, Any]:
        return _in(dtype, arguments, lambda tensor: tensor.ndim > 1), _in(dtype, named, lambda tensor: tensor.ndim > 1)

    def after(_: nn.Module, __: Any, made: Any) -> Any:
        return _in(outside, made, lambda tensor: True)

    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("high")
        for hook in (
            denoiser.register_forward_pre_hook(before, with_kwargs=True),
            denoiser.register_forward_hook(after),
        ):
            stack.callback(hook.remove)
        stack.enter_context(RoundedProducts())
        yield


class RoundedProducts(TorchFunctionMode):
    """Products in 16 bits on a CPU are summed in float32 and rounded once, as a GPU's tensor cores do it; a CPU without
    instructions for them takes several times as long otherwise, for the same figures but for the order of the sums."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS and args[0].device.type == "cpu" and args[0].dtype in (torch.bfloat16, torch.float16):
            exact = func(*_in(torch.float32, args), **_in(torch.float32, kwargs))
            return exact.to(args[0].dtype)
        return func(*args, **kwargs)


def _in(dtype: torch.dtype, data: Any, which: Callable[[torch.Tensor], bool] = lambda _: True) -> Any:
    """`data` with those of its floating-point tensors that `which` names in `dtype`."""

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() and which(tensor) else tensor

    return recursively_apply(cast, data)
