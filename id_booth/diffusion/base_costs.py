"""What a base model costs in memory and on disk, from its own files, without loading it.

Estimates: what a step keeps follows the layers' widths and places, at rates measured with SD 2.1 in float32.
"""

import contextlib
from pathlib import Path

from safetensors import safe_open

from configs.train_config import TrainConfig
from id_booth.diffusion.base_files import INDEX, find_base_model, loading_trouble, read_settings, weight_files
from id_booth.diffusion.families import TEXT_TARGETS, family_of
from utils.errors import UserError

RESNET, TRANSFORMER = 8, 28  # values that a layer keeps for the backward pass, for each channel and place
DECODER = 2560  # likewise of the decoder, for each pixel of a picture
FACE = 0.7  # of the decode, where a window around the face is decoded alone
LEAN = 1.5  # times as much without lean layers
RECOMPUTED = 0.25  # of what is kept, with gradient checkpointing
PASSING = 0.06  # of what is kept: what a call needs at once without a backward pass
VALUE_BYTES, RESUME_LORAS = 4, 3  # on disk; a resume state holds weights and two moments
ADAPTER = 16  # bytes of a trained weight: itself, its gradient, two moments
UNKNOWN = {"parameters": 1.3e9, "lora": 207_360}  # of a model not here: SD 2.1's; "lora" for each rank


def local_source(config):
    """Where a config's base model lies here: a folder or file, also in the hub's cache; else None."""
    source = find_base_model(config.base_model)
    if isinstance(source, Path):
        return source
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, INDEX, revision=config.revision)
    if isinstance(found, str):
        with contextlib.suppress(UserError):  # of a download that broke off
            folder = Path(found).parent
            parts = ("unet", "vae", *family_of(folder).text_parts)
            if all(file.is_file() for part in parts for file in weight_files(folder, part)[0]):
                return folder
    return None


def shapes(source, part):
    """{name: shape} of the weights of a part; of a single file always those of the whole model."""
    try:
        found = {}
        for file in weight_files(source, part)[0] if source.is_dir() else [source]:
            with safe_open(file, "pt") as weights:
                found |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        return found
    except UserError:
        raise
    except Exception as error:  # damaged in any way
        raise UserError(loading_trouble(source, error)) from error


def parameters(source):
    """How many weights a model has."""
    parts = ("unet", "vae", *family_of(source).text_parts) if source.is_dir() else ("unet",)
    return sum(product(shape) for part in parts for shape in shapes(source, part).values())


def product(shape):
    """The number of values of a tensor."""
    count = 1
    for side in shape:
        count *= side
    return count


def lora_parameters(config):
    """Trained weights of one LoRA of a TrainConfig."""
    source = local_source(config)
    if source is None:
        return UNKNOWN["lora"] * config.lora_rank
    targets = {"unet": config.lora_targets}
    if config.train_text_encoder:
        targets |= dict.fromkeys(family_of(source).text_parts, TEXT_TARGETS)
    ends = {part: tuple(f".{name}.weight" for name in names) for part, names in targets.items()}
    linear = [
        shape
        for part, own in ends.items()
        for name, shape in shapes(source, part).items()
        if name.endswith(own) and len(shape) == 2
    ]
    return config.lora_rank * sum(map(sum, linear))


def disk_needed(config, identity_count):
    """Bytes that training so many identities may write: checkpoints, one resume state, images."""
    epochs = config.num_train_epochs // config.checkpointing_epochs + 1
    loras = min(epochs, config.checkpoints_total_limit or epochs) + RESUME_LORAS
    return identity_count * len(config.objectives) * loras * VALUE_BYTES * lora_parameters(config)


def unet_values(settings, side):
    """Values that a pass of one item through the UNet keeps, of latents of ``side``."""
    widths = settings["block_out_channels"]
    depths, blocks = (
        value if isinstance(value, list) else [value] * len(widths)
        for value in (
            settings.get("transformer_layers_per_block", 1),
            settings.get("layers_per_block", 2),
        )
    )
    attends = ["CrossAttn" in kind for kind in settings["down_block_types"]]
    return sum(
        (2 * blocks[level] + 1)
        * width
        * (side / 2**level) ** 2
        * (RESNET + TRANSFORMER * depths[level] * attends[level])
        for level, width in enumerate(widths)
    )


def memory_needed(config, value_bytes):
    """Bytes that one process of a TrainConfig or InferenceConfig keeps; None of a model that is not here.

    Args:
        value_bytes: of a number in the config's precision.
    """
    source = local_source(config)
    if source is None:
        return None
    unet, vae = (read_settings(source, f"{part}/config.json") for part in ("unet", "vae"))
    widths = vae["block_out_channels"]
    kept = unet_values(unet, config.resolution / 2 ** (len(widths) - 1))
    decoded = DECODER * config.resolution**2 * widths[0] / 128
    if isinstance(config, TrainConfig):
        people = 1 if config.cohort_size == "auto" else config.cohort_size
        items = people * config.train_batch_size
        kept *= items * (1 + config.with_prior_preservation)
        kept *= RECOMPUTED if config.gradient_checkpointing else 1
        decoded *= items * (1 if config.identity_decode == "full" else FACE)
        decoded *= RECOMPUTED if config.vae_gradient_checkpointing else 1
        adapters = ADAPTER * people * lora_parameters(config)
        lean = 1 if config.lean_layers else LEAN
        return value_bytes * (parameters(source) + lean * (kept + decoded)) + adapters
    kept *= config.batch_size * (2 if config.guidance > 1 else 1)
    return value_bytes * (
        parameters(source) + PASSING * kept + 4 * PASSING * decoded * config.decode_batch_size
    )
