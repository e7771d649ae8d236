"""Pictures made while training: class (prior) images by the base model, and validation images."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from arcface_files.face_records import photo_entries, read_embedding
from id_booth.diffusion.denoising import decode_latents, make_scheduler, sample_latents
from utils.errors import UserError
from utils.identities import image_files
from utils.images import save_png
from utils.progress import log, progress
from utils.run_record import project_relative
from utils.seeding import derive_seed

NAME_DIGITS = 5


def ensure_class_images(config, models):
    """Generate the class images that ``class_folder`` lacks; each depends on (seed, its number) alone.

    Defaults of the official code: the base model's own scheduler, 50 steps, guidance 7.5, no negative prompt.
    """
    folder = Path(config.class_folder) / "images"
    present = {path.stem for path in image_files(folder)}
    short = config.num_class_images - len(present)
    if short <= 0:
        return
    numbers = [n for n in range(config.num_class_images) if f"{n:0{NAME_DIGITS}d}" not in present][:short]
    log(f"{folder}: {len(present)} of {config.num_class_images} class images; the base model makes {short}")
    options = ("pndm", config.class_inference_steps, config.class_guidance_scale)
    bar = progress(total=short, desc="class images")
    for start in range(0, short, config.class_batch_size):
        chunk = numbers[start : start + config.class_batch_size]
        seeds = [derive_seed(config.seed, "class", number) for number in chunk]
        images = sample_while_training(models, None, config.class_prompt, seeds, *options)
        for number, seed, image in zip(chunk, seeds, images, strict=True):
            text = {"prompt": config.class_prompt, "seed": str(seed)}
            text["base_model"] = project_relative(config.base_model)
            save_png(folder / f"{number:0{NAME_DIGITS}d}.png", image, text)
        bar.update(len(chunk))
    bar.close()


def save_validation_images(config, models, slot, name, folder):
    """Sample ``config.validation_prompt`` with one identity's adapter (DPM-Solver++, as published).

    The seeds depend on (seed, identity, number), so checkpoints and objectives show the same draws.
    """
    if not config.validation_images:
        return
    seeds = [derive_seed(config.seed, name, "validation", n) for n in range(config.validation_images)]
    options = ("dpmsolver++", config.validation_steps, config.validation_guidance_scale)
    images = sample_while_training(models, slot, config.validation_prompt, seeds, *options)
    Image.fromarray(np.concatenate(list(images), axis=1)).save(folder / "validation.jpg", quality=92)


@torch.no_grad()
def sample_while_training(models, slot, prompt, seeds, scheduler, steps, guidance):
    """One image of ``prompt`` for each seed, uint8 (N, H, W, 3) RGB.

    Args:
        slot: whose adapter; None for the base model. scheduler, steps, guidance: as in sampling.
    """
    scheduler = make_scheduler(scheduler, models.base.schedule)
    with models.adapter(slot):
        wanted, empty = (models.base.encode([text] * len(seeds)) for text in (prompt, ""))
        size = models.latent_shape[1:]
        latents = sample_latents(models.unet, scheduler, wanted, empty, seeds, steps, guidance, size)
    return decode_latents(models.vae, latents)


def read_negatives(folder, size):
    """All embeddings of a flat class or negatives folder, (M, size) float32.

    Images without a face have none; they serve the prior loss but never as a negative.
    """
    embeds_dir = Path(folder) / "ArcFace_embeds"
    files = sorted(embeds_dir.glob("*.pt"))
    if (embeds_dir / "faces.json").is_file():
        stems = {Path(name).stem for name in photo_entries(embeds_dir / "faces.json")}
        files = [file for file in files if file.stem in stems]
    if not files:
        raise UserError(f"{embeds_dir}: no embedding; the objective needs other people's as negatives")
    return torch.stack([read_embedding(file, size) for file in files])
