"""A thin base model of each family, with random weights, in the layout of its published one: blocks, kinds of
layers, schedule and settings are those; widths and depths are not."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.tiny_base import MAX_TOKENS, make_tokenizer

SIDE, WIDTH, POOLED = 64, 16, 24
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
ATTENDING = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
UNETS = {
    "sd15": {
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ATTENDING[0],
        "up_block_types": ATTENDING[1],
        "attention_head_dim": 2,
        "cross_attention_dim": WIDTH,
    },
    "sd21-768": {
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ATTENDING[0],
        "up_block_types": ATTENDING[1],
        "attention_head_dim": (1, 2, 2, 2),
        "cross_attention_dim": WIDTH,
        "use_linear_projection": True,
    },
    "sdxl": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": (1, 2, 2),
        "cross_attention_dim": 2 * WIDTH,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + POOLED,
    },
}
SCHEDULERS = {
    "sd15": PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **SCHEDULE),
    "sd21-768": DDIMScheduler(
        prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, **SCHEDULE
    ),
    "sdxl": EulerDiscreteScheduler(timestep_spacing="leading", **SCHEDULE),
}


def make_family(folder, name, seed=0):
    """Save the thin base model of a family (a name of UNETS) in ``folder``; returns the folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {
            "unet": UNet2DConditionModel(
                sample_size=SIDE // 8, layers_per_block=2, norm_num_groups=4, **UNETS[name]
            ),
            "vae": AutoencoderKL(
                block_out_channels=(4, 4, 8, 8),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                norm_num_groups=2,
                sample_size=SIDE,
                scaling_factor=0.13025 if name == "sdxl" else 0.18215,
            ),
            "tokenizer": make_tokenizer(),
            "text_encoder": text_encoder(CLIPTextModel),
            "scheduler": SCHEDULERS[name],
        }
        if name == "sdxl":
            second = make_tokenizer()
            second.pad_token = "!"
            parts |= {"tokenizer_2": second, "text_encoder_2": text_encoder(CLIPTextModelWithProjection)}
            pipe = StableDiffusionXLPipeline(**parts, add_watermarker=False)
        else:
            parts |= {"safety_checker": None, "feature_extractor": None}
            pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
        pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def text_encoder(kind):
    """A CLIP text model of three layers, the last but one of which a family may read."""
    tokenizer = make_tokenizer()
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=POOLED,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
