"""The parts of the memory that is foretold, each against what was in use."""

import subprocess
import sys
from dataclasses import replace

import pytest

from hswq_hub.common.speed.gpus import GPUS
from hswq_hub.generation.cost import DenoiserCost, denoiser_cost, picture_values
from hswq_hub.generation.placement import USABLE, Placement
from hswq_hub.settings import PublishSettings
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.forecast import sizes_of
from hswq_hub.workflow.memory import memory_of, replay_values
from hswq_hub.workflow.publish import PublishPlan
from hswq_runtime import Checkpoint
from hswq_runtime.checkpoints.mapped import MAPPED_BYTES
from hswq_runtime.errors import DeviceError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


GROWTH = """
import ctypes, sys
import diffusers, psutil, torch
from hswq_hub.common.hardware import PeakMemory

def growth(call):
    call()  # what is allocated once
    ctypes.CDLL(None).malloc_trim(0)
    before = psutil.Process().memory_info().rss
    with PeakMemory(torch.device("cpu")) as peak:
        call()
    print(peak.bytes - before)

torch.manual_seed(0)
"""
DECODING = """
channels, side = [64, 128], 192
vae = diffusers.AutoencoderKL(
    block_out_channels=channels, layers_per_block=1, latent_channels=4, norm_num_groups=32,
    down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, mid_block_add_attention=False,
).eval().requires_grad_(False)
growth(lambda: vae.decode(torch.zeros(1, 4, side, side)))
"""
REPLAYING = """
config = {"in_channels": 8, "dim": 384, "n_layers": 8, "n_refiner_layers": 1, "n_heads": 8, "n_kv_heads": 8}
model = diffusers.ZImageTransformer2DModel(**config, cap_feat_dim=32, axes_dims=[12, 18, 18]).eval()
model.requires_grad_(False).enable_gradient_checkpointing()
x, caption, start = torch.randn(8, 1, 96, 96), torch.randn(32, 32), torch.zeros((), requires_grad=True)

def replay():
    (found,) = model([x + start], torch.tensor([0.4]), [caption], return_dict=False)[0]
    found.sum().backward()

growth(replay)
"""


def grown(script: str) -> int:
    """Bytes that are in use at once in a process of its own, beside those before."""
    run = [sys.executable, "-c", GROWTH + script]
    return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def test_decoding_a_picture():
    foretold = 4 * picture_values({"block_out_channels": [64, 128]}, 384)
    assert 0.5 * foretold < grown(DECODING) < 2 * foretold


def test_replaying_a_call_backwards():
    foretold = 4 * replay_values(DenoiserCost(0, 48 * 48 + 64, 384, 0.0, 75))
    assert 0.5 * foretold < grown(REPLAYING) < 2 * foretold


def test_all_parts_are_in_the_sum(tmp_path):
    source = resolve("demo")
    (memory,) = memory_of(source, PublishPlan.of(source, PublishSettings()).settings)
    sizes = sizes_of(source, "float32", None)
    assert memory.least == sizes.denoiser + sum(sizes.components.values())
    assert memory.pictures == sizes.needed(Placement.WHOLE) + MAPPED_BYTES and memory.rounding > sizes.denoiser
    assert memory.needed == max(memory.pictures, memory.rounding)
    assert f"{memory.needed / 1e6:.1f} MB" in memory.line


def test_a_call_of_a_wide_model_is_its_tokens_and_their_attention(tmp_path):
    checkpoint = Checkpoint(resolve("demo").path)
    small, large = denoiser_cost(checkpoint, 256), denoiser_cost(checkpoint, 512)
    assert large.weights == small.weights and large.layers == small.layers
    assert 3 < (large.tokens - 40) / (small.tokens - 40) < 5 and large.attention > 8 * small.attention


def test_a_small_gpu_gets_the_denoiser_in_parts_and_what_moves_is_work():
    """The plan's placement is that of the pictures; calibration and evaluation say what they move."""
    source = resolve("demo")
    sizes = sizes_of(source, "bfloat16", None)
    small = replace(GPUS["RTX 4090"], memory=sizes.needed(Placement.BLOCKS) / USABLE / 1e9 + 1e-6)
    plan, whole = (PublishPlan.of(source, gpu=gpu) for gpu in (small, GPUS["RTX 4090"]))
    (memory,) = plan.memories
    assert memory.placement is Placement.BLOCKS and "(pictures block by block)" in memory.line
    streamed = {step.name: step.work().streamed for step in plan.steps}
    calibrate = next(step.work() for step in plan.steps if step.name == "calibrate")
    moved = 2 * plan.settings.calibration.samples * sizes.components["text_encoder"]
    assert streamed["calibrate"] == calibrate.calls * sizes.denoiser + moved
    assert streamed["evaluate"] > 0 and all(step.work().streamed == 0 for step in whole.steps)
    assert plan.steps[0].identity == PublishPlan.of(source, gpu=GPUS["RTX 4090"]).steps[0].identity


def test_a_gpu_without_room_for_a_block_is_refused():
    plan = PublishPlan.of(resolve("demo"), gpu=replace(GPUS["RTX 4090"], memory=1e-3))
    with pytest.raises(DeviceError, match="a larger one is needed"):
        plan.memories[0].check()
