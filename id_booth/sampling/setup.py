"""What id_booth/check_setup.py says of a sampling config: images, attributes, LoRAs."""

import dataclasses
from pathlib import Path

from configs.inference_config import BASELINE
from id_booth.diffusion.base_costs import local_source
from id_booth.diffusion.base_model import outline
from id_booth.diffusion.lora_files import check_fits, check_person
from id_booth.diffusion.lora_reading import read_lora
from id_booth.sampling.settings import choose_checkpoint, known_attributes, sample_identities
from utils.errors import UserError, one_line
from utils.identities import subfolders


def image_count(config):
    """Images a sampling run makes in all, if the set is one of the numbered ones."""
    folders = [Path(config.lora_folder) / method for method in config.methods if method != BASELINE]
    people = max((len(subfolders(folder)) for folder in folders if folder.is_dir()), default=1)
    number = str(config.prompt_set).rpartition("-")[2]
    each = int(number) if number.isascii() and number.isdecimal() and len(number) < 10 else 100
    return (len(config.identities) or people) * len(config.methods) * each


def attributes(config):
    """Whose gender and age are known, where the prompts speak of them."""
    found = known_attributes(config)
    return f"of {len(found)} people" if found else "not needed: the prompts name no gender or age"


def loras(config):
    """LoRAs of each method, once all fit the base model."""
    source, counts, problems = local_source(config), {}, []
    methods = [name for name in config.methods if name != BASELINE]
    base = outline(source) if source and methods else None
    for method in methods:
        names = sample_identities(dataclasses.replace(config, methods=(method,)))
        counts[method] = len(names)
        problems += filter(None, (trouble(config, method, name, base) for name in names))
    if problems:
        raise UserError(f"{len(problems)} of {sum(counts.values())} cannot be used, first {problems[0]}")
    text = ", ".join(f"{method} {count}" for method, count in counts.items()) or "not needed"
    return text if source else f"note: {text}; whether they fit is known once the base model is here"


def trouble(config, method, name, base):
    """Why sampling would refuse a person's LoRA, None where it would not."""
    try:
        path = choose_checkpoint(config, method, name)
        check_person(path, name)
        if base:
            check_fits(base, read_lora(path, base))
    except UserError as error:
        return one_line(error)
