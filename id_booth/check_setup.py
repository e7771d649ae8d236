"""Whether all that a config needs is in place, what is missing and where to get it.

    python -m id_booth.check_setup --config configs/train_sd21_fast.py
    python -m id_booth.check_setup --config configs/inference_mini.py --source-folder /data/lab_photos

Takes the config and the overrides of train_id_booth.py, inference_id_booth.py, extract_arcface_embeds.py,
evaluation/evaluate.py or a script of fr_training/. Loads no weights but those of LoRAs and downloads nothing.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m id_booth.check_setup")

import argparse
import importlib
import os
import shutil
from pathlib import Path

import torch

from arcface_files.face_pack import pack_models
from arcface_files.face_records import without_face
from arcface_files.people import class_images, find_identities
from configs.evaluation_config import EvaluationConfig
from configs.extract_config import ExtractConfig
from configs.fr_config import AlignConfig, AugmentConfig, StudyConfig, TestFRConfig, TrainFRConfig
from configs.inference_config import InferenceConfig
from configs.train_config import TrainConfig
from id_booth.consent import check_consent
from id_booth.diffusion import base_costs
from id_booth.diffusion.base_costs import local_source, memory_needed, parameters
from id_booth.diffusion.families import family_of
from id_booth.objectives import any_needs_faces, with_objectives
from id_booth.sampling import setup as sampling
from id_booth.sampling.settings import checked_settings
from utils.config import BaseConfig, load_config
from utils.devices import pick_device, pick_dtype
from utils.errors import UserError, one_line, run
from utils.identities import image_files
from utils.run_record import summarise

OK, MISSING, NOTE = "ok", "missing", "note"
VALUE_BYTES = {"no": 4, "fp32": 4, "fp16": 2, "bf16": 2}
LIBRARIES_GIB = 1.0  # code and kernels
CONSENT_SHOWN = 3
RECOGNITION = (AlignConfig, AugmentConfig, TrainFRConfig, TestFRConfig, StudyConfig)
NOT_NEEDED = "not needed: no objective with an identity term"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], add_help=True)
    parser.add_argument("--config", default="configs/train_mini.py", help="config file of one of the scripts")
    options, overrides = parser.parse_known_args(argv)
    try:
        config = load(options.config, overrides)
        rows = [line("config", OK, f"{options.config} ({type(config).__name__})"), *check(config)]
        if isinstance(config, RECOGNITION):
            rows += rows_above("fr_training", config, ["--config", options.config, *overrides])
    except UserError as error:
        rows = [line("config", MISSING, one_line(error))]
    rows = once(rows)
    summarise([{"what": row["what"], "state": row["status"], "detail": row["detail"]} for row in rows])
    return int(any(row["status"] == MISSING for row in rows))


def load(path, overrides):
    """The config as its script would begin with it; UserError for one of another script."""
    config = load_config(path, overrides, BaseConfig)
    if isinstance(config, TrainConfig):
        return with_objectives(config)
    if isinstance(config, InferenceConfig):
        return checked_settings(config)
    if isinstance(config, (ExtractConfig, EvaluationConfig, *RECOGNITION)):
        return config
    kind = type(config).__name__
    raise UserError(f"{path}: a config of {kind}, whose script says what is missing with --dry-run")


def check(config):
    """Rows for everything a config needs."""
    rows = [line("device", *checked(device, config))]
    if isinstance(config, EvaluationConfig):
        rows += [line("face pack", *checked(pack, config)), line("recogniser", *checked(recogniser, config))]
        return rows + rows_above("evaluation", config)
    if isinstance(config, RECOGNITION):
        return rows + ([line("face pack", *checked(pack, config))] if isinstance(config, AlignConfig) else [])
    if not isinstance(config, ExtractConfig):
        rows += [line("base model", *checked(base_model, config)), line("memory", *checked(memory, config))]
    if not isinstance(config, InferenceConfig):
        rows += [line("face pack", *checked(pack, config)), line("recogniser", *checked(recogniser, config))]
    rows += [line("photos", *checked(photos, config)), line("disk", *checked(disk, config))]
    if isinstance(config, TrainConfig):
        rows.append(line("embeddings", *checked(embeddings, config)))
        rows.append(line("class images", *checked(classes, config)))
    if getattr(config, "require_consent", False):
        rows.append(line("consent", *checked(consent, config)))
    if isinstance(config, InferenceConfig):
        rows.append(line("LoRAs", *checked(sampling.loras, config)))
        rows.append(line("attributes", *checked(sampling.attributes, config)))
    return rows


def rows_above(module, *arguments):
    """Rows for a package that stands above this one, whose setup module is hence loaded by name."""
    checks = importlib.import_module(f"{module}.setup").checks(*arguments)
    return [line(what, *checked(*check)) for what, *check in checks]


def once(rows):
    """The rows without those that say again what is missing."""
    causes = [row["detail"] for row in rows]
    return [
        row
        for place, row in enumerate(rows)
        if row["status"] != MISSING or row["detail"] not in causes[:place]
    ]


def line(what, status, detail):
    """A row of the table."""
    return {"what": what, "status": status, "detail": detail}


def checked(function, *arguments):
    """(status, detail) of a check that returns its good news and raises UserError for bad ones."""
    try:
        detail = function(*arguments)
    except UserError as error:
        return MISSING, one_line(error)
    return (NOTE, detail.removeprefix("note: ")) if detail.startswith("note: ") else (OK, detail)


# ----------------------------------------------------------------------------------------- the machine


def device(config):
    """The device the config takes, if it can compute in the config's precision."""
    found = pick_device(getattr(config, "device", "auto"))
    for field in ("mixed_precision", "precision"):
        if getattr(config, field, "auto") != "auto":
            pick_dtype(getattr(config, field), found, field)
    if found.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(found)}, CUDA {torch.version.cuda}"
    text = f"CPU with {os.cpu_count()} cores"
    large = getattr(config, "resolution", 0) > 192
    return f"note: {text}; pictures of this size want a GPU" if large else text


