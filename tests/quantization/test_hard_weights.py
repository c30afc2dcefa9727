"""Weights that are legal and unusual: whatever becomes of them, no file holds NaN and none lacks a tensor."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny

from hswq_hub.calibration.calibrate import Calibration
from hswq_hub.settings import ALL_FORMATS, CalibrationSettings, recipe
from hswq_hub.sources.find import resolve
from hswq_hub.sources.source import Source
from hswq_hub.workflow.quantize import quantize
from hswq_runtime import Format, load_model
from hswq_runtime.formats import Metadata

ODD = {"dim": 30, "n_heads": 5, "n_kv_heads": 5, "axes_dims": [2, 2, 2], "cap_feat_dim": 31, "in_channels": 3}
"""Sizes that no power of 4, and few of 16, divide."""
MAIN, NOISE, CONTEXT = (f"{tiny.PREFIX}{block}.0." for block in ("layers", "noise_refiner", "context_refiner"))
FIRST, SECOND, TWIN, QKV, OUT = (
    f"{part}.weight"
    for part in ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "attention.qkv", "attention.out")
)


def each_layer_another_one(tensors):
    for key in tensors:  # an FP32 source, and not in every tensor
        tensors[key] = tensors[key].float()
    tensors[CONTEXT + OUT], tensors[CONTEXT + SECOND] = (
        tensors[CONTEXT + OUT].half(),
        tensors[CONTEXT + SECOND].double(),
    )
    tensors[MAIN + FIRST][::2] = 0
    tensors[MAIN + QKV][:31] = 0
    tensors[MAIN + OUT].zero_()
    tensors[MAIN + "ffn_norm1.weight"][::3] = 0  # inputs that are always 0
    tensors[NOISE + "ffn_norm1.weight"].zero_()
    tensors[MAIN + TWIN][3, 5], tensors[NOISE + QKV][7, 7] = 1e4, -1e4
    tensors[CONTEXT + FIRST] *= 1e-40  # less than float32 can divide
    tensors[CONTEXT + QKV][0] = 1e-44
    tensors[CONTEXT + TWIN].zero_()
    tensors[CONTEXT + TWIN][1, 1] = 1e-44
    tensors[NOISE + TWIN] = tensors[NOISE + FIRST].clone()  # tied
    tensors[NOISE + OUT].fill_(0.25)


def nothing_counts(tensors):
    """No gradient comes to any layer but the last."""
    tensors[f"{tiny.PREFIX}final_layer.linear.weight"].zero_()


def inputs() -> dict:
    shapes = {"x": (ODD["in_channels"], 1, 8, 8), "cap_feats": (20, ODD["cap_feat_dim"])}
    generator = torch.Generator().manual_seed(1)
    return tiny.inputs() | {name: [torch.randn(shape, generator=generator)] for name, shape in shapes.items()}


def calibrated(source: Source) -> Calibration:
    """As `calibrate` describes it, of one call."""
    found = tiny.calibration(source.checkpoint, inputs())
    found.made_by.update(
        source_sha256=source.sha256,
        configuration=source.checkpoint.config,
        settings=vars(CalibrationSettings(samples=1, steps=1, device="cpu")),
    )
    return found


def source_of(change, folder) -> Source:
    tensors = tiny.original_layout(tiny.model(**ODD).state_dict())
    change(tensors)
    path = folder / "hard.safetensors"
    save_file(tensors, path, metadata={Metadata.CONFIG.value: json.dumps(tiny.CONFIG | ODD)})
    return resolve(str(path), base=resolve("demo").base)


@pytest.mark.usefixtures("shared_home")
@pytest.mark.parametrize(
    ("change", "name", "formats"),
    [
        (each_layer_another_one, "measured", tuple(Format)),
        (each_layer_another_one, "hswq", ALL_FORMATS),
        (nothing_counts, "measured", (Format.V2,)),
    ],
)
def test_no_file_holds_nan_or_lacks_a_tensor(change, name, formats, tmp_path):
    source = source_of(change, tmp_path)
    original = load_file(source.path)
    for path, plan in quantize(source, calibrated(source), formats, tmp_path / "out", recipe(name), device="cpu"):
        stored, quantized = load_file(path), {decision.key for decision in plan.quantized}
        assert quantized and original.keys() <= stored.keys()
        for key, tensor in original.items():
            assert stored[key].shape == tensor.shape
            assert key in quantized or (stored[key].dtype == tensor.dtype and torch.equal(stored[key], tensor))
        assert all(tensor.double().isfinite().all() for tensor in stored.values()), "codes and scales"
        json.dumps(plan.as_rows(), allow_nan=False)
        with torch.no_grad():
            for whole in (False, True):
                model = load_model(path, torch.float32, dequantize=whole)
                assert model(**inputs())[0][0].isfinite().all()
