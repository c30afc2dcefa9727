"""LoRA on FP8 models: every layout, several at once, fused and taken out again, trained."""

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading
from safetensors.torch import save_file
from support import tiny
from support.loras import (
    LAYOUTS,
    TARGETS,
    diffusers_layout,
    distance,
    pipeline,
    plain,
    quantized,
    weights,
)

from hswq_runtime import HSWQConfig, HSWQError, HSWQLinear, HSWQPipeline, load_model, set_quantized_matmul
from hswq_runtime.layers.lora import HSWQLoraLinear


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("style", ["v1", "v2", "v2-rows", "int8"])
def test_a_lora_does_on_fp8_weights_what_it_does_on_the_dequantized_ones(tmp_path, style, layout):
    """Bit for bit: the adapter adds to the same product."""
    before = tiny.run(quantized(tmp_path, style).transformer)
    outputs = []
    for make in (quantized, plain):
        pipe = make(tmp_path, style)
        save_file(LAYOUTS[layout](), tmp_path / "lora.safetensors")
        pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
        outputs.append(tiny.run(pipe.transformer))
    assert torch.equal(*outputs)
    assert distance(outputs[0], before) > 0.03, "the adapter does something"


def test_lora_on_quantized_is_as_near_to_lora_on_the_original_as_quantized_is_to_the_original(tmp_path):
    original = pipeline(load_model(tiny.checkpoint(tmp_path), torch.float32))
    fp8 = quantized(tmp_path)
    without = distance(tiny.run(fp8.transformer), tiny.run(original.transformer))
    for pipe in (original, fp8):
        pipe.load_lora_weights(diffusers_layout())
    with_lora = distance(tiny.run(fp8.transformer), tiny.run(original.transformer))
    assert 0 < with_lora < 1.5 * without < 0.1


def test_adapters_are_made_in_the_compute_dtype(tmp_path):
    pipe = pipeline(load_model(tiny.quantized(tmp_path, "v2"), torch.bfloat16))
    pipe.load_lora_weights(diffusers_layout())
    dtypes = {parameter.dtype for name, parameter in pipe.transformer.named_parameters() if "lora_" in name}
    assert dtypes == {torch.bfloat16}


def test_several_adapters_with_weights(tmp_path):
    outputs = []
    for make in (quantized, plain):
        pipe = make(tmp_path)
        for number in (1, 2):
            pipe.load_lora_weights(diffusers_layout(number), adapter_name=f"style{number}")
        pipe.set_adapters(["style1", "style2"], adapter_weights=[0.7, -0.3])
        both = tiny.run(pipe.transformer)
        pipe.set_adapters(["style2"])
        outputs.append((both, tiny.run(pipe.transformer)))
        assert pipe.get_active_adapters() == ["style2"]
    (both, second), (expected_both, expected_second) = outputs
    assert torch.equal(both, expected_both) and torch.equal(second, expected_second)
    assert distance(both, second) > 0.05


def test_unloading_gives_the_model_back(tmp_path):
    pipe = quantized(tmp_path)
    state, before = {k: v.clone() for k, v in pipe.transformer.state_dict().items()}, tiny.run(pipe.transformer)
    pipe.load_lora_weights(diffusers_layout())
    pipe.unload_lora_weights()
    assert tiny.same_bytes(pipe.transformer.state_dict(), state)
    assert torch.equal(tiny.run(pipe.transformer), before)
    assert type(pipe.transformer.layers[0].feed_forward.w1) is HSWQLinear


@pytest.mark.parametrize("style", ["v1", "v2", "v2-rows", "int8"])
def test_fusing_rounds_the_sum_anew_and_unfusing_restores_every_byte(tmp_path, style):
    pipe = quantized(tmp_path, style)
    before = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    pipe.load_lora_weights(diffusers_layout(), adapter_name="style")
    beside = tiny.run(pipe.transformer)
    layer = pipe.transformer.layers[0].feed_forward.w1
    assert isinstance(layer, HSWQLoraLinear)
    down, up = weights(0)["layers.0.feed_forward.w1"]
    wanted = layer.base_layer.dequantized_weight(torch.float32) + 0.5 * (up @ down)
    pipe.fuse_lora(lora_scale=0.5)
    fused = layer.base_layer.dequantized_weight(torch.float32)
    unit = 1 if layer.base_layer.scale is None else layer.base_layer.scale.max()
    half_step = torch.maximum(wanted.abs() / 16, torch.full((), 2**-10) * unit)
    lost = fused - wanted
    if style == "int8":
        lost, half_step = tiny.rotated(lost)[0], layer.base_layer.scale.reshape(-1, 1) / 2
    assert (lost.abs() <= half_step * (1 + 1e-4)).all()
    assert layer.base_layer.weight.dtype == (torch.int8 if style == "int8" else torch.float8_e4m3fn)
    if style == "v2":
        assert torch.allclose(layer.base_layer.scale, wanted.abs().max() / 448)
    pipe.unfuse_lora()
    pipe.set_adapters("style", 1.0)
    assert torch.equal(tiny.run(pipe.transformer), beside)
    pipe.unload_lora_weights()
    assert tiny.same_bytes(pipe.transformer.state_dict(), before)


