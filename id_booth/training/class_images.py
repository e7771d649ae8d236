"""Pictures made while training: class (prior) images by the base model, and validation images."""

import numpy as np
import torch

from arcface_files.people import class_images
from configs.inference_config import BASELINE
from id_booth.diffusion.denoising import decode_latents, make_scheduler, sample_latents
from id_booth.diffusion.lora_files import LOSS_RECOGNISER, NO_RECOGNISER, loss_recogniser_of
from id_booth.diffusion.stacked_lora import LORA_FILE
from id_booth.sampling.provenance import DIGITAL_SOURCE_TYPE, jpeg_marks, make_record, png_chunks, save_jpeg
from utils.files import sha256_file
from utils.identities import image_files
from utils.images import save_png
from utils.progress import log, progress
from utils.run_record import code_version
from utils.seeding import derive_seed

NAME_DIGITS = 5


def ensure_class_images(config, models, begin=None):
    """Generate the class images that ``class_folder`` lacks; each depends on (seed, its number) alone.

    Runs that begin together may make the same one; the first that is written stays.

    Defaults of the official code: the base model's own scheduler, 50 steps, guidance 7.5, no negative prompt.
    ``begin`` is called before the first is written.
    """
    folder = class_images(config.class_folder).images_dir
    present = {path.stem for path in image_files(folder)}
    short = config.num_class_images - len(present)
    if short <= 0:
        return
    if begin:
        begin()
    numbers = [n for n in range(config.num_class_images) if f"{n:0{NAME_DIGITS}d}" not in present][:short]
    log(f"{folder}: {len(present)} of {config.num_class_images} class images; the base model makes {short}")
    options = ("pndm", config.class_inference_steps, config.class_guidance_scale)
    about = {"identity": "", "method": BASELINE, "prompt": config.class_prompt, "lora": "", "lora_sha256": ""}
    about |= {LOSS_RECOGNISER: NO_RECOGNISER}
    bar = progress(total=short, desc="class images")
    for start in range(0, short, config.class_batch_size):
        chunk = {f"{n:0{NAME_DIGITS}d}.png": n for n in numbers[start : start + config.class_batch_size]}
        bar.update(len(chunk))
        if all((folder / name).exists() for name in chunk):
            continue  # another run has made them in the meantime
        seeds = [derive_seed(config.seed, "class", number) for number in chunk.values()]
        images = sample_while_training(models, None, config.class_prompt, seeds, *options, "class images")
        for name, seed, image in zip(chunk, seeds, images, strict=True):
            if not (folder / name).exists():  # what others may train with already stays as it is
                record = training_record(config, models, *options, file_name=name, seed=seed, **about)
                save_png(folder / name, image, png_chunks(record))
    bar.close()


def save_validation_images(config, models, slot, name, folder):
    """Sample ``config.validation_prompt`` with one identity's adapter (DPM-Solver++, as published).

    The seeds depend on (seed, identity, number), so checkpoints and objectives show the same draws.
    """
    if not config.validation_images:
        return
    seeds = [derive_seed(config.seed, name, "validation", n) for n in range(config.validation_images)]
    options = ("dpmsolver++", config.validation_steps, config.validation_guidance_scale)
    label = f"validation images of {name}"
    images = sample_while_training(models, slot, config.validation_prompt, seeds, *options, label)
    lora = folder.relative_to(config.output_folder)
    record = training_record(
        config,
        models,
        *options,
        file_name="validation.jpg",
        identity=name,
        method=lora.parts[0],
        prompt=config.validation_prompt,
        seed=seeds,
        lora=lora.as_posix(),
        lora_sha256=sha256_file(folder / LORA_FILE),
        loss_recogniser_sha256=loss_recogniser_of(folder),
    )
    marks = jpeg_marks(DIGITAL_SOURCE_TYPE, record["code_version"], record)
    save_jpeg(folder / "validation.jpg", np.concatenate(list(images), axis=1), marks, quality=92)


def training_record(config, models, scheduler, steps, guidance, **own):
    """The record of a picture made while training, as of any sample; ``own`` are the fields of its own."""
    return make_record(
        negative_prompt="",
        background="",
        pose="",
        gender="",
        age="",
        scheduler=scheduler,
        steps=steps,
        guidance=guidance,
        width=config.resolution,
        height=config.resolution,
        precision={"no": "fp32"}.get(config.mixed_precision, config.mixed_precision),
        base_model=models.base.name,
        base_fingerprint=models.base.fingerprint,
        code_version=code_version(),
        **own,
    )


@torch.no_grad()
def sample_while_training(models, slot, prompt, seeds, scheduler, steps, guidance, label):
    """One image of ``prompt`` for each seed, uint8 (N, H, W, 3) RGB.

    Args:
        slot: whose adapter; None for the base model. scheduler, steps, guidance: as in sampling.
        label: of a bar over the steps.
    """
    scheduler = make_scheduler(scheduler, models.base.schedule)
    side, size = models.config.resolution, models.latent_shape[1:]
    with models.adapter(slot):
        wanted, empty = (models.base.encode([text] * len(seeds), side) for text in (prompt, ""))
        latents = sample_latents(models.unet, scheduler, wanted, empty, seeds, steps, guidance, size, label)
    return decode_latents(models.vae, latents)
