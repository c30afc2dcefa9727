"""Writes the trained demo model as it is shipped: one file in the distributed layout, components, prompts."""

import copy
import json
import os
import shutil

import demo_pictures
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file

from hswq_runtime.checkpoints.configuration import as_text
from hswq_runtime.formats import Metadata

CALIBRATION_PROMPTS, EVALUATION_PROMPTS = 128, 16


def to_distributed_layout(state):
    """The inverse of diffusers' convert_z_image_transformer_checkpoint_to_diffusers."""
    renames = {
        "all_final_layer.2-1.": "final_layer.",
        "all_x_embedder.2-1.": "x_embedder.",
        ".attention.norm_q.": ".attention.q_norm.",
        ".attention.norm_k.": ".attention.k_norm.",
        ".attention.to_out.0.": ".attention.out.",
    }
    result = {}
    for name, tensor in state.items():
        if ".attention.to_k." in name or ".attention.to_v." in name:
            continue
        if ".attention.to_q." in name:
            tensor = torch.cat([state[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")])
            name = name.replace("to_q", "qkv")
        for ours, theirs in renames.items():
            name = name.replace(ours, theirs)
        result["model.diffusion_model." + name] = tensor.contiguous()
    return result


def scale_weights(state):
    """Bring the matrices to the magnitude they have in large checkpoints, without changing what they compute.

    Short training at a high learning rate leaves weights with a standard deviation of 0.03 to 0.04; large
    models have 0.01 to 0.02, where FP8 E4M3 becomes subnormal. All factors are powers of two, exact in bf16.
    Each product along a path stays the same: norm1 -> to_v -> to_out, norm1 -> w1, norm1 -> w3 -> w2. The
    queries and keys grow, but they are normalised next.
    """
    factors = {
        "attention_norm1.weight": 16,
        "attention.to_q.weight": 1 / 4,
        "attention.to_k.weight": 1 / 4,
        "attention.to_v.weight": 1 / 4,
        "attention.to_out.0.weight": 1 / 4,
        "ffn_norm1.weight": 4,
        "feed_forward.w1.weight": 1 / 4,
        "feed_forward.w3.weight": 1 / 2,
        "feed_forward.w2.weight": 1 / 2,
    }
    return {name: tensor * factors.get(".".join(name.split(".")[2:]), 1) for name, tensor in state.items()}


def check_layout(exported, state):
    """Convert back with diffusers and compare: the file must load as the same model."""
    from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers

    back = convert_z_image_transformer_checkpoint_to_diffusers(dict(exported))
    if back.keys() != state.keys() or not all(torch.equal(back[name], state[name]) for name in state):
        raise ValueError("the exported layout does not convert back to the same weights")


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def clean_config(path):
    """Drop what only describes this run."""
    config = json.loads(path.read_text())
    for key in ("_name_or_path", "name_or_path"):
        config.pop(key, None)
    write_json(path, config)


def write_components(folder, vae, tokenizer, text_encoder):
    vae.to(torch.bfloat16).save_pretrained(folder / "vae")
    text_encoder.to(torch.bfloat16).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    versions = json.loads((folder / "vae" / "config.json").read_text())["_diffusers_version"]
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "ZImagePipeline",
            "_diffusers_version": versions,
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "Qwen3Model"],
            "tokenizer": ["transformers", "Qwen2Tokenizer"],
            "transformer": ["diffusers", "ZImageTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    for path in folder.glob("*/*config.json"):
        clean_config(path)


def write_prompts(folder, seed):
    """Captions of pictures outside the training set; no caption is used twice.

    The evaluation's were drawn after the first 32 and stay what they were, however many calibrate.
    """
    _, captions = demo_pictures.draw_many(2 * (CALIBRATION_PROMPTS + EVALUATION_PROMPTS), seed + 1)
    captions = list(dict.fromkeys(captions))[: CALIBRATION_PROMPTS + EVALUATION_PROMPTS]
    evaluation = captions[32 : 32 + EVALUATION_PROMPTS]
    calibration = [caption for caption in captions if caption not in evaluation]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "calibration.txt").write_text("\n".join(calibration) + "\n")
    (folder / "evaluation.txt").write_text("\n".join(evaluation) + "\n")


def export(training, out, vae, tokenizer, seed):
    """Write the averaged weights to a folder beside `out`, then move its parts into place."""
    fresh = out.with_name(out.name + ".tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    transformer = copy.deepcopy(training.average).cpu().to(torch.bfloat16)
    weights = scale_weights(transformer.state_dict())
    exported = to_distributed_layout(weights)
    check_layout(exported, weights)
    arguments = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    configuration = {Metadata.CONFIG.value: as_text(type(transformer).__name__, arguments)}
    save_file(exported, fresh / "demo.safetensors", metadata={"format": "pt"} | configuration)
    text_encoder = copy.deepcopy(training.text_encoder).cpu()
    write_components(fresh / "components", copy.deepcopy(vae).cpu(), tokenizer, text_encoder)
    write_prompts(fresh / "prompts", seed)
    for path in sorted(fresh.rglob("*")):
        if path.is_file():
            target = out / path.relative_to(fresh)
            path.chmod(0o644)  # safetensors files are born private
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    shutil.rmtree(fresh)
    print(f"exported at step {training.step}", flush=True)