def memory(config):
    """Whether the device has the memory one process needs."""
    training = isinstance(config, TrainConfig)
    key = config.mixed_precision if training else config.precision
    need = memory_needed(config, VALUE_BYTES[key])
    if need is None:
        return f"note: {config.base_model} is not here yet; what it needs is known then"
    need = need / 2**30 + LIBRARIES_GIB
    found = pick_device(config.device)
    if found.type == "cuda":
        free = torch.cuda.mem_get_info(found)[0] / 2**30
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    if free < need:
        hint = "set --gradient-checkpointing or --mixed-precision bf16" if training else "lower batch_size"
        return f"note: {free:.1f} GiB free, about {need:.1f} GiB wanted; {hint}"
    return f"{free:.1f} GiB free, about {need:.1f} GiB wanted"


def disk(config):
    """Free space where the output goes, and what the run may write."""
    fields = ("output_folder", "embeds_folder", "source_folder", "class_folder")
    folder = Path(next(filter(None, (getattr(config, field, None) for field in fields)))).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    need = disk_needed(config)
    text = f"{free / 2**30:.1f} GiB free, up to {need / 2**30:.2f} GiB to be written"
    if free < need:
        raise UserError(f"{text}; free some space")
    return text


def disk_needed(config):
    """Bytes a run may write."""
    if isinstance(config, TrainConfig):
        return base_costs.disk_needed(config, len(find_identities(config.source_folder, config.identities)))
    if isinstance(config, InferenceConfig):
        return sampling.image_count(config) * 2 * config.resolution**2
    return 4096 * photo_count(config)


# ---------------------------------------------------------------------------------------------- weights


