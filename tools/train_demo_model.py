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

On two CPU cores that takes an hour and a quarter, of which the VAE takes half an hour, if nothing else runs on them and
memory that was freed is kept for the next step (glibc gives it back each time): MALLOC_MMAP_THRESHOLD_=4294967296
MALLOC_TRIM_THRESHOLD_=8589934592.

Another model, of another size, to try recipes on; the finished stages of the demo model in --work serve it as well:

    python tools/train_demo_model.py --heads 3 --layers 3 --steps 1500 --batch 16 --out build/second --work WORK

Every stage starts from the same seed, so that a continued run draws the same numbers; another processor or
number of threads sums in another order and gives a model like it, not the same bytes. The committed model is one run
of this script on two cores of an AMD EPYC.
"""

import argparse
import copy
import os
import time
from pathlib import Path

import demo_pictures
import numpy as np
import torch
import torch.nn.functional as F
from demo_export import export, write_prompts
from demo_muon import Muon
from demo_networks import CAPTION_DIM, make_text_encoder, make_tokenizer, make_transformer, make_vae

PICTURES = 10240
VAE_STEPS, VAE_DECAY_STEPS = 5200, 2000
CELL = demo_pictures.SIZE // 8
TEXT_STEPS = 1000
NOISE_SHIFT = 3.0
COARSE_WEIGHT = 1.0
MAX_CAPTION_TOKENS = 32  # the transformer pads captions to multiples of 32


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
    return loss + 3e-4 * kl, loss


@torch.no_grad()
def edges_in_cells(pixels):
    """How much there is to draw in each of 8 x 8 cells of every picture, and a little everywhere: [N, 64]."""
    found = []
    for part in pixels.split(64):
        below, beside = edges(to_input(part, "cpu"))
        strength = F.pad(below.abs(), (0, 0, 0, 1)) + F.pad(beside.abs(), (0, 1))
        found.append(F.avg_pool2d(strength.mean(1, keepdim=True), CELL).flatten(1))
    strengths = torch.cat(found)
    return strengths + strengths.mean() / 2


def crops(pixels, strengths, side, count):
    """Squares around cells that are chosen by `strengths`: most of a picture is flat, and soon learnt."""
    last = demo_pictures.SIZE - side
    result = []
    for index in torch.randint(0, len(pixels), (count,)).tolist():
        row, column = divmod(int(torch.multinomial(strengths[index], 1)), 8)
        down, right = torch.randint(0, CELL, (2,)).tolist()
        top = min(max(row * CELL + down - side // 2, 0), last)
        left = min(max(column * CELL + right - side // 2, 0), last)
        result.append(pixels[index, top : top + side, left : left + side])
    return torch.stack(result)


def train_vae(pixels, device):
    """Train on small crops first, on larger ones while the learning rate decays."""
    strengths = edges_in_cells(pixels)
    vae = make_vae().to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(VAE_STEPS):
        left_over = (VAE_STEPS - step) / VAE_DECAY_STEPS
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 50, left_over)
        batch = crops(pixels, strengths, *((40, 16) if left_over > 1 else (64, 10)))
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

    Both get updates of the same size from a rate; Muon bears a four times higher one, and with it the loss falls about
    three times faster than with AdamW alone.
    """
    named = list(module.named_parameters())
    blocks = [p for name, p in named if p.ndim == 2 and ("attention." in name or "feed_forward." in name)]
    inside = {id(p) for p in blocks}
    others = [p for _, p in named if id(p) not in inside]
    return [
        Muon(blocks, lr=4 * learning_rate, weight_decay=0.01),
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


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("hswq_hub/data/demo_model"))
    parser.add_argument("--work", type=Path, default=Path("build/demo_model"))
    parser.add_argument("--steps", type=int, default=2600)
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
