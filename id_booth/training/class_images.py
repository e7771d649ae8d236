"""Class (prior) images: made by the base model when there are too few, embedded, and read as negatives."""

from pathlib import Path

import torch

from id_booth.diffusion.base_model import encode_prompts
from id_booth.diffusion.denoising import decode_latents, make_scheduler, sample_latents
from id_booth.training.photos import photo_entries, read_embedding
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
    scheduler = make_scheduler("pndm", models.pipe.scheduler.config)
    embeds = encode_prompts(models.pipe, [config.class_prompt, ""])
    bar = progress(total=short, desc="class images")
    for start in range(0, short, config.class_batch_size):
        chunk = numbers[start : start + config.class_batch_size]
        seeds = [derive_seed(config.seed, "class", number) for number in chunk]
        rows = embeds.repeat_interleave(len(chunk), 0)
        with models.adapter(None):
            latents = sample_latents(
                models.unet,
                scheduler,
                rows[: len(chunk)],
                rows[len(chunk) :],
                seeds,
                config.class_inference_steps,
                config.class_guidance_scale,
                models.latent_shape[1:],
            )
        images = decode_latents(models.vae, latents)
        for number, seed, image in zip(chunk, seeds, images, strict=True):
            text = {
                "prompt": config.class_prompt,
                "seed": str(seed),
                "base_model": project_relative(config.base_model),
            }
            save_png(folder / f"{number:0{NAME_DIGITS}d}.png", image, text)
        bar.update(len(chunk))
    bar.close()


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
        raise UserError(f"{embeds_dir}: no embedding; ID-Booth needs other people's embeddings as negatives")
    return torch.stack([read_embedding(file, size) for file in files])
