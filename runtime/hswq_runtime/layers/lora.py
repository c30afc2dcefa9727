"""PEFT layers that can merge an adapter into an FP8 weight, and give the FP8 bytes back.

PEFT merges by adding to the base weight in place, which FP8 has no addition for. Here the weight is expanded, added
to in float32 and rounded anew, and the original bytes are kept until the adapter is taken out again.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import Conv2d, Linear, model
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge, onload_layer

from ..errors import HSWQError
from .fp8 import FP8, dequantize
from .modules import HSWQConv2d, HSWQLayer


class _MergesByRequantizing:
    """Mixed into PEFT's layers; everything but merging is theirs."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge adapters (None: the active ones) into the FP8 weight, rounded to nearest, with a fresh scale in V2.

        While merged, the original weight is kept in CPU memory. What accelerate has offloaded is fetched meanwhile.

        Raises:
            HSWQError: an adapter that PEFT cannot express as a change of the weight alone (DoRA, a bias).
            ValueError: `safe_merge` and the result is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) or [] if name in self.lora_A]
        if not names:
            return
        if any(name in self.lora_variant or self.lora_bias[name] for name in names):
            raise HSWQError("only plain LoRA can be fused into FP8 weights; use this adapter without fusing it")
        with onload_layer(self):
            self._merge(names, safe_merge)

    def _merge(self, names: list[str], safe_merge: bool) -> None:
        merged = [name for name in self.merged_adapters if name in self.lora_A]
        if len(merged) < len(self.merged_adapters) or not merged:
            # Nothing is merged, or something that was deleted meanwhile: its change stays, as PEFT has it.
            self._remember()
            merged = []
        base = self.get_base_layer()
        weight, scale = self._original
        # From the original each time: what is rounded twice has twice the error.
        values = dequantize(weight.view(FP8), scale, torch.float32).to(base.weight.device)
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
        """Take all merged adapters out again: the weight and its scale are what they were, to the bit."""
        if not self.merged:
            return
        base = self.get_base_layer()
        weight, scale = self._original
        with onload_layer(self):
            base.weight.data.view(torch.uint8).copy_(weight)
            if scale is not None:
                base.scale.copy_(scale)
        self.merged_adapters.clear()
        del self._original, self._strengths

    def _remember(self) -> None:
        """Keep the weight's bytes (pickle cannot take FP8) and its scale in CPU memory."""
        base = self.get_base_layer()
        scale = None if base.scale is None else base.scale.cpu().clone()
        self._original, self._strengths = (base.weight.data.view(torch.uint8).cpu().clone(), scale), {}

    def _delta(self, name: str, strength: float) -> torch.Tensor:
        """What adapter `name` adds at `strength`, whatever its strength is now."""
        now = self.scaling[name]
        try:
            self.scaling[name] = strength
            return self.get_delta_weight(name)
        finally:
            self.scaling[name] = now


class HSWQLoraLinear(_MergesByRequantizing, Linear):
    """PEFT's LoRA layer over an :class:`hswq_runtime.HSWQLinear`."""


class HSWQLoraConv2d(_MergesByRequantizing, Conv2d):
    """PEFT's LoRA layer over an :class:`hswq_runtime.HSWQConv2d`."""

    def update_layer(self, *args, **kwargs) -> None:
        """Add an adapter."""
        with _taken_for_plain(self.get_base_layer()):
            super().update_layer(*args, **kwargs)


@contextmanager
def _taken_for_plain(base: torch.nn.Module) -> Iterator[None]:
    """While open, an FP8 convolution says that it is a plain one: PEFT makes an adapter of the class of its base."""
    kind = type(base)
    try:
        if kind is HSWQConv2d:
            base.__class__ = torch.nn.Conv2d
        yield
    finally:
        base.__class__ = kind


_OURS = {Linear: HSWQLoraLinear, Conv2d: HSWQLoraConv2d}


def _dispatch_after(plain):
    """A dispatcher for PEFT that gives FP8 layers our classes, and all others whatever `plain` gives them."""

    def dispatch(target: torch.nn.Module, *args, **kwargs):
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        with _taken_for_plain(base):
            layer = plain(target, *args, **kwargs)
        if isinstance(base, HSWQLayer) and type(layer) in _OURS:
            # PEFT has made it, with arguments that differ from release to release; only its methods are exchanged.
            layer.__class__ = _OURS[type(layer)]
        return layer

    return dispatch


model.dispatch_default = _dispatch_after(model.dispatch_default)
