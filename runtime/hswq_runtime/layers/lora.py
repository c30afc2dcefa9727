"""PEFT layers that merge an adapter into a quantized weight, and restore its bytes.

PEFT merges by adding to the base weight in place; codes have no addition. Here the weight is expanded, the adapter is
added in float32, and the sum is rounded again. The original bytes are kept until the adapter is unmerged.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Conv2d, Linear, model
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge, onload_layer

from ..errors import HSWQError
from ..formats import Reader
from .modules import HSWQConv2d, HSWQLayer, HSWQLinear


class _MergesByRequantizing:
    """A mixin for PEFT's LoRA layers that replaces how they merge."""

    # Of PEFT's layers:
    lora_A: torch.nn.ModuleDict
    lora_bias: Mapping[str, bool]
    lora_variant: Mapping[str, object]
    scaling: dict[str, float]
    merged: bool
    merged_adapters: list[str]
    get_base_layer: Callable[[], HSWQLayer]
    get_delta_weight: Callable[[str], torch.Tensor]

    _original: tuple[torch.Tensor, torch.Tensor | None]
    """The bytes of the base weight (U8, since pickle cannot store FP8) and its scale, in CPU memory."""
    _strengths: dict[str, float]
    """The scaling that each merged adapter was merged with."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge adapters (None: the active ones) into the quantized weight: rounded to nearest, with a fresh scale
        unless it has none.

        While merged, the original weight is kept in CPU memory. Weights that accelerate has offloaded are loaded for
        the merge.

        Raises:
            HSWQError: an adapter that changes more than the weight (DoRA, a bias).
            ValueError: with `safe_merge`, if the result is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) or [] if name in self.lora_A]
        if not names:
            return
        if any(name in self.lora_variant or self.lora_bias[name] for name in names):
            raise HSWQError("only plain LoRA can be fused into quantized weights; use this adapter without fusing it")
        with onload_layer(self):
            self._merge(names, safe_merge)

    def _merge(self, names: list[str], safe_merge: bool) -> None:
        merged = [name for name in self.merged_adapters if name in self.lora_A]
        if len(merged) < len(self.merged_adapters) or not merged:
            # Nothing is merged, or an adapter that was deleted since: its change stays in the weight, as in PEFT.
            self._remember()
            merged = []
        base = self.get_base_layer()
        weight, scale = self._original
        # Always from the original: rounding twice adds the error twice.
        codes = weight.view(base.weight.dtype)
        values = base.expanded(codes, scale, torch.float32).to(base.weight.device)
        for name in merged:
            values += self._delta(name, self._strengths[name]).to(values)
        for name in names:
            values += self.get_delta_weight(name).to(values)
        if safe_merge and not values.isfinite().all():
            raise ValueError(f"merging {', '.join(names)} gives values that are not finite; is the adapter broken?")
        base.requantize(values)
        self._strengths |= {name: self.scaling[name] for name in names}
        self.merged_adapters = [*merged, *names]

    def unmerge(self) -> None:
        """Unmerge all adapters: weight and scale are bit-identical to the original again."""
        if not self.merged:
            return
        base = self.get_base_layer()
        weight, scale = self._original
        with onload_layer(self):
            base.weight.data.view(torch.uint8).copy_(weight)
            if scale is not None and base.scale is not None:
                base.scale.copy_(scale)
        self.merged_adapters.clear()
        del self._original, self._strengths

    def _remember(self) -> None:
        """Keep a copy of the base weight and its scale."""
        base = self.get_base_layer()
        scale = None if base.scale is None else base.scale.cpu().clone()
        self._original, self._strengths = (base.weight.data.view(torch.uint8).cpu().clone(), scale), {}

    def _delta(self, name: str, strength: float) -> torch.Tensor:
        """The change of the weight by adapter `name` with the scaling `strength` instead of its current one."""
        now = self.scaling[name]
        try:
            self.scaling[name] = strength
            return self.get_delta_weight(name)
        finally:
            self.scaling[name] = now


class HSWQLoraLinear(_MergesByRequantizing, Linear):  # type: ignore[misc]  # PEFT has no types
    """PEFT's LoRA layer over an :class:`hswq_runtime.HSWQLinear`.

    ComfyUI multiplies in full precision where a LoRA is on, and so does a simulation of it.
    """

    active_adapters: list[str]
    disable_adapters: bool

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """PEFT's: the base layer's product with what the active adapters add."""
        base = self.get_base_layer()
        on = self.merged or (not self.disable_adapters and any(name in self.lora_A for name in self.active_adapters))
        if not (isinstance(base, HSWQLinear) and base.quantized_matmul and base.reader is Reader.COMFYUI and on):
            output: torch.Tensor = super().forward(x, *args, **kwargs)
            return output
        base.quantized_matmul = False
        try:
            exact: torch.Tensor = super().forward(x, *args, **kwargs)
            return exact
        finally:
            base.quantized_matmul = True


class HSWQLoraConv2d(_MergesByRequantizing, Conv2d):  # type: ignore[misc]  # PEFT has no types
    """PEFT's LoRA layer over an :class:`hswq_runtime.HSWQConv2d`."""

    def update_layer(self, *args: Any, **kwargs: Any) -> None:
        """Add an adapter; the arguments are PEFT's."""
        with _taken_for_plain(self.get_base_layer()):
            super().update_layer(*args, **kwargs)


@contextmanager
def _taken_for_plain(base: torch.nn.Module) -> Iterator[None]:
    """Within this context an FP8 convolution has the class of a plain one, from which PEFT derives the adapter's."""
    kind = type(base)
    try:
        if kind is HSWQConv2d:
            base.__class__ = torch.nn.Conv2d
        yield
    finally:
        base.__class__ = kind


_OURS: dict[type, type[torch.nn.Module]] = {Linear: HSWQLoraLinear, Conv2d: HSWQLoraConv2d}

Dispatcher = Callable[..., torch.nn.Module | None]
"""PEFT's: a layer, an adapter's name and settings -> the layer that holds the adapter, None for other dispatchers."""


def _dispatch_after(plain: Dispatcher) -> Dispatcher:
    """A dispatcher for PEFT: like `plain`, but the classes above for FP8 layers."""

    def dispatch(target: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module | None:
        base: torch.nn.Module = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        with _taken_for_plain(base):
            layer = plain(target, *args, **kwargs)
        if isinstance(base, HSWQLayer) and type(layer) in _OURS:
            # PEFT creates the layer, with arguments that differ from release to release; only its class is replaced.
            layer.__class__ = _OURS[type(layer)]
        return layer

    return dispatch


model.dispatch_default = _dispatch_after(model.dispatch_default)
