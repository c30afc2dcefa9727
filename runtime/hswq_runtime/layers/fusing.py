"""`fuse_lora` and `unfuse_lora` of FP8 models that group offloading has put away.

With streams it keeps a copy of every tensor on the CPU. A weight that is put away is that copy, but a buffer is not
(diffusers 0.42): the next forward pass would put the old scale beside the new weight. So the copies are made anew after
a change. With a disk path, what is in memory while the weights are on the disk has no meaning.
"""

from functools import wraps

import torch
from diffusers.hooks import group_offloading
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.loaders.peft import PeftAdapterMixin

from ..errors import HSWQError
from .modules import HSWQLayer


def _keeping_copies_fresh(change):
    """`change`, a method of a model or pipeline of diffusers, followed by what group offloading needs after it.

    Raises:
        HSWQError: the weights are on the disk.
    """

    @wraps(change)
    def changed(self, *args, **kwargs):
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


def _fp8_models(owner) -> list[torch.nn.Module]:
    """A model itself, or those of a pipeline; if they have FP8 layers."""
    parts = [owner] if isinstance(owner, torch.nn.Module) else owner.components.values()
    models = [part for part in parts if isinstance(part, torch.nn.Module)]
    return [model for model in models if any(isinstance(layer, HSWQLayer) for layer in model.modules())]


PeftAdapterMixin.fuse_lora = _keeping_copies_fresh(PeftAdapterMixin.fuse_lora)
PeftAdapterMixin.unfuse_lora = _keeping_copies_fresh(PeftAdapterMixin.unfuse_lora)
# A pipeline fuses through its models, but unfuses layer by layer itself.
LoraBaseMixin.unfuse_lora = _keeping_copies_fresh(LoraBaseMixin.unfuse_lora)
