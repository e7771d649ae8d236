"""The miniature base model: text encoder and UNet in Stable Diffusion's form, trained jointly from scratch.

Latent diffusion (Rombach et al. 2022) with Stable Diffusion 2.1-base's noise schedule and epsilon prediction,
weighted by min-SNR-gamma (Hang et al. 2023). Ten per cent of the captions are dropped for classifier-free
guidance: half become empty, half parts of the published negative prompt, so that both serve as the
unconditional prediction.
"""

import contextlib
import copy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel

from configs.inference_config import NEGATIVE_PROMPT
from id_booth.diffusion.noise_schedule import min_snr_weight
from id_booth.training.graphed_call import GraphedCall
from mini.build.captions import RARE_WORD, caption, names
from mini.build.device_batches import EMPTY_CAPTIONS, DeviceBatches, caption_tokens
from mini.build.tokenizer import NAMES
from mini.build.training_loop import Schedule, Training, run_training
from utils.errors import UserError
from utils.seeding import derive_seed, torch_generator

MIN_SNR_GAMMA = 5.0
DROPPED_CAPTIONS = 0.1


def new_scheduler():
    """The noise schedule of Stable Diffusion 2.1-base."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def new_unet(channels, text_width, seed):
    """UNet on 4 x 16 x 16 latents; attention at 16 x 16 on the way up only, to save time."""
    torch.manual_seed(derive_seed("unet weights", seed))
    down = ("DownBlock2D", *["CrossAttnDownBlock2D"] * (len(channels) - 1))
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=down,
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=1,
        cross_attention_dim=text_width,
        # diffusers' misnomer: these are numbers of heads, one for each level.
        attention_head_dim=tuple(max(1, width // 32) for width in (channels[0] // 2, *channels[1:])),
        norm_num_groups=16,
        use_linear_projection=True,
    )


def new_text_encoder(tokenizer, width, layers, seed):
    """A small CLIP text transformer for ``tokenizer``."""
    torch.manual_seed(derive_seed("text encoder weights", seed))
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def training_caption(attributes, rng):
    """A caption, or in a tenth of the cases nothing or a random part of the negative prompt."""
    return caption(attributes, rng) if rng.random() >= DROPPED_CAPTIONS else dropped_caption(rng)


def dropped_caption(rng):
    """What stands for a caption that is dropped: nothing, or a random part of the negative prompt."""
    if rng.random() < 0.5:
        return ""
    words = NEGATIVE_PROMPT.split(", ")
    count = len(words) if rng.random() < 0.5 else int(rng.integers(1, len(words) + 1))
    return ", ".join(word for word in words if rng.random() < count / len(words)) or words[0]


def sample_batch(latents, attributes, batch, seed, step):
    """What one training step sees: clean latents (B, 4, 16, 16), noise, timesteps (B,), and B captions."""
    rng = np.random.default_rng(derive_seed("base batch", seed, step))
    generator = torch_generator("base noise", seed, step)
    indices = torch.from_numpy(rng.integers(len(latents), size=batch))
    mirrored = torch.from_numpy(rng.integers(2, size=batch))
    clean = latents.sample(indices, mirrored, generator)
    noise = torch.randn(clean.shape, generator=generator)
    # One timestep from each of B equal parts of the range: the same mean loss with less variance.
    timesteps = ((torch.arange(batch) + torch.rand(batch, generator=generator)) * (1000 / batch)).long()
    captions = [training_caption(attributes[i], rng) for i in indices.tolist()]
    return clean, noise, timesteps.clamp(max=999), captions


def batch_source(latents, attributes, tokenizer, config):
    """A function of the step: clean latents, noise, timesteps and tokens, as :func:`sample_batch` draws them.

    For a GPU they are drawn there, from other random numbers (mini.build.device_batches).
    """
    if not config.draws_on_device:

        def draw(step):
            *numbers, captions = sample_batch(latents, attributes, config.base_batch, config.seed, step)
            return *numbers, tokenize(tokenizer, captions)

        return draw
    rng = np.random.default_rng(derive_seed("dropped captions", config.seed))
    dropped = tokenize(tokenizer, [dropped_caption(rng) for _ in range(EMPTY_CAPTIONS)]).to(torch.int16)
    tokens = caption_tokens(attributes, partial(tokenize, tokenizer), config.seed, config.processes)
    options = (DROPPED_CAPTIONS, config.base_batch, config.seed, torch.device(config.device))
    return DeviceBatches(latents, tokens, dropped, *options).draw


class Denoiser(nn.Module):
    """Text encoder and UNet as a function of tensors: noisy latents, timesteps, tokens -> predicted noise."""

    def __init__(self, unet, text_encoder, half):
        super().__init__()
        self.unet, self.text_encoder, self.half = unet, text_encoder, half

    def forward(self, noisy, timesteps, tokens):
        """(B, 4, h, w) float32; within bfloat16 autocast where ``half``."""
        # Without its cache, which a recorded call must not read from.
        with (
            plain_attention(noisy.device.type == "cpu" and self.half),
            torch.autocast(noisy.device.type, torch.bfloat16, enabled=self.half, cache_enabled=False),
        ):
            context = self.text_encoder(tokens)[0]
            return self.unet(noisy, timesteps, context, return_dict=False)[0].float()


@contextlib.contextmanager
def plain_attention(wanted):
    """Attention by matmuls in the tensors' own precision, if ``wanted``.

    The fused attention of a CPU takes a third of a training step in bfloat16, most of it backward.
    """
    if not wanted:
        yield
        return
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def train_base(folder, latents, attributes, tokenizer, config, deadline, watch=None):
    """Train text encoder and UNet; returns both with averaged weights.

    Args:
        latents: mini.build.latents.Latents.  attributes: of each picture, for its captions.
        watch: called as in run_training.
    """
    unet, text_encoder = new_base(tokenizer, config)
    if config.base_from is not None:
        load_parts(config.base_from, unet, text_encoder)
    unet, text_encoder = unet.to(config.device), text_encoder.to(config.device)
    schedule = Schedule(
        config.base_steps,
        config.base_lr,
        warmup=200,
        decay=0.4,
        fit=config.base_fit,
        bfloat16=config.base_bfloat16,
    )
    training = Training(folder, {"unet": unet, "text_encoder": text_encoder}, schedule)
    alphas = new_scheduler().alphas_cumprod.to(config.device)
    network = torch.compile(unet) if config.base_compile else unet
    denoise = Denoiser(network, text_encoder, config.base_bfloat16)
    denoise = GraphedCall(denoise) if config.base_graph else denoise
    draw = batch_source(latents, attributes, tokenizer, config)

    def loss_of_step(step):
        clean, noise, timesteps, tokens = draw(step)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        error = (denoise(noisy, timesteps, tokens) - noise).square().mean((1, 2, 3))
        loss = (error * min_snr_weight(timesteps, alphas, MIN_SNR_GAMMA)).mean()
        return loss, {"plain_mse": error.detach().mean()}

    run_training(training, loss_of_step, deadline, "base", watch)
    training.use_average()
    return unet.eval(), text_encoder.eval()


def new_base(tokenizer, config):
    """UNet and text encoder with fresh seeded weights, in training mode."""
    unet = new_unet(config.unet_channels, config.text_width, config.seed)
    return unet.train(), new_text_encoder(
        tokenizer, config.text_width, config.text_layers, config.seed
    ).train()


def load_parts(folder, unet, text_encoder):
    """Fill both with the weights of the base model in ``folder``; UserError when its networks differ."""
    for name, part in (("unet", unet), ("text_encoder", text_encoder)):
        kind = type(part)
        weights = kind.from_pretrained(Path(folder) / name, dtype=torch.float32).state_dict()
        own = part.state_dict()
        if {key: value.shape for key, value in weights.items()} != {k: v.shape for k, v in own.items()}:
            raise UserError(f"{folder}/{name}: a network of another size; use its own settings or start anew")
        part.load_state_dict(weights)


@torch.no_grad()
def place_rare_word(text_encoder, tokenizer):
    """Put the word that fine-tuning fills, which no caption has shown, among the names: in their middle.

    Its embedding becomes the mean of the names' embeddings at their usual norm: a name of nobody in
    particular, as a rare word is to Stable Diffusion.
    """
    rows = text_encoder.get_input_embeddings().weight
    word, *people = tokenizer([RARE_WORD, *names(NAMES)], add_special_tokens=False).input_ids
    if {len(tokens) for tokens in (word, *people)} != {1}:
        raise UserError(f"tokenizer: {RARE_WORD} and each name must be one token; build it anew")
    named = rows[[token for [token] in people]]
    middle = named.mean(0)
    rows[word[0]] = middle * (named.norm(dim=1).mean() / middle.norm())


def tokenize(tokenizer, captions):
    """Padded token ids (N, model_max_length), cut where longer."""
    return tokenizer(
        captions,
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids


def make_pipeline(vae, text_encoder, tokenizer, unet):
    """A StableDiffusionPipeline of copies of the parts, so that half precision stays in the copy."""
    return StableDiffusionPipeline(
        vae=copy.deepcopy(vae),
        text_encoder=copy.deepcopy(text_encoder),
        tokenizer=tokenizer,
        unet=copy.deepcopy(unet),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
