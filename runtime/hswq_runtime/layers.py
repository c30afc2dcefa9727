"""Linear and Conv2d layers that hold their weight in FP8 and compute in a wider dtype.

The weight is expanded for the length of one call, one layer at a time, so a model never holds a second copy
of itself. They are subclasses of `nn.Linear` and `nn.Conv2d`, because offloading, PEFT and group hooks look
for those.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .fp8 import FP8, dequantize

SCALE_BUFFER = "scale"


class _FP8Weight:
    """What both layers share: an FP8 `weight`, an optional float32 `scale`, and a `compute_dtype`.

    `weight`: FP8, frozen, of the shape the plain layer has. `scale`: None, or a float32 buffer that
    broadcasts against `weight` ([1] for one scale a tensor). `compute_dtype`: the dtype of the expanded
    weight, of the bias, and (PEFT reads this attribute) of adapters put on the layer.
    """

    def _hold_fp8(self, scaled: bool, compute_dtype: torch.dtype, device) -> None:
        self.compute_dtype = compute_dtype
        self.weight = nn.Parameter(torch.empty(self.weight.shape, dtype=FP8, device=device), requires_grad=False)
        self.register_buffer(SCALE_BUFFER, torch.empty(1, dtype=torch.float32, device=device) if scaled else None)

    def dequantized_weight(self) -> torch.Tensor:
        """The weight in `compute_dtype`, a new tensor of the plain layer's shape."""
        return dequantize(self.weight, self.scale, self.compute_dtype)

    def plain(self) -> nn.Module:
        """The nn.Linear or nn.Conv2d that computes the same with a plain weight."""
        layer = self._plain_shell()
        layer.weight = nn.Parameter(self.dequantized_weight(), requires_grad=False)
        layer.bias = self.bias
        return layer.train(self.training)

    def _apply(self, fn, recurse=True):
        # `.to(dtype)`, `.half()` and the like change what we compute in, never the stored FP8 bytes or their scale.
        stored = [tensor for tensor in (self.weight, self.scale) if tensor is not None]

        def keep_stored(tensor):
            applied = fn(tensor)
            if any(tensor is one for one in stored) and applied.dtype != tensor.dtype:
                return tensor.to(applied.device)
            return applied

        super()._apply(keep_stored, recurse)
        # `fn` is opaque: an empty tensor tells which dtype it goes to.
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype, device=stored[0].device)).dtype
        return self

    def extra_repr(self) -> str:
        scale = "none" if self.scale is None else list(self.scale.shape)
        return f"{super().extra_repr()}, weight=float8_e4m3fn, scale={scale}, compute_dtype={self.compute_dtype}"


class HSWQLinear(_FP8Weight, nn.Linear):
    """`nn.Linear` with an FP8 weight [out_features, in_features]; the bias stays in `compute_dtype`."""

    def __init__(self, in_features, out_features, bias=True, *, scaled, compute_dtype, device=None):
        super().__init__(in_features, out_features, bias=bias, device="meta", dtype=compute_dtype)
        self._hold_fp8(scaled, compute_dtype, device)

    @classmethod
    def like(cls, layer: nn.Linear, *, scaled: bool, compute_dtype: torch.dtype) -> "HSWQLinear":
        """An empty layer on the meta device, of `layer`'s shape."""
        return cls(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            scaled=scaled,
            compute_dtype=compute_dtype,
            device="meta",
        )

    def _plain_shell(self) -> nn.Linear:
        return nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.dequantized_weight(), self.bias)


class HSWQConv2d(_FP8Weight, nn.Conv2d):
    """`nn.Conv2d` with an FP8 weight [out, in / groups, kH, kW]; the bias stays in `compute_dtype`."""

    def __init__(self, *args, scaled, compute_dtype, device=None, **kwargs):
        super().__init__(*args, **kwargs, device="meta", dtype=compute_dtype)
        self._hold_fp8(scaled, compute_dtype, device)

    @classmethod
    def like(cls, layer: nn.Conv2d, *, scaled: bool, compute_dtype: torch.dtype) -> "HSWQConv2d":
        """An empty layer on the meta device, of `layer`'s shape."""
        return cls(**_geometry(layer), scaled=scaled, compute_dtype=compute_dtype, device="meta")

    def _plain_shell(self) -> nn.Conv2d:
        return nn.Conv2d(**_geometry(self), device="meta")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(input, self.dequantized_weight(), self.bias)


def _geometry(conv: nn.Conv2d) -> dict:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(conv, name) for name in names} | {"bias": conv.bias is not None}


def quantized_twin(layer: nn.Module, *, scaled: bool, compute_dtype: torch.dtype) -> nn.Module:
    """The empty FP8 layer that takes the place of `layer` (nn.Linear or nn.Conv2d).

    Raises:
        TypeError: for any other kind of layer.
    """
    for plain, quantized in ((nn.Linear, HSWQLinear), (nn.Conv2d, HSWQConv2d)):
        if isinstance(layer, plain):
            return quantized.like(layer, scaled=scaled, compute_dtype=compute_dtype)
    raise TypeError(f"{type(layer).__name__} has no FP8 twin; only nn.Linear and nn.Conv2d have")


def dequantize_(model: nn.Module) -> nn.Module:
    """Exchange every FP8 layer of `model`, in place, for the plain layer with `weight · scale`; returns it.

    The plain layers hold their weights in the `compute_dtype` of the layers they replace.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, _FP8Weight):
            model.set_submodule(name, layer.plain())
    return model


def weight_bytes(model: nn.Module) -> int:
    """Bytes that the parameters and buffers of `model` take, each tensor counted once."""
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return sum(t.nbytes for t in tensors.values())
