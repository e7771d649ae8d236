"""What a sampling configuration means on this machine: methods, identities, LoRAs, attributes, folders."""

import dataclasses
from pathlib import Path

from arcface_files.people import closed, find_identities, named
from configs.inference_config import BASELINE, NEGATIVE_PROMPT
from id_booth.diffusion.denoising import check_scheduler_name
from id_booth.diffusion.lora_files import checkpoints
from id_booth.objectives import OBJECTIVES
from id_booth.prompts import AGE_BACKGROUND_SET, find_attributes_file, is_grammar_set, load_attributes
from utils.errors import UserError, did_you_mean
from utils.files import check_folder_name, sha256_bytes
from utils.identities import natural_key, readable, same_name, subfolders
from utils.progress import log_once


@readable()
def checked_settings(config):
    """An InferenceConfig whose methods are spelled out; UserError for an unknown name in it.

    Without methods: the base model, then every objective of the table that has a folder of LoRAs.
    """
    check_scheduler_name(config.scheduler)
    is_grammar_set(config.prompt_set)
    folder = Path(config.lora_folder)
    trained = [name for name in OBJECTIVES if (folder / name).is_dir()]
    if not (config.methods or trained):
        log_once(f"{folder}: no LoRA of an objective in it (--lora-folder); the base model alone is sampled")
    methods = config.methods or (BASELINE, *trained)
    for name in (*methods, *config.identities, *filter(None, [config.set_name])):
        check_folder_name(name)
    for name in methods:
        if name not in (BASELINE, *OBJECTIVES) and not (folder / name).is_dir():
            known = (BASELINE, *OBJECTIVES)
            raise UserError(
                f"methods: no {name!r}; {did_you_mean(name, known)}there are {', '.join(known)}, and the "
                f"folders of {folder}"
            )
    check_sheets(config)
    return dataclasses.replace(config, methods=tuple(methods))


def check_sheets(config):
    """Refuse contact sheets, which show photos, in the folder of samples, which are passed on."""
    sheets, samples = Path(config.sheets_folder).resolve(), Path(config.output_folder).resolve()
    if config.contact_sheets and sheets.is_relative_to(samples):
        raise UserError(
            f"sheets_folder: {config.sheets_folder} lies in output_folder, and the sheets show real photos; "
            "name a folder beside it"
        )


def set_folder(config):
    """Where the data set goes: OUTPUT/{set}."""
    return Path(config.output_folder) / data_set_name(config)


def sheets_folder(config):
    """Where the contact sheets of the data set go: SHEETS/{set}, outside the set."""
    return Path(config.sheets_folder) / data_set_name(config)


def data_set_name(config):
    """``set_name``, or the published pattern, e.g. FacePortrait_Photo_21_Gender_Pose_Background.

    A set without a negative prompt ends in NoNegative, one with another than the published in a digest of it.
    """
    if config.set_name:
        return config.set_name
    negative = [] if config.negative_prompt == NEGATIVE_PROMPT else ["NoNegative"]
    if negative and config.negative_prompt:
        negative = [f"Negative-{sha256_bytes(config.negative_prompt.encode())[:6]}"]
    if not is_grammar_set(config.prompt_set):
        return "_".join(["Free", Path(config.prompt_set).stem, *negative])
    parts = {
        "Gender": config.use_gender,
        "Pose": config.use_pose,
        "Age": config.use_age != "no" or config.prompt_set == AGE_BACKGROUND_SET,
        "Background": config.use_background,
    }
    number = config.prompt_set.removeprefix("age-background-")
    used = [name for name, is_used in parts.items() if is_used]
    return "_".join(["FacePortrait_Photo", number, *used, *negative])


def sample_identities(config):
    """Names of the identities to sample, in natural order."""
    if config.identities:
        return [same_name(name) for name in config.identities]
    names = set()
    for method in config.methods:
        folder = Path(config.lora_folder) / method
        if method != BASELINE:
            if not folder.is_dir():
                raise UserError(f"{folder}: no such folder; train {method} first, or set other methods")
            # A stray folder without a LoRA in it is no identity; one that is closed to this user may be.
            found = (path for path in subfolders(folder) if closed(path) or checkpoints(path))
            names |= {same_name(path.name) for path in found}
    if set(config.methods) == {BASELINE}:
        names = {identity.name for identity in find_identities(config.source_folder)}
    if not names:
        raise UserError(f"{config.lora_folder}: no LoRA found for {', '.join(config.methods)}; train first")
    return sorted(names, key=natural_key)


@readable()
def known_attributes(config):
    """Attributes by identity; UserError when the prompts need some and there is no file at all."""
    path, is_there = config.attributes_file, Path(config.source_folder).is_dir()
    if path is None and is_there:
        path = find_attributes_file(config.source_folder)
    if path is not None:
        return load_attributes(path)
    if config.use_gender or config.use_age == "attribute":
        if not is_there:
            raise UserError(
                f"{config.source_folder}: no such folder, and the prompts name gender or age; give the "
                "folder with attributes.csv, --attributes-file, or --no-use-gender"
            )
        raise UserError(
            f"{config.source_folder}/attributes.csv: not found, and the prompts name gender or age; write it "
            "(columns identity, gender, age), or set --no-use-gender"
        )
    return {}


def choose_checkpoint(config, method, identity):
    """The LoRA folder to sample from."""
    folder = named(Path(config.lora_folder) / method, identity)
    found = checkpoints(folder)
    if not found:
        raise UserError(f"{folder}: no LoRA in it; train {method} for {identity} first")
    if config.checkpoint == "latest":
        return found[-1]
    for path in found:
        if path.name == config.checkpoint:
            return path
    raise UserError(f"{folder}: no {config.checkpoint}; there are {', '.join(path.name for path in found)}")
