"""What id_booth/check_setup.py says of an evaluation: what is measured, and by which networks."""

from pathlib import Path

from arcface_files.face_pack import pack_models
from configs.evaluation_config import SOURCES
from utils.errors import UserError


def checks(config):
    """[(what, function, its arguments...)], where the function returns good news or raises UserError.

    A network that is missing is left out of a report, a pack is not.
    """
    wanted = [name for name in SOURCES if name.split("_")[0] in (*config.encoders, "clip", "quality")]
    wanted += ["pose_weights"] if config.pose == "6drepnet" else []
    return [
        ("photos", existing, config.real_folder),
        ("samples", existing, config.samples_folder),
        ("judge pack", judge_pack, config),
        ("reference", reference, config),
        *[(name, network, config, name) for name in wanted],
    ]


def judge_pack(config):
    """The pack of the independent judge, if any; without it nothing is evaluated."""
    if not config.judge_pack:
        return "note: none, so identity is judged by the recogniser of the training alone"
    return f"{config.judge_pack}: {', '.join(sorted(pack_models(config.judge_pack)))}"


def reference(config):
    """Photos of other people that sets are compared with, if any; without them those figures are missing."""
    if config.reference_folder is None or Path(config.reference_folder).is_dir():
        return config.reference_folder or "not asked for"
    return f"note: {config.reference_folder} is not here, so nothing is compared with it"


def existing(folder):
    """A folder that has to be there."""
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder")
    return folder


def network(config, field):
    """The file or folder that a field names, or where it is to be had."""
    place = getattr(config, field)
    if place is None:
        return f"note: none, so nothing is measured by it; to be had: {SOURCES[field]}"
    if not Path(place).expanduser().exists():
        raise UserError(f"{place}: not found; get {SOURCES[field]}")
    return place
