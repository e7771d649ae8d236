"""Whose pictures lie where, in our layouts and in those of the official code.

Photos    ROOT/ID_1/images/* with ROOT/ID_1/ArcFace_embeds/*, or the published data sets' ROOT/images/ID_1/*
          with ROOT/ArcFace_embeds/ID_1/*, where ROOT/images stands for ROOT
Classes   FOLDER/images/* with FOLDER/ArcFace_embeds/*; FOLDER/images, as officially given, stands for FOLDER
Samples   FOLDER/ID_1/*, or FOLDER/ID_1_checkpoint-31-6400_stable-diffusion-2-1-base/*
Crops     FOLDER/ID_1/*, or FOLDER/{label}_{name}

A person is who the folder's name says, in either normal form of Unicode.
"""

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from arcface_files.faces import ARCFACE_SIZE
from utils.errors import UserError
from utils.files import check_folder_name
from utils.identities import image_files, readable, report_left_out, same_name, subfolders
from utils.images import image_size
from utils.progress import log_once

IMAGES, EMBEDS = "images", "ArcFace_embeds"
# Folders beside people's that hold a picture of each of them.
OVERVIEWS = {"comparison", "contact_sheets", "contact_sheet"}
OFFICIAL_SAMPLES = re.compile(r"(.+)_checkpoint-[0-9]+-[0-9]+_.+")
OFFICIAL_CROP = re.compile(r"([0-9]+)_.+")


@dataclass(frozen=True)
class IdentityFolder:
    """One person's photos and the folder of the embeddings made from them."""

    name: str
    images_dir: Path
    embeds_dir: Path


# ------------------------------------------------------------------------------------------------ photos