def test_fusing_two_adapters_one_after_the_other_rounds_once(tmp_path):
    together, apart = quantized(tmp_path), quantized(tmp_path)
    for pipe in (together, apart):
        for number in (1, 2):
            pipe.load_lora_weights(diffusers_layout(number), adapter_name=f"style{number}")
    together.fuse_lora(adapter_names=["style1", "style2"])
    apart.fuse_lora(adapter_names=["style1"])
    apart.fuse_lora(adapter_names=["style2"])
    assert tiny.same_bytes(together.transformer.state_dict(), apart.transformer.state_dict())
    apart.unfuse_lora()
    original = load_model(tiny.quantized(tmp_path, "v2"), torch.float32)
    apart.unload_lora_weights()
    assert tiny.same_bytes(apart.transformer.state_dict(), original.state_dict())


def test_adapters_fused_one_after_the_other_keep_the_strength_they_were_fused_with(tmp_path):
    """diffusers multiplies the strength of every active adapter each time something is fused."""
    pipe = quantized(tmp_path)
    layer = pipe.transformer.layers[0].feed_forward.w1
    original = layer.dequantized_weight(torch.float32)
    for number in (1, 2):
        pipe.load_lora_weights(diffusers_layout(number), adapter_name=f"style{number}")
    pipe.set_adapters(["style1", "style2"])
    pipe.fuse_lora(lora_scale=0.5, adapter_names=["style1"])
    pipe.fuse_lora(lora_scale=0.5, adapter_names=["style2"])
    (down1, up1), (down2, up2) = (weights(number)["layers.0.feed_forward.w1"] for number in (1, 2))
    wanted = original + 0.5 * (up1 @ down1) + 0.25 * (up2 @ down2)  # the second was scaled twice, as diffusers does
    fused = pipe.transformer.layers[0].feed_forward.w1.base_layer.dequantized_weight(torch.float32)
    assert ((fused - wanted).abs() <= torch.maximum(wanted.abs() / 16, wanted.abs().max() / 448 * 2**-9) * 1.001).all()


def test_fusing_writes_in_place_because_offloading_holds_on_to_the_tensors(tmp_path):
    pipe = quantized(tmp_path)
    layer = pipe.transformer.layers[0].feed_forward.w1
    places = layer.weight.data_ptr(), layer.scale
    pipe.load_lora_weights(diffusers_layout())
    for change in (pipe.fuse_lora, pipe.unfuse_lora):
        change()
        assert layer.weight.data_ptr() == places[0] and layer.scale is places[1]


def offload(model, kind):
    cpu = torch.device("cpu")
    if kind == "sequential":
        cpu_offload(model, execution_device=cpu, offload_buffers=True)
    else:
        apply_group_offloading(model, cpu, cpu, kind, num_blocks_per_group=1)


@pytest.mark.parametrize("kind", ["sequential", "leaf_level", "block_level", "leaf_level stream", "block_level stream"])
@pytest.mark.parametrize("style", ["v1", "v2-rows", "int8"])
def test_fusing_while_offloaded_is_fusing(tmp_path, style, kind, offload_with_streams):
    outputs = []
    for away in (False, True):
        pipe = quantized(tmp_path, style)
        pipe.load_lora_weights(diffusers_layout())
        if away and kind.endswith("stream"):
            offload_with_streams(pipe.transformer, kind.removesuffix(" stream"))
        elif away:
            offload(pipe.transformer, kind)
        states = [tiny.run(pipe.transformer)]
        for change in (pipe.fuse_lora, pipe.unfuse_lora):
            change()
            states.append(tiny.run(pipe.transformer))
            if away and kind == "sequential":
                assert pipe.transformer.layers[0].feed_forward.w1.base_layer.weight.is_meta, "it is put away again"
        outputs.append(states)
    for here, there in zip(*outputs, strict=True):
        assert torch.equal(here, there)
    beside, fused, unfused = outputs[0]
    assert torch.equal(beside, unfused) and not torch.equal(beside, fused)


def test_fusing_what_is_on_the_disk_is_refused(tmp_path):
    pipe = quantized(tmp_path)
    pipe.load_lora_weights(diffusers_layout())
    cpu = torch.device("cpu")
    apply_group_offloading(pipe.transformer, cpu, cpu, "leaf_level", offload_to_disk_path=str(tmp_path / "away"))
    with pytest.raises(HSWQError, match="fuse before enable_group_offload"):
        pipe.fuse_lora()


def test_a_lora_on_layers_that_multiply_in_fp8_adds_no_error_of_its_own(tmp_path):
    """It is added to the product in full precision: what remains is the rounding of the inputs, as without it."""
    errors = []
    for layout in (None, diffusers_layout()):
        fast, exact = quantized(tmp_path), plain(tmp_path)
        assert set_quantized_matmul(fast.transformer) > 0
        for pipe in (fast, exact):
            if layout:
                pipe.load_lora_weights(layout)
        errors.append(distance(tiny.run(fast.transformer), tiny.run(exact.transformer)))
    without, with_lora = errors
    assert 1e-4 < with_lora < 1.5 * without


