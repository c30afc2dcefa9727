"""Train the small Z-Image model that ships with the package, from nothing.

What it makes (under --out, by default hswq_hub/data/demo_model/):

    demo.safetensors    the transformer, bf16, in the layout in which Z-Image checkpoints are distributed
                        (prefix model.diffusion_model., fused attention.qkv)
    components/         everything else ZImagePipeline needs: text encoder, tokenizer, VAE, scheduler
    prompts/            captions for calibration and, from another seed, for evaluation

The data are procedurally drawn pictures with captions (demo_pictures.py). Stages: draw pictures, train the
VAE, encode all pictures, train the text encoder, train the transformer by flow matching. Every stage leaves
its result in --work and is skipped when that is there, so an interrupted run continues where it stopped; the
last stage saves its state every few minutes and exports a snapshot of the averaged weights. Creating a file
named `cooldown` in --work starts the final decay of the learning rate at once.

    python tools/train_demo_model.py --out hswq_hub/data/demo_model --work build/demo_model

On two CPU cores that takes about an hour, if nothing else runs on them and memory that was freed is kept for the next
step (glibc gives it back each time): MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592.

Another model, of another size, to try recipes on; the finished stages of the demo model in --work serve it as well:

    python tools/train_demo_model.py --heads 3 --layers 3 --steps 1500 --batch 16 --out build/second --work WORK

Every stage starts from the same seed, so that a continued run draws the same numbers; another processor or
number of threads sums in another order and gives a model like it, not the same bytes. The committed model is one run
of this script on one core, continued once: its first 1,600 steps had --steps 1600, that is a faster decay, the others
up to 2,699 had --steps 3170.
"""

import argparse
import copy
import json
import os
import shutil
import time
from pathlib import Path

import demo_pictures
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

PICTURES = 12288
LATENT_CHANNELS = 8
VAE_STEPS, VAE_DECAY_STEPS = 1100, 400
TEXT_STEPS = 1000
NOISE_SHIFT = 3.0
COARSE_WEIGHT = 1.0
CAPTION_DIM = 128
CALIBRATION_PROMPTS, EVALUATION_PROMPTS = 128, 16
MAX_CAPTION_TOKENS = 32  # the transformer pads captions to multiples of 32
HEAD_DIM = 48
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)


# --- Models ---------------------------------------------------------------------------------------


def make_vae():
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        norm_num_groups=2,  # few: normalising small groups would erase the level of a flat colour
        latent_channels=LATENT_CHANNELS,
        sample_size=demo_pictures.SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
    )
    # Start with signals of unit size, near-identity residual blocks and a small posterior variance: with the
    # default initialisation the first thousand steps would do little.
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.data *= 0.1
    vae.encoder.conv_out.bias.data.zero_()
    vae.encoder.conv_out.bias.data[LATENT_CHANNELS:] = -5.0
    vae.encoder.conv_out.weight.data[LATENT_CHANNELS:] *= 0.1
    return vae