@readable()
def find_identities(root, names=(), embeds_folder=None):
    """All identities under ``root``, in natural order, for both nestings in use.

    Args:
        names: keeps only those; an unknown one is a UserError.
        embeds_folder: where the embeddings are, EMBEDS_FOLDER/ID_1/*, instead of beside the photos.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder that holds the identities' photos")
    found = [*people_below(root_of(root)), *people_beside(root)]
    if not found:
        wanted = "expected ID_1/images/*.png or images/ID_1/*.png in it"
        raise UserError(f"{root}: no identity found; {wanted}{hint(root)}")
    if embeds_folder:
        found = [IdentityFolder(one.name, one.images_dir, Path(embeds_folder) / one.name) for one in found]
    return select_identities(refuse_equal_names(found), names, root)


def root_of(folder):
    """ROOT for ROOT/images; any other folder as it is."""
    folder = Path(folder)
    called = os.path.basename(os.path.abspath(folder))
    outer = folder.is_dir() and (os.path.isdir(folder / IMAGES) or people_beside(folder))
    return folder.parent if called == IMAGES and not outer else folder


def people_below(root):
    """The identities of ROOT/images/ID_1/*; none where ROOT/images is a flat folder of pictures."""
    images = Path(root) / IMAGES
    folders, loose = (subfolders(images), image_files(images)) if os.path.isdir(images) else ([], [])
    if loose and not any(map(image_files, folders)):
        return []
    report_left_out(images, loose if folders else [], "beside the folders of people")
    return [IdentityFolder(same_name(path.name), path, Path(root) / EMBEDS / path.name) for path in folders]


def people_beside(root):
    """The identities of ROOT/ID_1/images/*; a folder that this user may not look into is one too.

    So its person is named as failed wherever the photos are wanted, and not passed over.
    """
    found = [path for path in subfolders(root) if path.name != IMAGES]
    found = [path for path in found if os.path.isdir(path / IMAGES) or closed(path)]
    return [IdentityFolder(same_name(path.name), path / IMAGES, path / EMBEDS) for path in found]


def closed(folder):
    """Whether this user may not look into a folder."""
    return not os.access(folder, os.R_OK | os.X_OK, effective_ids=True)


def hint(root):
    """What to do with photos that lie right in the folders of people, as an addition to a message."""
    first = next((path for path in subfolders(root) if image_files(path)), None)
    return f"; {first.name}/* are photos: put these folders into a folder {IMAGES}" if first else ""


def refuse_equal_names(found):
    """The same identities; UserError for two folders of one person."""
    first = {}
    for one in found:
        if first.setdefault(one.name, one) is not one:
            raise UserError(
                f"{one.images_dir} and {first[one.name].images_dir}: are both of {one.name}; join them, or "
                "rename one"
            )
    return found


def select_identities(found, names, root):
    """The identities called ``names`` (all when empty); UserError for one that is not there."""
    by_name = {identity.name: identity for identity in found}
    for name in map(same_name, names):
        if name not in by_name:
            have = ", ".join(list(by_name)[:8]) + (", ..." if len(by_name) > 8 else "")
            raise UserError(f"identities: no {name!r} in {root}; there are {have}")
    return [by_name[same_name(name)] for name in names] if names else found


def named(folder, name):
    """The path of a name in ``folder``, in the spelling in which it is there."""
    spellings = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    paths = [Path(folder) / spelling for spelling in (name, *spellings)]
    return next((path for path in paths if os.path.lexists(path)), paths[1])


def identity_at(root, name):
    """The IdentityFolder of a name in either nesting; its photos need not be there.

    Raises:
        UserError: the name, which may come from a file, would lead to another folder.
    """
    check_folder_name(name)
    root = root_of(root)
    if os.path.isdir(folder := named(root / IMAGES, name)):
        return IdentityFolder(same_name(name), folder, root / EMBEDS / folder.name)
    folder = named(root, name)
    return IdentityFolder(same_name(name), folder / IMAGES, folder / EMBEDS)


def class_images(folder, embeds_folder=None):
    """A flat folder of class images in the form of an identity; they may also lie right in the folder.

    Args:
        embeds_folder: as for :func:`find_identities`.
    """
    folder, root, name = Path(folder), root_of(folder), "class images"
    flat = not os.path.isdir(folder / IMAGES) and image_files(folder)
    images = folder if root != folder or flat else folder / IMAGES
    return IdentityFolder(name, images, Path(embeds_folder) / name if embeds_folder else root / EMBEDS)


# ------------------------------------------------------------------------------------- samples and crops


@readable()
def people_in(folder, empty=False):
    """{person: picture files} of photos in either nesting, of samples or of crops, in natural order.

    Args:
        empty: a folder without pictures is a person too, not only one with an empty images/.

    Raises:
        UserError: no such folder, nobody in it, two folders of one person, or several methods' samples.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder that holds the identities")
    if below := people_below(folder):
        found = [*below, *people_beside(folder)]
        return {one.name: image_files(one.images_dir) for one in refuse_equal_names(found)}
    folders, loose, people = subfolders(folder), image_files(folder), {}
    for path in folders:
        nested = os.path.isdir(path / IMAGES)
        name, files = person_of(path.name), image_files(path / IMAGES if nested else path)
        if is_overview(path, files, folders):
            log_once(f"{path}: taken for overviews and passed over; rename the folder if it is a person")
        elif people.get(name) and files:
            raise UserError(f"{path} and {people[name][0].parent}: are both of {name}; move one away")
        elif files or nested or empty:
            people[name] = people.get(name) or files
    sets = [path for path in folders if path.name not in people and any(map(image_files, subfolders(path)))]
    if sets and all(name.lower() in OVERVIEWS for name in people):
        raise UserError(f"{folder}: holds samples of several methods; name one of them, such as {sets[0]}")
    if people:
        report_left_out(folder, loose, "beside the folders of people")
    if people := people or crops_by_label(loose):
        return people
    raise UserError(f"{folder}: no identity found; expected ID_1/images/*.png or ID_1/*.png in it")


def person_of(name):
    """Who the name of a folder says, that of the official code's samples too."""
    official = OFFICIAL_SAMPLES.fullmatch(name)
    return same_name(official[1] if official else name)


def is_overview(path, files, folders):
    """Whether a folder holds grids of pictures, one named after each of the people beside it."""
    people = tuple(other.name for other in folders if other != path)
    named = path.name.lower() in OVERVIEWS and files and people
    return bool(named) and all(file.name.startswith(people) for file in files)


def crops_by_label(files):
    """{label: files} of the official code's flat crops, 3_photo.jpg of the label 3; {} for other files."""
    labels = [OFFICIAL_CROP.fullmatch(file.stem) for file in files]
    if not files or not all(labels) or image_size(files[0]) != (ARCFACE_SIZE, ARCFACE_SIZE):
        return {}
    people = {}
    for file, label in zip(files, labels, strict=True):
        people.setdefault(str(int(label[1])), []).append(file)
    return people