def test_deleting_a_fused_adapter_leaves_its_change(tmp_path):
    pipe = quantized(tmp_path)
    for number in (1, 2):
        pipe.load_lora_weights(diffusers_layout(number), adapter_name=f"style{number}")
    pipe.fuse_lora(adapter_names=["style1"])
    first = pipe.transformer.layers[0].feed_forward.w1.base_layer.dequantized_weight(torch.float32)
    pipe.delete_adapters("style1")
    pipe.fuse_lora(adapter_names=["style2"])
    pipe.unfuse_lora()
    after = pipe.transformer.layers[0].feed_forward.w1.base_layer.dequantized_weight(torch.float32)
    assert torch.equal(after, first)


def test_dequantizing_under_a_lora_is_refused(tmp_path):
    pipe = quantized(tmp_path)
    pipe.load_lora_weights(diffusers_layout())
    with pytest.raises(HSWQError, match="unload_lora_weights"):
        pipe.transformer.dequantize()
    pipe.unload_lora_weights()
    pipe.transformer.dequantize()


def test_fused_is_near_to_not_fused_and_can_be_saved(tmp_path):
    pipe = quantized(tmp_path)
    pipe.load_lora_weights(diffusers_layout())
    beside = tiny.run(pipe.transformer)
    pipe.fuse_lora(safe_fusing=True)
    assert distance(tiny.run(pipe.transformer), beside) < 0.05
    pipe.unload_lora_weights()
    fused = tiny.run(pipe.transformer)
    pipe.transformer.save_pretrained(tmp_path / "fused")
    again = type(pipe.transformer).from_pretrained(tmp_path / "fused", torch_dtype=torch.float32)
    assert torch.equal(tiny.run(again), fused)


def test_a_broken_adapter_is_refused_when_fusing_safely(tmp_path):
    pipe = quantized(tmp_path)
    stored = diffusers_layout()
    stored["transformer.layers.0.feed_forward.w1.lora_B.weight"][0, 0] = float("nan")
    pipe.load_lora_weights(stored)
    before = tiny.run(quantized(tmp_path).transformer)
    with pytest.raises(ValueError, match="not finite"):
        pipe.fuse_lora(safe_fusing=True)
    pipe.unload_lora_weights()
    assert torch.equal(tiny.run(quantized(tmp_path).transformer), before)


def test_an_adapter_that_is_more_than_a_change_of_weights_is_not_fused(tmp_path):
    from peft import LoraConfig

    model = load_model(tiny.quantized(tmp_path, "v2"), torch.float32)
    model.add_adapter(LoraConfig(r=2, target_modules=["w1"], lora_bias=True))
    with pytest.raises(HSWQError, match="only plain LoRA can be fused"):
        model.fuse_lora()


def test_training_a_lora_on_a_frozen_quantized_base(tmp_path):
    """With gradient checkpointing, as people train; gradients equal those on the dequantized base."""
    from peft import LoraConfig

    gradients = []
    for dequantize in (False, True):
        model = load_model(tiny.quantized(tmp_path, "v2"), torch.float32, dequantize=dequantize)
        model.enable_gradient_checkpointing()
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=2, target_modules=TARGETS, init_lora_weights="gaussian"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.train()
        model(**tiny.inputs())[0][0].square().mean().backward()
        trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert trained and all("lora_" in name for name in trained)
        gradients.append(trained)
    ours, theirs = gradients
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-4, atol=1e-7), name
    assert max(gradient.abs().max() for gradient in ours.values()) > 0


def test_a_lora_changes_the_picture_of_a_published_model(tmp_path):
    pipe = HSWQPipeline.from_pretrained(tiny.published_demo(tmp_path / "published"), dtype=torch.float32)
    assert isinstance(pipe.transformer.layers[0].feed_forward.w1, HSWQLinear)
    arguments = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 0.0, "output_type": "np"}
    before = pipe("a red ring", generator=torch.Generator().manual_seed(0), **arguments).images
    torch.manual_seed(0)
    stored = {}
    for number, block in enumerate(pipe.transformer.layers):
        w1, name = block.feed_forward.w1, f"transformer.layers.{number}.feed_forward.w1"
        stored[f"{name}.lora_A.weight"] = torch.randn(2, w1.in_features)
        stored[f"{name}.lora_B.weight"] = torch.randn(w1.out_features, 2)
    pipe.load_lora_weights(stored)
    after = pipe("a red ring", generator=torch.Generator().manual_seed(0), **arguments).images
    assert abs(after - before).max() > 0.02


def test_single_file_models_merge_too(tmp_path):
    """The layers of `from_single_file` are the same kind, so nothing depends on who loaded them."""
    tiny.model().save_config(tmp_path / "config")
    model = type(tiny.model()).from_single_file(
        str(tiny.quantized(tmp_path, "v2")), config=str(tmp_path / "config"), quantization_config=HSWQConfig()
    )
    pipe = pipeline(model)
    pipe.load_lora_weights(diffusers_layout())
    pipe.fuse_lora()
    assert model.layers[0].feed_forward.w1.merged
