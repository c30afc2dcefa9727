"""Counts what would be on a device, where the CPU passes for it: weights by the hooks that move them, and what is
computed with them by torch's own dispatch."""

import weakref

import torch
from accelerate.hooks import CpuOffload
from diffusers.hooks.group_offloading import ModuleGroup
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hswq_runtime.layers.modules import weight_bytes


class Meter:
    """Weights that are there, by whoever moved them; `peak`: bytes at most; `together`: how many movers at most."""

    def __init__(self, monkeypatch):
        self.there: dict[int, int] = {}
        self.peak = self.together = 0
        onload, offload = ModuleGroup.onload_, ModuleGroup.offload_
        before, away = CpuOffload.pre_forward, CpuOffload.init_hook

        def group_arrives(group):
            self._arrived(group, sum(weight_bytes(m) for m in group.modules) + sum(p.nbytes for p in group.parameters))
            onload(group)

        def group_leaves(group):
            self.there.pop(id(group), None)
            offload(group)

        def component_arrives(hook, module, *args, **kwargs):
            if hook.prev_module_hook is not None:
                self.there.pop(id(hook.prev_module_hook.model), None)
            self._arrived(module, weight_bytes(module))
            return before(hook, module, *args, **kwargs)

        def component_leaves(hook, module):
            self.there.pop(id(module), None)
            return away(hook, module)

        monkeypatch.setattr(ModuleGroup, "onload_", group_arrives)
        monkeypatch.setattr(ModuleGroup, "offload_", group_leaves)
        monkeypatch.setattr(CpuOffload, "pre_forward", component_arrives)
        monkeypatch.setattr(CpuOffload, "init_hook", component_leaves)

    def _arrived(self, mover: object, size: int) -> None:
        self.there[id(mover)] = size
        self.peak = max(self.peak, sum(self.there.values()))
        self.together = max(self.together, len(self.there))


class Computed(TorchDispatchMode):
    """Bytes that operations have made and that are alive; `peak`: at most. Weights of `model` are not among them."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.now = self.peak = 0
        self._sizes = {t.untyped_storage()._cdata: 0 for t in [*model.parameters(), *model.buffers()]}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, storage._cdata)
        return made

    def _gone(self, storage: int) -> None:
        self.now -= self._sizes.pop(storage, 0)
