"""Train a small SDXL-like UNet on drawn pictures, so that a picture of it, and an error in that, mean something.

What it makes in --out, none of which is committed:

    demo-sdxl.safetensors   a full checkpoint in the original layout: UNet, two CLIP text encoders, VAE; bf16
    base/                   tokenizers, scheduler and the configurations of the rest, without weights

The pictures and captions are those of demo_pictures.py, their latents those of the bundled demo model's VAE. The text
encoders stay as they are initialised: what they make of a caption is as good a name
of it as any, to learn from nothing. The UNet predicts noise under SDXL's own schedule and is averaged over its steps.

    python tools/train_demo_unet.py --out build/demo_unet --seconds 300     # again, to go on where it stopped
    python benchmarks/unet.py build/demo_unet

Everything is seeded; a continued run draws other numbers than one that never stopped.
"""

import argparse
import copy
import os
import sys
import time
from pathlib import Path

import demo_pictures
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from support import tiny_unet  # noqa: E402 (the layouts are spelled there)

PICTURES = 1024
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LEARNING_RATE, BATCH, WARM_UP = 1e-3, 16, 50
EMPTY_CAPTIONS = 0.1


def make_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A token a letter, and merges that make a word of the captions one token."""
    words = sorted({word for caption in captions for word in caption.split()})
    letters, merges = [chr(code) for code in range(33, 127)], []
    for word in words:
        symbols = [*word[:-1], word[-1] + "</w>"]
        while len(symbols) > 1:
            merges.append((symbols[0], symbols[1]))
            symbols = [symbols[0] + symbols[1], *symbols[2:]]
    merges = list(dict.fromkeys(merges))
    names = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    names = [*dict.fromkeys(names), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={name: i for i, name in enumerate(names)}, merges=merges, model_max_length=tiny_unet.TOKENS
    )


def make_encoders(tokenizer: CLIPTokenizer) -> dict[str, torch.nn.Module]:
    size = len(tokenizer)
    first, second = (tiny_unet.text_config(width, size) for width in (tiny_unet.WIDTH, tiny_unet.WIDTH_2))
    encoders = {"text_encoder": CLIPTextModel(first), "text_encoder_2": CLIPTextModelWithProjection(second)}
    for encoder in encoders.values():
        for name, parameter in encoder.named_parameters():
            if "token_embedding" in name:  # CLIP begins with 0.02, from which nothing would learn a word
                torch.nn.init.normal_(parameter, std=1.0)
    return {name: encoder.requires_grad_(False).eval() for name, encoder in encoders.items()}


@torch.no_grad()
def embed(tokenizer, encoders, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the pipeline makes of captions: hidden states of both encoders [B, 77, n], pooled ones of the second."""
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    made = [encoder(ids, output_hidden_states=True) for encoder in encoders.values()]
    return torch.cat([found.hidden_states[-2] for found in made], dim=-1), made[1][0]


@torch.no_grad()
def encode_pictures(vae, pixels) -> torch.Tensor:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.cat([vae.encode(part).latent_dist.mode() for part in images.split(32)]) * vae.config.scaling_factor


def make_unet(channels: int) -> UNet2DConditionModel:
    config = tiny_unet.CONFIGS["sdxl"] | {"block_out_channels": (32, 64)}
    config |= {"in_channels": channels, "out_channels": channels}
    return UNet2DConditionModel(**config)


