"""The files that ship, and layers of published width, by comfy-kitchen and by our simulation: the same bits."""

import pytest
import torch
from support.kitchen import Theirs, theirs_in

from hswq_hub.generation.generate import GenerationSettings, generate, open_pipeline
from hswq_hub.settings import ALL_FORMATS
from hswq_hub.sources.find import resolve
from hswq_runtime import Checkpoint, Format, HSWQLinear, load_model, set_quantized_matmul
from hswq_runtime.formats import Product, Reader
from hswq_runtime.layers.fp8 import quantize
from spaces_app.models.bundled import SHIPPED, shipped_record


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("format", ALL_FORMATS)
def test_a_shipped_file_makes_the_same_picture(format, dtype):
    """Both kinds of layers are in it: with rounded inputs, in FP8 with a scale for them, and exact."""
    path, source = SHIPPED / shipped_record().files[format].file, resolve("demo")
    layers = [layer for layer in load_model(path, dtype).modules() if isinstance(layer, HSWQLinear)]
    is_int8 = format is Format.INT8
    assert {(layer.exact, layer.input_scale is None) for layer in layers} == {(True, True), (False, is_int8)}

    def latents(model: torch.nn.Module) -> torch.Tensor:
        pipeline = open_pipeline(Checkpoint(path), model, source.base, torch.device("cpu"))
        settings = GenerationSettings.of(source.architecture, pipeline.vae.config, steps=2)
        return generate(pipeline, source.prompts.evaluation[0], 7, settings).latents

    ours = load_model(path, dtype)
    exact = latents(ours)
    assert set_quantized_matmul(ours, reader=Reader.COMFYUI) == sum(not layer.exact for layer in layers)
    found = latents(ours)
    assert torch.equal(found, latents(theirs_in(load_model(path, dtype)))) and not torch.equal(found, exact)


@pytest.mark.parametrize("size", [(3840, 3840), (3840, 10240), (10240, 3840), (2560, 3840)], ids=str)
@pytest.mark.parametrize("product", [Product(exact=True), Product(input_scale=0.5)], ids=str)
def test_layers_of_z_images_published_width_are_theirs(size, product):
    """Attention, both ways of the feed-forward layer, and what captions come through."""
    columns, rows = size
    torch.manual_seed(columns)
    weight, x = torch.randn(rows, columns) * 0.02, torch.randn(2, 8, columns, dtype=torch.bfloat16)
    for scale in (None, 2.0**-12 * 1.25):
        layer = HSWQLinear(
            columns, rows, False, scales=0 if scale is None else 1, compute_dtype=torch.bfloat16, product=product
        )
        if scale is not None:
            layer.scale.fill_(scale)
        layer.weight.data.copy_(quantize(weight, layer.scale))
        set_quantized_matmul(torch.nn.Sequential(layer), reader=Reader.COMFYUI)
        assert torch.equal(layer(x), Theirs(layer)(x))