def make_transformer(heads, layers):
    # The three RoPE axes split a head in the proportion 1/4, 3/8, 3/8, as in the large model.
    model = ZImageTransformer2DModel(
        in_channels=LATENT_CHANNELS,
        dim=heads * HEAD_DIM,
        n_heads=heads,
        n_kv_heads=heads,
        n_layers=layers,
        n_refiner_layers=2,
        cap_feat_dim=CAPTION_DIM,
        axes_dims=[HEAD_DIM // 4, HEAD_DIM * 3 // 8, HEAD_DIM * 3 // 8],
        axes_lens=[1024, 512, 512],
    )
    # Signals of unit size from the start. Every block normalises what it adds, so with the usual small embedders the
    # picture, the caption and the time would be drowned for the first thousand steps.
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            small = "adaLN" in name or "pad_token" in name
            torch.nn.init.normal_(parameter, std=0.02 if small else parameter.shape[1] ** -0.5)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    for block in [*model.noise_refiner, *model.layers]:
        # adaLN gives scale, gate, scale, gate; start with slightly open gates.
        block.adaLN_modulation[0].bias.data.view(4, -1)[1::2] = 0.2
    for block in model.context_refiner:  # has no gates
        torch.nn.init.constant_(block.attention_norm2.weight, 0.3)
        torch.nn.init.constant_(block.ffn_norm2.weight, 0.3)
    torch.nn.init.zeros_(model.all_final_layer["2-1"].linear.weight)
    return model


def make_text_encoder(tokenizer):
    # ZImagePipeline reads hidden_states[-2], so the last layer is never used.
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=CAPTION_DIM,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3Model(config)


def make_tokenizer(captions):
    """A byte-level BPE tokenizer with Qwen's splitting and special tokens; bytes can spell any prompt."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        min_frequency=20,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([f"user\n{caption}\nassistant\n" for caption in captions], trainer)
    model = json.loads(bpe.to_str())["model"]
    vocab = model["vocab"] | {token: len(model["vocab"]) + i for i, token in enumerate(SPECIAL_TOKENS)}
    merges = [tuple(merge) for merge in model["merges"]]
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        padding_side="right",
        model_max_length=1024,
        chat_template=CHAT_TEMPLATE,
    )


# --- Data and VAE ---------------------------------------------------------------------------------


def cached(path, seed, make):
    """Load the array or dict of tensors at `path`, or make it from `seed` and store it there."""
    if not path.exists():
        torch.manual_seed(seed)
        result = make()
        torch.save(result, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
    return torch.load(path, weights_only=True)


def draw_pictures(seed):
    pixels, captions = demo_pictures.draw_many(PICTURES, seed)
    return {"pixels": torch.from_numpy(pixels), "captions": captions}


def to_input(pixels, device):
    return (pixels.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def edges(images):
    return images[..., 1:, :] - images[..., :-1, :], images[..., :, 1:] - images[..., :, :-1]


def vae_loss(vae, images):
    posterior = vae.encode(images).latent_dist
    restored = vae.decode(posterior.sample()).sample
    loss = F.l1_loss(restored, images)
    for ours, theirs in zip(edges(restored), edges(images), strict=True):
        loss = loss + F.l1_loss(ours, theirs)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return loss + 1e-3 * kl, loss


def train_vae(pixels, device):
    """Train on small random crops first, on larger ones while the learning rate decays."""
    vae = make_vae().to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(VAE_STEPS):
        left_over = (VAE_STEPS - step) / VAE_DECAY_STEPS
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 50, left_over)
        crop, count = (24, 24) if left_over > 1 else (48, 10)
        top, left = torch.randint(0, demo_pictures.SIZE - crop + 1, (2,)).tolist()
        batch = pixels[torch.randint(0, len(pixels), (count,)), top : top + crop, left : left + crop]
        loss, reconstruction = vae_loss(vae, to_input(batch, device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"vae step {step + 1} loss {loss:.4f} l1+edges {reconstruction:.4f}", flush=True)
    return vae.cpu().state_dict()


@torch.no_grad()
def encode_pictures(vae, pixels, device):
    vae = vae.to(device, memory_format=torch.channels_last).eval()
    return torch.cat([vae.encode(to_input(part, device)).latent_dist.mode().cpu() for part in pixels.split(32)])


# --- Flow matching --------------------------------------------------------------------------------


def templated(tokenizer, caption):
    messages = [{"role": "user", "content": caption}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)


def tokenize(tokenizer, captions):
    ids = tokenizer([templated(tokenizer, caption) for caption in captions]).input_ids
    longest = max(map(len, ids))
    if longest > MAX_CAPTION_TOKENS:
        raise ValueError(f"a caption has {longest} tokens; more than {MAX_CAPTION_TOKENS} would change the layout")
    return ids


def embed_captions(text_encoder, token_ids, pad_id, device):
    """As ZImagePipeline does: right padding, second-to-last hidden state, padding removed again."""
    longest = max(map(len, token_ids))
    padded = torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids in token_ids], device=device)
    mask = torch.tensor([[True] * len(ids) + [False] * (longest - len(ids)) for ids in token_ids], device=device)
    hidden = text_encoder(input_ids=padded, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
    return [states[: len(ids)] for states, ids in zip(hidden, token_ids, strict=True)]


def layout_targets(latents):
    """Where a picture has which level and how much texture: mean and deviation of 8 x 8 cells, normalised."""
    cells = latents.unflatten(2, (8, -1)).unflatten(4, (8, -1))
    targets = torch.cat([cells.mean((3, 5)), cells.std((3, 5))], dim=1).flatten(1)
    return (targets - targets.mean(0)) / targets.std(0)


def pretrain_text_encoder(tokenizer, token_ids, latents, device):
    """Teach the last token of a caption to foretell the layout of its picture.

    Large models are trained on a frozen text encoder that already understands; with one that starts from
    nothing the transformer spends thousands of steps before it heeds the caption at all.
    """
    text_encoder = make_text_encoder(tokenizer).to(device)
    targets = layout_targets(latents)
    head = torch.nn.Sequential(torch.nn.RMSNorm(CAPTION_DIM), torch.nn.Linear(CAPTION_DIM, targets.shape[1]))
    head.to(device)
    optimizer = torch.optim.AdamW([*text_encoder.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.01)
    for step in range(TEXT_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50, (TEXT_STEPS - step) / (0.4 * TEXT_STEPS))
        chosen = torch.randint(0, len(latents), (96,)).tolist()
        captions = embed_captions(text_encoder, [token_ids[index] for index in chosen], tokenizer.pad_token_id, device)
        loss = F.mse_loss(head(torch.stack([states[-1] for states in captions])), targets[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(text_encoder.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"text step {step + 1} loss {loss:.4f}", flush=True)
    return text_encoder.cpu().state_dict()


def flow_loss(transformer, captions, latents):
    """The model sees t = 1 - sigma and predicts clean minus noise."""
    # A quarter of the noise levels lie near 1. Only there does the caption decide the colours: at 0.93 the mean of
    # the noisy latents already gives them away.
    uniform = torch.rand(len(latents), device=latents.device)
    sigma = NOISE_SHIFT * uniform / (1 + (NOISE_SHIFT - 1) * uniform)
    sigma = torch.where(torch.rand_like(uniform) < 1 / 4, 1 - 0.06 * torch.rand_like(uniform), sigma)
    noise = torch.randn_like(latents)
    mixed = torch.lerp(latents, noise, sigma.view(-1, 1, 1, 1))
    predicted = transformer(list(mixed.unsqueeze(2)), 1 - sigma, captions, return_dict=False)[0]
    error = torch.stack(predicted).squeeze(2) - (latents - noise)
    # The averages of the error over cells and over the whole picture show what the model has not understood
    # of the caption, so they count extra.
    averages = [F.avg_pool2d(error, size).square().mean() for size in (2, error.shape[-1])]
    return error.square().mean(), sum(averages)


def make_optimizers(module, learning_rate):
    """Muon for the blocks' matrices, AdamW for embedders, modulation, norms and output.

    Both get updates of the same size from a rate (`match_rms_adamw`); Muon bears a four times higher one, and with it
    the loss falls about three times faster than with AdamW alone.
    """
    named = list(module.named_parameters())
    blocks = [p for name, p in named if p.ndim == 2 and ("attention." in name or "feed_forward." in name)]
    inside = {id(p) for p in blocks}
    others = [p for _, p in named if id(p) not in inside]
    return [
        torch.optim.Muon(blocks, lr=4 * learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def update_average(average, module, step):
    decay = min(0.995, (1 + step) / (10 + step))
    for mean, value in zip(average.parameters(), module.parameters(), strict=True):
        mean.data.lerp_(value.data, 1 - decay)


class Training:
    """Everything the last stage must keep to be able to continue."""

    def __init__(self, tokenizer, text_encoder, heads, layers, learning_rate, device):
        # The text encoder stays as it is: trained along, it forgot within a few hundred steps what it knew of
        # colours, because the flow loss seldom depends on them.
        self.text_encoder = make_text_encoder(tokenizer).requires_grad_(False).to(device)
        self.text_encoder.load_state_dict(text_encoder)
        self.transformer = make_transformer(heads, layers).to(device)
        self.average = copy.deepcopy(self.transformer)
        self.optimizers = make_optimizers(self.transformer, learning_rate)
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.step = 0
        self.cooldown_from = None

    def save(self, path):
        state = {
            "step": self.step,
            "cooldown_from": self.cooldown_from,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        state |= {"transformer": self.transformer.state_dict(), "average": self.average.state_dict()}
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def load(self, path):
        state = torch.load(path, weights_only=True)
        self.step, self.cooldown_from = state["step"], state["cooldown_from"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.transformer.load_state_dict(state["transformer"])
        self.average.load_state_dict(state["average"])


def schedule(step, cooldown_from, cooldown_steps):
    """Warm-up, constant, then a decay to zero: the factor on the learning rate."""
    factor = min(1.0, (step + 1) / 50)
    if cooldown_from is not None:
        factor *= max(0.0, 1 - (step - cooldown_from) / cooldown_steps)
    return factor


def train(training, latents, token_ids, empty_ids, pad_id, args, export):
    """`latents` are already normalised. Ends `cooldown_steps` after the cooldown began."""
    cooldown_steps = round(0.7 * args.steps)
    losses, start, last_save, last_export = [], time.time(), time.time(), time.time()
    export(training)
    while training.cooldown_from is None or training.step < training.cooldown_from + cooldown_steps:
        if training.cooldown_from is None and (
            training.step >= args.steps - cooldown_steps or (args.work / "cooldown").exists()
        ):
            training.cooldown_from = training.step
        factor = schedule(training.step, training.cooldown_from, cooldown_steps)
        for optimizer, rate in zip(training.optimizers, training.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        chosen = torch.randint(0, len(latents), (args.batch,)).tolist()
        ids = [empty_ids if torch.rand(()) < 0.05 else token_ids[index] for index in chosen]
        captions = embed_captions(training.text_encoder, ids, pad_id, args.device)
        loss, coarse_loss = flow_loss(training.transformer, captions, latents[chosen].to(args.device))
        training.transformer.zero_grad()
        (loss + COARSE_WEIGHT * coarse_loss).backward()
        torch.nn.utils.clip_grad_norm_(training.transformer.parameters(), 1.0)
        for optimizer in training.optimizers:
            optimizer.step()
        training.step += 1
        update_average(training.average, training.transformer, training.step)
        losses.append((loss.item(), coarse_loss.item()))
        if training.step % 50 == 0:
            recent = ", ".join(f"{value:.4f}" for value in np.mean(losses[-50:], axis=0))
            print(f"step {training.step} {time.time() - start:.0f}s loss, coarse loss {recent}", flush=True)
        if time.time() - last_save > 180:
            training.save(args.work / "training.pt")
            last_save = time.time()
        if time.time() - last_export > 300:
            export(training)
            last_export = time.time()
    training.save(args.work / "training.pt")
    export(training)


# --- Export ---------------------------------------------------------------------------------------


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
    save_file(exported, fresh / "demo.safetensors", metadata={"format": "pt"})
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


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("hswq_hub/data/demo_model"))
    parser.add_argument("--work", type=Path, default=Path("build/demo_model"))
    parser.add_argument("--steps", type=int, default=2700)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--heads", type=int, default=4, help="of 48 channels each")
    parser.add_argument("--layers", type=int, default=4, help="besides the two refiners of pictures and of captions")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--only-prompts", action="store_true", help="write the captions to --out and stop")
    args = parser.parse_args()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


def main():
    args = parse_arguments()
    if args.only_prompts:
        write_prompts(args.out / "prompts", args.seed)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    data = cached(args.work / "pictures.pt", args.seed, lambda: draw_pictures(args.seed))
    print("pictures ready", flush=True)
    vae = make_vae()
    vae.load_state_dict(cached(args.work / "vae.pt", args.seed, lambda: train_vae(data["pixels"], args.device)))
    latents = cached(args.work / "latents.pt", args.seed, lambda: encode_pictures(vae, data["pixels"], args.device))
    shift, scale = latents.mean().item(), 1 / latents.std().item()
    vae.register_to_config(scaling_factor=round(scale, 4), shift_factor=round(shift, 4))
    latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    print(f"latents ready, shift {shift:.4f} scale {scale:.4f}", flush=True)

    tokenizer = make_tokenizer(data["captions"])
    token_ids = tokenize(tokenizer, data["captions"])
    text_encoder = cached(
        args.work / "text_encoder.pt",
        args.seed,
        lambda: pretrain_text_encoder(tokenizer, token_ids, latents, args.device),
    )
    torch.manual_seed(args.seed)
    training = Training(tokenizer, text_encoder, args.heads, args.layers, args.learning_rate, args.device)
    if (args.work / "training.pt").exists():
        training.load(args.work / "training.pt")
        torch.manual_seed(args.seed + training.step)
    print(
        f"{sum(p.numel() for p in training.transformer.parameters())} parameters in the transformer",
        flush=True,
    )
    train(
        training,
        latents,
        token_ids,
        tokenize(tokenizer, [""])[0],
        tokenizer.pad_token_id,
        args,
        lambda state: export(state, args.out, vae, tokenizer, args.seed),
    )


if __name__ == "__main__":
    main()