class Training:
    """What has to be kept to go on."""

    def __init__(self, channels: int):
        self.unet = make_unet(channels).train()
        self.average = copy.deepcopy(self.unet)
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
        self.step = 0

    def save(self, path: Path) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("unet", "average", "optimizer")}
        torch.save(state | {"step": self.step}, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.step = state.pop("step")
        for name, values in state.items():
            getattr(self, name).load_state_dict(values)


def train(training: Training, latents, hidden, pooled, args) -> None:
    """Until there are `args.steps` of them or `args.seconds` are over."""
    side, noise_schedule = float(demo_pictures.SIZE), DDPMScheduler(**SCHEDULE)
    sizes = torch.tensor([[side, side, 0, 0, side, side]]).repeat(BATCH, 1)
    start, losses = time.time(), []
    while training.step < args.steps and time.time() - start < args.seconds:
        for group in training.optimizer.param_groups:
            left_over = (args.steps - training.step) / (0.4 * args.steps)
            group["lr"] = LEARNING_RATE * min(1, (training.step + 1) / WARM_UP, left_over)
        chosen = torch.randint(0, len(latents), (BATCH,))
        kept = (torch.rand(BATCH) >= EMPTY_CAPTIONS).float()  # to SDXL's pipeline no caption is zeros
        states, summary = hidden[chosen] * kept[:, None, None], pooled[chosen] * kept[:, None]
        noise, times = torch.randn_like(latents[chosen]), torch.randint(0, 1000, (BATCH,))
        noisy = noise_schedule.add_noise(latents[chosen], noise, times)
        added = {"text_embeds": summary, "time_ids": sizes}
        loss = F.mse_loss(training.unet(noisy, times, states, added_cond_kwargs=added).sample, noise)
        training.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(training.unet.parameters(), 1.0)
        training.optimizer.step()
        training.step += 1
        decay = min(0.99, (1 + training.step) / (10 + training.step))
        for mean, value in zip(training.average.parameters(), training.unet.parameters(), strict=True):
            mean.data.lerp_(value.data, 1 - decay)
        losses.append(loss.item())
        if training.step % 50 == 0:
            print(f"step {training.step} {time.time() - start:.0f}s loss {sum(losses[-50:]) / 50:.4f}", flush=True)


def export(training: Training, vae, tokenizer, encoders, out: Path) -> None:
    tensors = tiny_unet.original_unet(training.average.state_dict())
    tensors |= tiny_unet.original_vae(vae.state_dict(), levels=len(vae.config.block_out_channels))
    tensors |= tiny_unet.original_clip(encoders["text_encoder"].state_dict(), "conditioner.embedders.0.transformer.")
    tensors |= tiny_unet.original_open_clip(encoders["text_encoder_2"].state_dict(), "conditioner.embedders.1.model.")
    tensors = {key: tensor.to(torch.bfloat16).contiguous() for key, tensor in tensors.items()}
    metadata = {"modelspec.title": "SDXL-like demo", "modelspec.prediction_type": "epsilon"}
    save_file(tensors, out / "demo-sdxl.safetensors", metadata=metadata)
    scheduler = EulerDiscreteScheduler(**SCHEDULE, steps_offset=1, timestep_spacing="leading")
    tiny_unet.write_base(out / "base", "sdxl", vae, encoders, scheduler, tokenizer)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/demo_unet"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    vae = AutoencoderKL.from_pretrained(ROOT / "hswq_hub/data/demo_model/components/vae").float().eval()
    vae.register_to_config(shift_factor=None)  # SDXL's pipeline knows none; the UNet learns the difference
    pixels, captions = demo_pictures.draw_many(PICTURES, args.seed)
    tokenizer = make_tokenizer(captions)
    encoders = make_encoders(tokenizer)
    training = Training(vae.config.latent_channels)
    cached = args.out / "latents.pt"
    if not cached.exists():
        torch.save(encode_pictures(vae, pixels), cached)
    latents = torch.load(cached, weights_only=True)
    embedded = [embed(tokenizer, encoders, captions[i : i + 64]) for i in range(0, len(captions), 64)]
    hidden, pooled = (torch.cat(parts) for parts in zip(*embedded, strict=True))
    if (args.out / "training.pt").exists():
        training.load(args.out / "training.pt")
        torch.manual_seed(args.seed + training.step)
    print(f"{sum(p.numel() for p in training.unet.parameters())} parameters, from step {training.step}", flush=True)
    train(training, latents, hidden, pooled, args)
    training.save(args.out / "training.pt")
    export(training, vae, tokenizer, encoders, args.out)
    print(f"exported at step {training.step}", flush=True)


if __name__ == "__main__":
    main()
