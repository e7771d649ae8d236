"""Pictures of the validation prompt, made while training, beside each checkpoint."""

import numpy as np
import torch
from PIL import Image

from id_booth.diffusion.base_model import encode_prompts
from id_booth.diffusion.denoising import decode_latents, make_scheduler, sample_latents
from utils.seeding import derive_seed


def save_validation_images(config, models, slot, name, folder):
    """Sample ``config.validation_prompt`` with one identity's adapter (DPM-Solver++, as published).

    The seeds depend on (seed, identity, number), so checkpoints and objectives show the same draws.
    """
    count = config.validation_images
    if not count:
        return
    with torch.no_grad(), models.adapter(slot):
        if models.text_lora:
            models.pipe.prompt_cache.clear()
        embeds = encode_prompts(models.pipe, [config.validation_prompt, ""])
        rows = embeds.repeat_interleave(count, 0)
        seeds = [derive_seed(config.seed, name, "validation", number) for number in range(count)]
        scheduler = make_scheduler("dpmsolver++", models.pipe.scheduler.config)
        with models.autocast():
            latents = sample_latents(
                models.unet,
                scheduler,
                rows[:count],
                rows[count:],
                seeds,
                config.validation_steps,
                config.validation_guidance_scale,
                models.latent_shape[1:],
            )
        images = decode_latents(models.vae, latents)
    Image.fromarray(np.concatenate(list(images), axis=1)).save(folder / "validation.jpg", quality=92)
