"""How much of a pipeline is on the device at once: what is foretold holds, and no bit depends on it."""

from dataclasses import replace

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from support import tiny
from support.metering import Computed, Meter

from hswq_hub.calibration.calibrate import calibrate, monitor
from hswq_hub.evaluation.evaluate import evaluate
from hswq_hub.generation.cost import call_values, denoiser_cost
from hswq_hub.generation.placement import Placement, Sizes, usable_memory
from hswq_hub.settings import CalibrationSettings, EvaluationSettings
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.forecast import sizes_of
from hswq_runtime import Checkpoint
from hswq_runtime.checkpoints.configuration import as_text
from hswq_runtime.errors import DeviceError
from hswq_runtime.formats import Metadata

CALIBRATION = CalibrationSettings(samples=2, steps=2, calls=2, size=32, device="cpu", dtype="float32")
SIZES = Sizes(denoiser=100, blocks=20, components={"text_encoder": 60, "vae": 5}, call=10, picture=30)


@pytest.fixture
def meter(monkeypatch):
    return Meter(monkeypatch)


@pytest.fixture(scope="module")
def source():
    return resolve("demo")


@pytest.mark.parametrize(
    ("memory", "placement", "needed"),
    [
        (195, Placement.WHOLE, 195),
        (194, Placement.COMPONENTS, 110),
        (110, Placement.COMPONENTS, 110),
        (109, Placement.BLOCKS, 60),
    ],
)
def test_the_most_that_fits_is_on_the_device(memory, placement, needed):
    assert SIZES.placement(memory) is placement and SIZES.needed(placement) == needed
    SIZES.check(memory)


def test_if_nothing_fits_a_sentence_says_what_is_needed():
    with pytest.raises(DeviceError, match=r"pictures take 0\.0 MB on the device even with the denoiser there block by"):
        SIZES.check(59)


def test_what_moves_is_counted():
    assert SIZES.streamed(Placement.WHOLE, 8, 2, decoded=True) == 0
    assert SIZES.streamed(Placement.COMPONENTS, 8, 2, decoded=False) == 2 * 2 * (100 + 60)
    assert SIZES.streamed(Placement.BLOCKS, 8, 2, decoded=True) == 8 * 100 + 2 * 2 * 65
    assert SIZES.with_denoiser(50) == replace(SIZES, denoiser=50, blocks=10)


def test_a_cpu_has_room_unless_a_bound_is_given():
    cpu = torch.device("cpu")
    assert usable_memory(cpu) == float("inf") and usable_memory(cpu, 1.5) == 1.5e9


@pytest.mark.parametrize("placement", [Placement.COMPONENTS, Placement.BLOCKS], ids=lambda p: p.name)
def test_statistics_and_recorded_calls_are_the_same_to_the_bit(source, meter, placement):
    whole = calibrate(source, CALIBRATION)
    assert meter.peak == 0, "nothing moves if there is room"
    sizes = sizes_of(source, "float32", 32)
    placed = calibrate(source, CALIBRATION, sizes.needed(placement) / 1e9)
    assert placed.sha256 == whole.sha256 and len(placed.calls) == 2
    largest = max(sizes.components["text_encoder"], sizes.denoiser)
    assert 0 < meter.peak <= (largest if placement is Placement.COMPONENTS else sizes.needed(placement))
    if placement is Placement.BLOCKS:
        assert meter.peak < sizes.denoiser


@pytest.mark.parametrize("placement", [Placement.COMPONENTS, Placement.BLOCKS], ids=lambda p: p.name)
def test_pictures_are_the_same_to_the_bit_also_of_fp8_files(source, meter, placement, tmp_path):
    file = tiny.published_demo(tmp_path) / "demo-hswq-v2.safetensors"
    settings = EvaluationSettings(pairs=2, steps=2, size=64, device="cpu", dtype="float32", noise_floor=False)
    whole = evaluate(source, {"V2": file}, settings)
    sizes = sizes_of(source, "float32", 64)
    placed = evaluate(source, {"V2": file}, settings, sizes.needed(placement) / 1e9)
    assert meter.peak > 0
    for label in ("original", "V2"):
        assert all((a == b).all() for a, b in zip(whole.images[label], placed.images[label], strict=True))


def test_too_little_memory_is_said_before_anything_is_computed(source):
    with pytest.raises(DeviceError, match=r"--size"):
        calibrate(source, CALIBRATION, 1e-6)


def test_at_most_two_blocks_are_there_with_streams(meter, offload_with_streams):
    """The one that computes and the next one, besides what is in no block."""
    denoiser = tiny.model(n_layers=4).float()
    expected = tiny.run(denoiser)
    offload_with_streams(denoiser, "block_level")
    for _ in range(3):  # the first call finds out the order
        assert torch.equal(tiny.run(denoiser), expected)
    assert meter.together == 3


WIDE = tiny.FITS_DEMO | {
    "dim": 3840, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 30, "n_kv_heads": 30,
    "axes_dims": [32, 48, 48], "axes_lens": [1024, 512, 512],
}  # fmt: skip


def test_blocks_of_the_published_width_take_what_was_foretold(source, meter, tmp_path):
    """Z-Image's, random weights: of four blocks two are counted, and without streams one is there at a time."""
    with torch.device("meta"):
        empty = diffusers.ZImageTransformer2DModel(**WIDE)
    values = torch.randn(1 << 20, dtype=torch.bfloat16) * 0.02
    state = {
        name: values.repeat(tensor.numel() // len(values) + 1)[: tensor.numel()].reshape(tensor.shape)
        for name, tensor in empty.state_dict().items()
    }
    path = tmp_path / "wide.safetensors"
    save_file(state, path, metadata={Metadata.CONFIG.value: as_text("ZImageTransformer2DModel", WIDE)})
    wide = resolve(str(path), base=source.base, licence="apache-2.0")
    settings = replace(CALIBRATION, samples=1, steps=1, calls=1, size=64, dtype="bfloat16")
    sizes = sizes_of(wide, "bfloat16", 64)
    calibrate(wide, settings, sizes.needed(Placement.BLOCKS) / 1e9)
    blocks = [sum(t.numel() for n, t in state.items() if n.startswith(f"layers.{i}.")) for i in range(2)]
    assert 2 * blocks[0] < meter.peak <= sizes.blocks < 0.6 * sizes.denoiser
    assert sizes.blocks - meter.peak == pytest.approx(2 * blocks[0], rel=0.05), "the one that would be arriving"


def test_what_a_call_holds_is_what_was_foretold(source):
    """Of a model that is wide against its tokens' embedders, with the statistics of its layers."""
    config = WIDE | {"dim": 768, "n_heads": 6, "n_kv_heads": 6}
    torch.manual_seed(0)
    model = diffusers.ZImageTransformer2DModel(**config).to(torch.bfloat16).eval()
    inputs = [torch.randn(16, 1, 64, 64, dtype=torch.bfloat16)], torch.tensor([0.4]), [torch.randn(64, 128).bfloat16()]
    with torch.no_grad(), monitor(model), Computed(model) as computed:
        model(*inputs, return_dict=False)
    tokens, hidden = 32 * 32 + 64, int(768 / 3 * 8)
    foretold = 2 * call_values(replace(denoiser_cost(Checkpoint(source.path), 64), widest=tokens * (768 + hidden)))
    assert 0.4 * foretold < computed.peak <= foretold
