"""A random-weight Stable Diffusion pipeline, small enough to be made in a blink, for tests of the scripts."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

VOCABULARY = """
face portrait side photo of a an the sks person male female young middle aged old background forest city
street beach office bus laboratory factory construction site hospital night club cartoon cgi render
illustration painting drawing black and white bad body proportions landscape with blue hair
"""
MAX_TOKENS = 48


def make_tiny_base(folder, seed=0, channels=(8, 16), text_width=16, image_size=64):
    """Save a pipeline in diffusers' Stable Diffusion layout in ``folder`` and return the folder.

    8x VAE with 4 latent channels, attention-only LoRA targets in place, one token per word of the published
    prompts, at most ``MAX_TOKENS`` tokens. ``channels`` and ``text_width`` differ for "another base model".
    """
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    pipe = StableDiffusionPipeline(
        unet=make_unet(channels, text_width, image_size // 8),
        vae=make_vae(image_size),
        text_encoder=make_text_encoder(len(tokenizer), text_width, tokenizer),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    torch.random.set_rng_state(state)
    return folder


def make_tokenizer():
    """A CLIP tokenizer over single bytes, with the merges that make each word of VOCABULARY a token."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = alphabet + [letter + "</w>" for letter in alphabet]
    merges = []
    for word in VOCABULARY.split():
        pieces = [*word[:-1], word[-1] + "</w>"]
        for end in range(1, len(pieces)):
            pair = ("".join(pieces[:end]), pieces[end])
            if pair not in merges:
                merges.append(pair)
    vocabulary += list(dict.fromkeys("".join(pair) for pair in merges))
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=merges,
        model_max_length=MAX_TOKENS,
    )


def make_unet(channels, text_width, latent_size):
    """A two-level UNet with cross-attention at both ends."""
    return UNet2DConditionModel(
        sample_size=latent_size,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=2,
        norm_num_groups=4,
        use_linear_projection=True,
    )


def make_vae(image_size):
    """An 8x autoencoder."""
    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=image_size,
    )


def make_text_encoder(vocabulary_size, width, tokenizer):
    """A two-layer CLIP text model."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_tiny_lora(folder, base, seed=0, metadata=True, text_encoder=False, **options):
    """Save a random LoRA for the pipeline in ``base`` as diffusers' own training scripts do; returns folder.

    ``options`` go to peft's LoraConfig (r, lora_alpha, use_dora, use_rslora).
    """
    parts = {"unet": UNet2DConditionModel.from_pretrained(base, subfolder="unet")}
    targets = {"unet": ["to_q", "to_k", "to_v", "to_out.0"], "text_encoder": ["q_proj", "v_proj"]}
    if text_encoder:
        parts["text_encoder"] = CLIPTextModel.from_pretrained(base, subfolder="text_encoder")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, part in parts.items():
            settings = {"r": 2, "lora_alpha": 2, **options}
            part.add_adapter(LoraConfig(init_lora_weights=False, target_modules=targets[name], **settings))
    layers = {
        f"{name}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(part))
        for name, part in parts.items()
    }
    notes = _collate_lora_metadata(parts) if metadata else {}
    StableDiffusionPipeline.save_lora_weights(folder, **layers, **notes)
    return folder
