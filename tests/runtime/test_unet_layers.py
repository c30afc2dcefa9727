"""A quantized UNet computes what its dequantized weights do: loaded, compiled, saved, with a LoRA."""

import diffusers
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import tiny_unet
from support.unet_files import KINDS, SMALL, reference
from torch._dynamo.testing import CompileCounter

from hswq_hub.settings import ALL_FORMATS
from hswq_runtime import Format, HSWQConfig, HSWQConv2d, HSWQLinear, HSWQPipeline, load_model
from hswq_runtime.errors import FormatError
from hswq_runtime.formats import Reader


@pytest.mark.parametrize("version", ALL_FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loaded_model_equals_the_dequantized_reference(full, quantized, kind, version):
    path, (_, base) = quantized(kind, version), full(kind)
    pipe = HSWQPipeline.from_pretrained(path, base=base, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    kinds = {type(module) for module in pipe.unet.modules()}
    assert {HSWQLinear, HSWQConv2d} <= kinds
    plain = reference(kind, path)
    assert torch.equal(tiny_unet.run(pipe.unet, kind), tiny_unet.run(plain, kind))
    ours = pipe("a cat", generator=torch.manual_seed(1), **SMALL).images
    pipe.register_modules(unet=plain)
    assert np.array_equal(ours, pipe("a cat", generator=torch.manual_seed(1), **SMALL).images)
    original = tiny_unet.run(tiny_unet.unet(kind).float(), kind)
    assert 0 < (tiny_unet.run(plain, kind) - original).norm() < 0.2 * original.norm()


def test_it_compiles_into_one_graph(quantized):
    torch._dynamo.reset()
    model = load_model(quantized("sd-1.5", Format.V2), torch.float32)
    counter = CompileCounter()
    found = tiny_unet.run(torch.compile(model, fullgraph=True, backend=counter), "sd-1.5")
    assert counter.frame_count == 1
    assert torch.equal(found, tiny_unet.run(model, "sd-1.5"))


def test_a_file_for_comfyui_equals_its_reference_saved_and_reopened(full, quantized, tmp_path):
    path = quantized("sdxl", Format.V2, Reader.COMFYUI)
    pipe = HSWQPipeline.from_pretrained(path, base=full("sdxl")[1], dtype=torch.float32)
    wanted = tiny_unet.run(reference("sdxl", path), "sdxl")
    assert torch.equal(tiny_unet.run(pipe.unet, "sdxl"), wanted)
    pipe.unet.save_pretrained(tmp_path / "unet")
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet", torch_dtype=torch.float32)
    assert torch.equal(tiny_unet.run(again, "sdxl"), wanted)
    single = diffusers.UNet2DConditionModel.from_single_file(
        str(path), config=str(tmp_path / "unet"), quantization_config=HSWQConfig(), torch_dtype=torch.float32
    )
    assert torch.equal(tiny_unet.run(single, "sdxl"), wanted)


def test_a_lost_scale_is_an_error_unless_the_file_is_for_comfyui(quantized, tmp_path):
    for reader in Reader:
        path = quantized("sdxl", Format.V2, reader)
        stored = load_file(path)
        lost = next(key for key in stored if key.endswith(".scale"))
        del stored[lost]
        with safe_open(path, "pt") as file:
            save_file(stored, tmp_path / "lost.safetensors", metadata=file.metadata())
        with pytest.raises(FormatError, match="has no scale"):
            load_model(tmp_path / "lost.safetensors")


def test_a_lora_on_convolutions_and_linear_layers_is_fused_and_taken_out(full, quantized):
    path = quantized("sdxl", Format.V2)
    pipe = HSWQPipeline.from_pretrained(path, base=full("sdxl")[1], dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    lora = {}
    for name, module in pipe.unet.named_modules():
        if not isinstance(module, (HSWQConv2d, HSWQLinear)) or not name.startswith("mid_block."):
            continue
        down, up = (module.in_channels, module.out_channels) if module.weight.ndim == 4 else module.weight.shape[::-1]
        ends = ((1, 1),) if module.weight.ndim == 4 else ((),)
        size = module.kernel_size if module.weight.ndim == 4 else ()
        lora[f"unet.{name}.lora_A.weight"] = torch.randn(2, down, *size, generator=generator) / down
        lora[f"unet.{name}.lora_B.weight"] = torch.randn(up, 2, *ends[0], generator=generator)
    assert {value.ndim for value in lora.values()} == {2, 4}
    before, state = tiny_unet.run(pipe.unet, "sdxl"), {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(lora, adapter_name="style")
    beside = tiny_unet.run(pipe.unet, "sdxl")
    pipe.fuse_lora(adapter_names=["style"])
    fused = tiny_unet.run(pipe.unet, "sdxl")
    change = (beside - before).norm()
    assert change > 0.05 * before.norm() and (fused - beside).norm() < 0.3 * change
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    after = pipe.unet.state_dict()
    assert after.keys() == state.keys()
    same = [
        torch.equal(after[k].contiguous().view(torch.uint8), state[k].contiguous().view(torch.uint8)) for k in state
    ]
    assert all(same) and torch.equal(tiny_unet.run(pipe.unet, "sdxl"), before)
