"""What a picture costs, from shapes: operations of a call of the denoiser and of decoding, and what these hold."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from hswq_runtime.architectures import Architecture
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.formats import layer_of

TOKEN = 16
"""Pixels a side of a transformer's token, of 2 x 2 latent pixels, with the VAE of nearly all models."""
_HELD_IN_A_CALL = 8
"""What a call holds at once, in sizes of its widest layer: counted in `tests/generation/test_placement.py`."""
_IN_A_BLOCK = 8
"""Values a channel that the last residual block of the VAE holds at once, at the resolution of the picture."""


@dataclass(frozen=True)
class DenoiserCost:
    """The cost of one call of the denoiser for one picture.

    weights: how many it multiplies with. tokens: how many each weight is applied to, in the mean. width: the most
    common number of input channels, counted by weights. attention: operations of the attention. layers: how many.
    widest: values that the layer with the most of them takes and gives.
    """

    weights: int
    tokens: float
    width: int
    attention: float
    layers: int
    widest: float = 0.0

    @property
    def flops(self) -> float:
        """A product and a sum for each weight and token, and the attention."""
        return 2.0 * self.weights * self.tokens + self.attention


def denoiser_cost(checkpoint: Checkpoint, size: int, token: int = TOKEN) -> DenoiserCost:
    """What a picture of `size` pixels a side costs, from the shapes of the layers. token: pixels a side of a token, of
    2 x 2 latent values.

    A weight of a transformer sees every token, of the picture and of the text; one of a UNet every place of its level,
    each half as wide and high as the one above. Embedders and modulation are left out: they see the timestep, once a
    call, or are small.
    """
    levels = 1 + max((int(n) for n in re.findall(r"down_blocks\.(\d+)", " ".join(checkpoint.parameters))), default=0)
    architecture = checkpoint.architecture
    weights, places, attention, layers, widths, widest = 0, 0.0, 0.0, 0, Counter[int](), 0.0
    for key in checkpoint.layers:
        info, modules = checkpoint.tensors[key], [layer_of(name) for name in checkpoint.modules[key]]
        layers += len(modules)
        if architecture.is_sensitive(modules[0]):
            continue
        found = (
            _tokens(architecture, modules[0], size / token)
            if levels == 1
            else _places(modules[0], 2 * size / token, levels)
        )
        weights, places = weights + info.values, places + info.values * found
        widths[info.values // info.shape[0]] += info.values
        widest = max(widest, found * sum(info.shape[:2]))
        # Queries on keys, then on values. Those of a UNet's second attention are the text's.
        attention += 4.0 * found**2 * info.shape[1] * any(re.search(_ATTENDS, name) for name in modules)
    return DenoiserCost(weights, places / weights, widths.most_common(1)[0][0], attention, layers, widest)


_ATTENDS = r"(?<!attn2)\.to_q$"
"""The module of the queries, one for each attention that a picture's tokens pay to each other."""


def _tokens(architecture: Architecture, module: str, side: float) -> float:
    """Tokens of a picture, `side` tokens wide and high, and of a prompt that a layer of a transformer sees."""
    several = architecture.token_multiple
    picture, text = (ceil(n / several) * several for n in (side**2, architecture.text_tokens))
    if architecture.text_only is not None and re.search(architecture.text_only, module):
        return text
    if architecture.picture_only is not None and re.search(architecture.picture_only, module):
        return picture
    return picture + text


def _places(module: str, side: float, levels: int) -> float:
    """Places of a picture, `side` latent values wide and high, that a layer of a UNet sees."""
    block = re.match(r"(down|up|mid)_block(?:s\.(\d+))?", module)
    number = int(block[2] or 0) if block else 0
    level = {"down": number, "up": levels - 1 - number, "mid": levels - 1}[block[1]] if block else 0
    return float((side / 2**level) ** 2)


def vae_flops(config: dict[str, object], size: int) -> float:
    """Operations of decoding a picture: two 3 x 3 convolutions in each residual block, one more block a level than in
    the encoder, at twice the resolution from level to level."""
    match config:
        case {"block_out_channels": list(channels), "layers_per_block": int(layers)}:
            levels = enumerate(map(float, channels))
            return sum(36.0 * (layers + 1) * c * c * (size / 2.0**level) ** 2 for level, c in levels)
    return 0.0


def pixels_a_token(vae: Mapping[str, object]) -> int:
    """Pixels a side of a token, of 2 x 2 latent values of this VAE."""
    match vae:
        case {"block_out_channels": list(channels)}:
            return int(2 ** len(channels))
    return TOKEN


def call_values(call: DenoiserCost) -> int:
    """Values that are held at once in a call of the denoiser without gradients, its layers' statistics included: some
    times what its widest layer takes and gives."""
    return int(_HELD_IN_A_CALL * call.widest)


def picture_values(vae: Mapping[str, object], size: int) -> int:
    """Values that are held at once while a picture is decoded: a residual block's, at the resolution of the picture."""
    match vae:
        case {"block_out_channels": list(channels)}:
            return int(_IN_A_BLOCK * channels[0] * size**2)
    return 0
