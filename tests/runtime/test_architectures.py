"""Every architecture, from its original layout to a picture: an architecture is one entry of `originals.ORIGINALS`."""

from inspect import signature
from math import prod
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from support import originals
from support.originals import ORIGINALS
from support.references import exchange_width, reference

from hswq_hub.calibration.calibrate import calibrate
from hswq_hub.evaluation.noise import computing_in
from hswq_hub.generation.generate import GenerationSettings, final_latents, generate, open_pipeline
from hswq_hub.generation.metrics import latent_mse
from hswq_hub.settings import ALL_FORMATS, CalibrationSettings, recipe
from hswq_hub.sources.find import resolve
from hswq_hub.workflow.inspect import inspect
from hswq_hub.workflow.quantize import quantize
from hswq_runtime import Checkpoint, HSWQPipeline
from hswq_runtime.architectures import ARCHITECTURES, base_named, of_class, recognise
from hswq_runtime.checkpoints.mapping import trace
from hswq_runtime.errors import FormatError, UnknownArchitectureError

SETTINGS = CalibrationSettings(samples=2, steps=1, calls=2, size=32, device="cpu", dtype="float32")


@pytest.mark.parametrize("name", ORIGINALS)
def test_from_the_original_layout_to_a_picture(name, tmp_path, monkeypatch, bases):
    row, original = ARCHITECTURES[name], ORIGINALS[name]
    if original.inner_width:
        exchange_width(monkeypatch, row.model_class, original.tiny["w"])
    base, path = bases(original.base), originals.write_tiny(tmp_path, original)

    found = inspect(path)
    assert (found.architecture, found.prefix, found.format) == (row.title, original.prefix, "full precision")

    source = resolve(str(path), base=str(base))
    calibration = calibrate(source, SETTINGS)
    how = recipe("measured", rounding=original.rounding, keep_by="variance", keep_ratio=row.keep_ratio)
    files = quantize(source, calibration, ALL_FORMATS, tmp_path / "out", how, device="cpu")
    for file, plan in files:
        assert plan.quantized and plan.kept
        assert all(torch.equal(load_file(file)[key], load_file(path)[key]) for key in original.others)
        pipeline = HSWQPipeline.from_pretrained(file, base=base, dtype=torch.float32)
        assert type(pipeline).__name__ == row.pipeline_class
        pipeline.set_progress_bar_config(disable=True)
        settings = GenerationSettings.of(row, pipeline.vae.config, steps=1, size=32)
        picture = generate(pipeline, "a red ring", 0, settings)
        config = Checkpoint(file).config
        plain = open_pipeline(source.checkpoint, reference(row, config, file, original), str(base), torch.device("cpu"))
        assert torch.equal(picture.latents, generate(plain, "a red ring", 0, settings).latents)
    assert final_latents(pipeline, ["one", "two rings"], [0, 1], settings).shape[0] == 2

    denoiser = getattr(plain, row.component).to(torch.bfloat16)
    with computing_in(denoiser, torch.bfloat16, torch.float32):
        noise = generate(plain, "a red ring", 0, settings)
    assert 0 < latent_mse(noise.latents, picture.latents) < 0.5 * picture.latents.var(), "the noise floor"


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_published_model_is_known_from_its_keys_and_shapes(name):
    row, original = ARCHITECTURES[name], ORIGINALS[name]
    shapes = original.shapes(original.published)
    family, prefix = recognise([original.prefix + key for key in shapes])
    config = family.config(shapes)
    assert prefix == original.prefix
    assert of_class(family.model_class, config) is row
    assert {name: config[name] for name in original.config} == original.config
    assert sum(map(prod, shapes.values())) / 1e9 == pytest.approx(original.billions, rel=0.04)
    with torch.device("meta"):
        model = getattr(diffusers, row.model_class)(**config)
    traced = trace(shapes, row.model_class, config)
    rows = {name: sum(piece.stop - piece.start for piece in pieces) for name, pieces in traced.items()}
    assert rows == {name: tensor.shape[0] for name, tensor in model.state_dict().items()}
    assert {piece.key for pieces in traced.values() for piece in pieces} == shapes.keys()


def test_every_row_has_its_files():
    transformers = {name for name, row in ARCHITECTURES.items() if row.component == "transformer"}
    assert transformers == ORIGINALS.keys()


def open_published(folder, shapes) -> Checkpoint:
    """A file with these tensors, as far as its header says."""
    file, path = originals.hole(shapes), folder / "model.safetensors"
    path.write_bytes(file.header)
    with path.open("ab") as sparse:
        sparse.truncate(len(file))
    return Checkpoint(path)


def published(name: str) -> dict[str, tuple[int, ...]]:
    return ORIGINALS[name].shapes(ORIGINALS[name].published)


def test_an_unknown_model_is_described_and_compared_with_the_known_ones(tmp_path):
    shapes = {key: shape for key, shape in published("flux-1-schnell").items() if not key.startswith("vector_in")}
    with pytest.raises(UnknownArchitectureError) as error:
        open_published(tmp_path, shapes)
    for expected in (
        "single_blocks x 38, double_blocks x 19",
        "img_in.weight [3072, 64]",
        "most like FLUX.1 [dev], but without vector_in.in_layer.weight",
        "ARCHITECTURE.md",
    ):
        assert expected in str(error.value)


