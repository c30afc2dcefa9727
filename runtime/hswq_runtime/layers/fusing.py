"""`fuse_lora` and `unfuse_lora` of FP8 models under group offloading.

With streams, group offloading keeps a CPU copy of every tensor. An offloaded weight is that copy, but a buffer is not
(diffusers 0.42): the next forward pass would use the old scale with the new weight. So offloading is applied again
after a change. With a disk path the tensors in memory are empty while offloaded, so fusing is refused.
"""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from diffusers.hooks import group_offloading
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.loaders.peft import PeftAdapterMixin

from ..errors import HSWQError
from .modules import HSWQLayer

Owner = TypeVar("Owner", bound=torch.nn.Module | LoraBaseMixin)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _keeping_copies_fresh(
    change: Callable[Concatenate[Owner, Arguments], Result],
) -> Callable[Concatenate[Owner, Arguments], Result]:
    """Wrap `change`, a method of a diffusers model or pipeline: apply group offloading again after it.

    Raises:
        HSWQError: the weights are offloaded to the disk.
    """

    @wraps(change)
    def changed(self: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        hooks = {model: group_offloading._get_top_level_group_offload_hook(model) for model in _fp8_models(self)}
        hooks = {model: hook for model, hook in hooks.items() if hook is not None}
        if any(hook.config.offload_to_disk_path is not None for hook in hooks.values()):
            raise HSWQError(
                "the weights are offloaded to the disk: fuse before enable_group_offload, or without a path"
            )
        result = change(self, *args, **kwargs)
        for model in hooks:
            group_offloading._maybe_remove_and_reapply_group_offloading(model)
        return result

    return changed


def _fp8_models(owner: torch.nn.Module | LoraBaseMixin) -> list[torch.nn.Module]:
    """The models with FP8 layers: `owner` itself, or those of the pipeline `owner`."""
    parts = [owner] if isinstance(owner, torch.nn.Module) else owner.components.values()
    models = [part for part in parts if isinstance(part, torch.nn.Module)]
    return [model for model in models if any(isinstance(layer, HSWQLayer) for layer in model.modules())]


PeftAdapterMixin.fuse_lora = _keeping_copies_fresh(PeftAdapterMixin.fuse_lora)
PeftAdapterMixin.unfuse_lora = _keeping_copies_fresh(PeftAdapterMixin.unfuse_lora)
# A pipeline fuses through its models, but unfuses the layers itself.
LoraBaseMixin.unfuse_lora = _keeping_copies_fresh(LoraBaseMixin.unfuse_lora)