def base_model(config):
    """The base model's folder, or where a hub model comes from."""
    source = local_source(config)
    if source is None:
        name = config.base_model
        return f"note: {name} is fetched from the hub at the first run (some GB), or give a local folder"
    family, count = family_of(source).family, parameters(source)
    return f"{config.base_model}: {family}, {count / 1e6:,.1f} million weights"


def pack(config):
    """The detector and recogniser of the pack, where the config uses one."""
    if isinstance(config, TrainConfig):
        detects = config.with_prior_preservation or config.face_crop == "detect"
        if not any_needs_faces(config.objectives) or (config.recogniser and not detects):
            return "not needed"
    models = pack_models(config.pack)
    return f"{config.pack}: {', '.join(sorted(f'{kind} {Path(file).name}' for kind, file in models.items()))}"


def recogniser(config):
    """The weights of the identity loss."""
    if isinstance(config, TrainConfig) and not any_needs_faces(config.objectives):
        return NOT_NEEDED
    if config.recogniser is None:
        return "the pack's own"
    if not Path(config.recogniser).is_file():
        raise UserError(
            f"{config.recogniser}: not found; arcface_files/README.md says where to get it, or set "
            "--recogniser None to take the pack's own"
        )
    return config.recogniser


# ------------------------------------------------------------------------------------------------- data


def identities_of(config):
    """The identities a config is about."""
    return find_identities(config.source_folder, config.identities, getattr(config, "embeds_folder", None))


def photo_count(config):
    """Photos of all identities."""
    return sum(len(image_files(identity.images_dir)) for identity in identities_of(config))


def photos(config):
    """Identities and photos there are."""
    if isinstance(config, InferenceConfig) and not Path(config.source_folder).is_dir():
        return f"note: {config.source_folder} is not here; contact sheets will show no photos"
    if config.source_folder is None:
        return "class images only"
    found = identities_of(config)
    empty = [identity.name for identity in found if not image_files(identity.images_dir)]
    if empty:
        raise UserError(f"{len(empty)} of {len(found)} identities have no photo, first {empty[0]}; add some")
    return f"{len(found)} identities, {photo_count(config)} photos in {config.source_folder}"


def embeddings(config):
    """Whether extract_arcface_embeds.py has been at all identities."""
    if not any_needs_faces(config.objectives):
        return NOT_NEEDED
    found = identities_of(config)
    without = [one for one in found if not list(one.embeds_dir.glob("[!.]*.pt"))]
    faceless = [one for one in without if without_face(one.embeds_dir, image_files(one.images_dir))]
    if without and without == faceless:
        raise UserError(
            f"{len(without)} of {len(found)} identities have none, as no face was found to embed in their "
            f"photos, first {without[0].name}; add photos that show the face"
        )
    if without:
        raise UserError(
            f"{len(without)} of {len(found)} identities have none, first {without[0].name}; run "
            f"extract_arcface_embeds.py --source-folder {config.source_folder}"
            + (f" --embeds-folder {config.embeds_folder}" if config.embeds_folder else "")
        )
    return f"of all {len(found)} identities"


def classes(config):
    """Class images there are, and those the base model will make."""
    if not config.with_prior_preservation:
        return "not needed"
    count = len(image_files(class_images(config.class_folder).images_dir))
    if count >= config.num_class_images:
        return f"{count} in {config.class_folder}"
    return f"note: {count} of {config.num_class_images}; the base model makes the others first"


def consent(config):
    """Whether everybody's consent is there, holds, and allows what the script does."""
    purpose, problems = "generate" if isinstance(config, InferenceConfig) else "train", []
    for identity in identities_of(config):
        status, detail = checked(lambda person: check_consent(person, purpose).until, identity)
        problems += [detail] if status == MISSING else []
    if problems:
        raise UserError(f"{len(problems)} without: {'; '.join(problems[:CONSENT_SHOWN])}")
    return "valid for all identities"


if __name__ == "__main__":
    run(main)
