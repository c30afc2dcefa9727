"""What a difference of each weight does to the output."""

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hswq_runtime.checkpoints.checkpoint import Checkpoint

from .samples import Samples, rows_of


class WeightSamples(Samples):
    """Products of gradients and differences, of the weights of one part."""

    def __init__(self, checkpoint: Checkpoint, model: nn.Module):
        super().__init__()
        self._checkpoint, self._model = checkpoint, model
        self._behind: dict[nn.Parameter, list[tuple[str, slice, torch.Tensor]]] = {}
        self._handles: list[RemovableHandle] = []

    def listen(self, key: str, differences: torch.Tensor) -> None:
        """differences: [k, ...], k different ones of the stored weight `key`."""
        for name, rows, stored in rows_of(self._checkpoint, key):
            parameter = self._model.get_parameter(name)
            if parameter not in self._behind:
                parameter.requires_grad_(True)
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._hear))
            self._behind.setdefault(parameter, []).append((key, rows, differences[:, stored]))
        self.start(key, torch.zeros(len(differences), device=differences.device))

    def _hear(self, parameter: torch.Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None, "the hook runs after the gradient was accumulated"
        assert isinstance(parameter, nn.Parameter)
        for key, rows, differences in self._behind[parameter]:
            products = gradient[rows].float() * differences
            self.add(key, products.flatten(1).sum(dim=1))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        for parameter in self._behind:
            parameter.requires_grad_(False)
