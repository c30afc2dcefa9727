"""Second moments E[xxᵀ] of what layers are given, gathered by replaying recorded calls.

A layer with n inputs has n² of them, which for a model of 6 billion parameters is more than the model itself. So
layers are taken in groups that fit a bound on memory, and the recorded calls are replayed once for each group.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from hswq_runtime.errors import HSWQError

from ..calls import Call
from ..progress import progress
from ..settings import RoundingSettings

_WORD, _GB = torch.float32.itemsize, 1e9


def moment_shape(module: nn.Module) -> tuple[int, int, int]:
    """[groups, n, n]: n is the length of a row of the weight, as a convolution's group sees it unfolded."""
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    n = module.weight[0].numel()
    return groups, n, n


def layer_rows(module: nn.Module, inputs: torch.Tensor, tokens: int) -> torch.Tensor:
    """What the rows of the weight are multiplied with, `tokens` of them at most: float32 [groups, tokens, n].

    `inputs`: [..., n] of a linear layer; [B, C, H, W] of a convolution, whose patches become rows.
    """
    if not isinstance(module, nn.Conv2d):
        return _thin(inputs.reshape(1, -1, inputs.shape[-1]), tokens).float()
    padding = module.padding
    if isinstance(padding, str):  # "same" or "valid", which torch has worked out already
        padding = module._reversed_padding_repeated_twice[2::-2] if padding == "same" else (0, 0)
    if module.padding_mode != "zeros":
        inputs, padding = F.pad(inputs, module._reversed_padding_repeated_twice, mode=module.padding_mode), (0, 0)
    patches = F.unfold(inputs, module.kernel_size, module.dilation, padding, module.stride)
    batch, _, places = patches.shape
    grouped = patches.reshape(batch, module.groups, -1, places)
    return _thin(grouped.permute(1, 0, 3, 2).reshape(module.groups, batch * places, -1), tokens).float()


def _thin(rows: torch.Tensor, wanted: int) -> torch.Tensor:
    """[groups, tokens, n] -> at most `wanted` of the tokens, evenly spread."""
    count = rows.shape[1]
    if count <= wanted:
        return rows
    return rows[:, torch.arange(wanted, device=rows.device) * count // wanted]


def second_moments(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    calls: Sequence[Call],
    device: torch.device | str,
    tokens: int = RoundingSettings().tokens,
) -> dict[str, torch.Tensor]:
    """E[xxᵀ] of each of `modules` (parts of `model`, by any name): float32 [groups, n, n] on `device`.

    `model` has to be on `device`. Of one call of a layer at most `tokens` rows of input count; a call whose inputs are
    not finite is left out.

    Raises:
        HSWQError: nothing was recorded, or a layer saw nothing finite.
    """
    if not calls:
        raise HSWQError("the calibration holds no recorded calls; run `hswq-hub calibrate` again")
    sums = {name: torch.zeros(moment_shape(m), dtype=torch.float32, device=device) for name, m in modules.items()}
    rows = dict.fromkeys(modules, 0)

    def hook(module, inputs, _output, name):
        x = layer_rows(module, inputs[0].detach(), tokens)
        if x.isfinite().all():
            sums[name].baddbmm_(x.transpose(1, 2), x)
            rows[name] += x.shape[1]

    hooks = [
        module.register_forward_hook(lambda m, i, o, name=name: hook(m, i, o, name)) for name, module in modules.items()
    ]
    try:
        for call in progress(calls, desc="second moments", unit="call"):
            call.replay(model, device)
    finally:
        for handle in hooks:
            handle.remove()
    silent = [name for name, count in rows.items() if count == 0]
    if silent:
        raise HSWQError(f"no finite input was seen of {', '.join(silent)}; try --dtype float32")
    return {name: total / rows[name] for name, total in sums.items()}


def moment_bytes(module: nn.Module) -> int:
    """Memory that the second moments of `module` take."""
    return torch.Size(moment_shape(module)).numel() * _WORD


def in_groups(modules: Mapping[str, nn.Module], memory: float) -> Iterable[dict[str, nn.Module]]:
    """`modules` in their order, cut into groups whose second moments take at most `memory` GB.

    Raises:
        HSWQError: one of them alone takes more.
    """
    group, taken = {}, 0
    for name, module in modules.items():
        size = moment_bytes(module)
        if size > memory * _GB:
            raise HSWQError(
                f"the second moments of {name} alone take {size / _GB:.2g} GB; raise --calibration-memory to that"
            )
        if taken + size > memory * _GB:
            yield group
            group, taken = {}, 0
        group[name] = module
        taken += size
    if group:
        yield group