def test_of_a_file_in_diffusers_layout_the_folder_is_asked_for(tmp_path):
    with pytest.raises(UnknownArchitectureError, match=r"give the folder that its config\.json is in"):
        open_published(tmp_path, {"single_transformer_blocks.0.attn.to_q.weight": (8, 8)})


def test_a_lora_is_called_one(tmp_path):
    with pytest.raises(UnknownArchitectureError, match="2 tensors of a LoRA"):
        open_published(tmp_path, dict.fromkeys(("x.lora_A.weight", "x.lora_B.weight"), (4, 4)))


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("flux-1-dev", {"img_in.weight": (3072, 384)}, "given a picture besides the prompt"),
        ("z-image", {"siglip_embedder.1.weight": (3840, 1152)}, "a Z-Image Omni, which reads pictures"),
        ("flux-1-dev", {"double_blocks.0.img_mod.lin.bias": None}, "missing double_blocks.0.img_mod.lin.bias"),
        ("flux-1-dev", {"stranger.weight": (8, 8)}, "unexpected stranger.weight"),
        ("flux-1-dev", {"single_blocks.1.linear1.weight": (21503, 3072)}, "converter cannot take it apart"),
        ("chroma", {"txt_in.bias": (3071,)}, r"context_embedder.bias has shape \[3071\]"),
        ("sd-3.5-large", {"pos_embed": (1, 36865, 2432)}, "pos_embed.pos_embed has shape"),
        ("flux-2-klein-9b", {"guidance_in.in_layer.weight": (4096, 256)}, "none of the models known"),
    ],
)
def test_a_model_that_is_nearly_known_is_refused_in_a_sentence(tmp_path, name, change, sentence):
    shapes = {key: shape for key, shape in (published(name) | change).items() if shape is not None}
    with pytest.raises(FormatError, match=sentence) as error:
        checkpoint = open_published(tmp_path, shapes)
        checkpoint.architecture.why_never_quantized(next(iter(checkpoint.layers)))
    assert "model.safetensors" in str(error.value)


@pytest.mark.parametrize(
    ("name", "base_model", "title"),
    [
        ("flux-1-dev", "Flux.1 Krea", "FLUX.1 Krea [dev]"),
        ("flux-1-dev", "flux.1 d", "FLUX.1 [dev]"),
        ("z-image", "ZImageBase", "Z-Image Base"),
        ("z-image", "SDXL 1.0", None),
        ("z-image", None, None),
    ],
)
def test_models_with_the_same_keys_are_told_apart_by_what_their_host_says(name, base_model, title):
    base = base_named(ARCHITECTURES[name], base_model)
    assert (base and ARCHITECTURES[name].with_base(base).title) == title


def test_a_variant_has_its_own_defaults():
    row = ARCHITECTURES["z-image"]
    assert (row.with_base("Tongyi-MAI/Z-Image").steps, row.with_base("somebody/else")) == (50, row)


def test_what_a_pipeline_is_called_with_is_in_the_row():
    row = ARCHITECTURES["qwen-image"]
    generation = GenerationSettings.of(row, {}, steps=2, size=32)
    called = generation.arguments(["one", "two"])
    assert (called["true_cfg_scale"], called["negative_prompt"]) == (4.0, [" ", " "])
    assert "guidance_scale" not in called


HEADINGS = ("model", "other components from", "licence", "steps", "guidance", "size", "tested")
EVERYTHING = "published keys and shapes; a tiny model from file to picture"
OTHERWISE = {
    "z-image": f"{EVERYTHING}; a trained demo model",
    "sdxl": f"{EVERYTHING}, full and UNet alone; v-prediction; `--for comfyui`; LoRA",
    "sd-1.5": f"{EVERYTHING}, full",
}
"""What is tested of a row beyond, or instead of, what its entry in `ORIGINALS` is for."""


def table() -> list[str]:
    """That of docs/models.md, a line for each model."""
    rows = [HEADINGS, ["---"] * len(HEADINGS)]
    for name, row in ARCHITECTURES.items():
        for model in row.models:
            tested = EVERYTHING if name in ORIGINALS and name not in OTHERWISE else OTHERWISE[name]
            if model is not row:
                tested = f"keys and shapes are those of {row.title}"
            defaults = (str(model.steps), f"{model.guidance:g}", str(model.size))
            rows.append((model.title, f"`{model.base_repo}`", model.licence_name or model.licence, *defaults, tested))
    return [f"| {' | '.join(cells)} |" for cells in rows]


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_the_row_says_whether_its_pipeline_takes_a_negative_prompt(row):
    call = signature(getattr(diffusers, row.pipeline_class).__call__)
    assert row.takes_negative_prompt == ("negative_prompt" in call.parameters)


def test_the_page_lists_every_architecture():
    text = "\n".join(table())
    assert text in (Path(__file__).parents[2] / "docs/models.md").read_text(encoding="utf-8"), (
        f"put this there:\n{text}"
    )
