"""A thin base model of each family, with random weights, in the layout of its published one: blocks, kinds of
layers, schedule and settings are those; widths and depths are not."""

import re

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
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from id_booth.diffusion.lora_names import original_path
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


# ------------------------------------------------------------------------------------------- single files

VAE_PARTS = {
    r"(en|de)coder\.down_blocks\.(\d)\.resnets\.": r"\1coder.down.\2.block.",
    r"down_blocks\.(\d)\.downsamplers\.0\.": r"down.\1.downsample.",
    r"up_blocks\.(\d)\.resnets\.": r"up.\1.block.",
    r"up_blocks\.(\d)\.upsamplers\.0\.": r"up.\1.upsample.",
    r"mid_block\.resnets\.0\.": "mid.block_1.",
    r"mid_block\.resnets\.1\.": "mid.block_2.",
    r"mid_block\.attentions\.0\.": "mid.attn_1.",
    r"attn_1\.group_norm": "attn_1.norm",
    r"attn_1\.to_(q|k|v)": r"attn_1.\1",
    r"attn_1\.to_out\.0": "attn_1.proj_out",
    r"conv_norm_out": "norm_out",
    r"conv_shortcut": "nin_shortcut",
}


def single_file(folder, file):
    """Write the thin Stable Diffusion 1.5 in ``folder`` as one file under the original names; returns it."""
    tensors = {}
    for key, value in load_file(folder / "unet/diffusion_pytorch_model.safetensors").items():
        module, _, kind = key.rpartition(".")
        tensors[f"model.diffusion_model.{original_path(module)}.{kind}"] = value
    for key, value in load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        for pattern, new in VAE_PARTS.items():
            key = re.sub(pattern, new, key)
        key = re.sub(r"up\.(\d)", lambda found: f"up.{3 - int(found[1])}", key)
        linear = "attn_1" in key and value.ndim == 2
        tensors[f"first_stage_model.{key}"] = value[:, :, None, None].contiguous() if linear else value
    for key, value in load_file(folder / "text_encoder/model.safetensors").items():
        tensors[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    save_file(tensors, file)
    return file
