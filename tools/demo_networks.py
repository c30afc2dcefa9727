"""The networks of the demo model before training: VAE, transformer, text encoder; and its tokenizer."""

import json

import demo_pictures
import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from diffusers.models.resnet import ResnetBlock2D
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

LATENT_CHANNELS = 16
CAPTION_DIM = 128
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


def make_vae():
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 96, 128),
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
