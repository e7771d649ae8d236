"""Aligned face crops in memory: one uint8 array, labels, and names of the identities.

Three sources give the same CropSet: a folder of crops (SET/ID_1/*.png, as align_faces.py writes), a manifest
of augment_dataset.py (JSON), and a folder of crop arrays (images.npy, labels.npy, names.json), which are
memory-mapped.
"""

import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arcface_files.faces import ARCFACE_SIZE
from arcface_files.people import people_in, person_of
from utils import outputs
from utils.errors import UserError, one_line
from utils.files import atomic_path, atomic_write_json, read_json
from utils.images import image_size, load_image
from utils.progress import progress

MANIFEST_KIND = "fr-manifest"
DECODE_THREADS = 4
NO_NAME = re.compile("^$|[\0\ud800-\udfff]")  # what no file is called


@dataclass(frozen=True)
class CropSet:
    """images uint8 (N, 112, 112, 3) RGB; labels int64 (N,) in 0..len(names)-1; names of the identities."""

    images: np.ndarray
    labels: np.ndarray
    names: list[str]

    def __len__(self):
        return len(self.labels)

    def of(self, identities):
        """The subset of the given labels, relabelled 0, 1, ... in the order given."""
        new = {old: place for place, old in enumerate(identities)}
        rows = np.flatnonzero(np.isin(self.labels, list(identities)))
        labels = np.array([new[label] for label in self.labels[rows]], np.int64)
        return CropSet(RowView(self.images, rows), labels, [self.names[i] for i in identities])


class RowView:
    """Some rows of an image array, without copying it: only `view[indices]` and `len(view)`."""

    def __init__(self, images, rows):
        self.images, self.rows = images, rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.images[self.rows[index]]


def load_crops(source):
    """The crop set of a folder of crops, a manifest file or a folder of crop arrays.

    Raises:
        UserError: nothing there, an identity without images, a crop of another size, a broken file.
    """
    source = Path(source)
    if source.is_file():
        return load_manifest(source)
    if (source / "names.json").is_file():
        return load_crop_arrays(source)
    if not source.is_dir():
        tool = "augment_dataset" if source.suffix == ".json" else "align_faces"
        raise UserError(f"{source}: no such crop set; make it with python -m fr_training.{tool}")
    return decode(people_in(source, empty=True), source)


def load_manifest(path):
    """The crop set a manifest of augment_dataset.py lists; its paths are relative to the manifest.

    They stay in its folder, links followed: a manifest of others shall not pick files of this machine. One
    that lies where this process writes is its own (a study's), and may lead elsewhere.
    """
    path = Path(path)
    listing = manifest_listing(path)
    own = any(outputs.absolute(path).is_relative_to(folder) for folder in outputs.opened)
    check_listing(path, [file for files in listing.values() for file in files], None if own else path.parent)
    return decode(listing, path)


def source_folders(source):
    """The folders that a crop set is read from: itself, or those that a manifest's people lie in."""
    source = Path(source)
    if not source.is_file():
        return {source}
    files = [(name, file) for name, files in manifest_listing(source).items() for file in files]
    return {
        file.parent.parent if person_of(file.parent.name) == name else file.parent for name, file in files
    }


def manifest_listing(path):
    """Name -> files of a manifest; UserError where it is none."""
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("kind") != MANIFEST_KIND:
        raise UserError(f"{path}: not a manifest of augment_dataset.py")
    people = manifest.get("identities")
    if not isinstance(people, dict) or not all(map(is_listing, people.values())):
        raise UserError(f"{path}: damaged, entries without a file; make it again with augment_dataset.py")
    return {name: [path.parent / item["file"] for item in items] for name, items in people.items()}


def is_listing(items):
    """Whether a value is the list of an identity's crops, each a dict with the name of a file."""
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return False
    files = [item.get("file") for item in items]
    return all(isinstance(file, str) and not NO_NAME.search(file) for file in files)


def check_listing(path, files, root):
    """Refuse a list of crops that names a file twice, or one outside the folder ``root`` (None: anywhere)."""
    if len({*files}) < len(files):
        twice = next(file for file, count in Counter(files).items() if count > 1)
        raise UserError(f"{path}: lists {twice} twice; keep one of them")
    folders = {folder: folder.resolve() for folder in {file.parent for file in files}} if root else {}
    for file in files if root else ():
        plain = file.is_relative_to(root) and ".." not in file.relative_to(root).parts
        real = file.resolve() if os.path.islink(file) else folders[file.parent]
        if not plain or not real.is_relative_to(root.resolve()):
            raise UserError(
                f"{path}: {file} lies outside the manifest's folder; put the manifest into a folder with its "
                "crops"
            )


def load_crop(path):
    """An aligned crop, uint8 RGB (112, 112, 3); another size is refused before it is decoded."""
    height, width = image_size(path)
    if (height, width) != (ARCFACE_SIZE, ARCFACE_SIZE):
        raise UserError(
            f"{path}: {width} x {height} pixels, crops are 112 x 112; align them with "
            "fr_training/align_faces.py"
        )
    return load_image(path)


def decode(listing, source):
    """Read the files of `listing` (name -> files) into one array, decoding in parallel."""
    for name, files in listing.items():
        if not files:
            raise UserError(f"{source}: identity {name} has no images; remove its folder or add crops")
    files = [file for name in listing for file in listing[name]]
    labels = np.repeat(np.arange(len(listing)), [len(found) for found in listing.values()])
    images = np.empty((len(files), ARCFACE_SIZE, ARCFACE_SIZE, 3), np.uint8)

    def read(place):
        images[place] = load_crop(files[place])

    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        for _ in progress(pool.map(read, range(len(files))), f"read {Path(source).name}", len(files)):
            pass
    return CropSet(images, labels.astype(np.int64), list(listing))


def write_crop_arrays(folder, images, labels, names):
    """Write a folder of crop arrays, whole or not at all; arguments as CropSet's fields."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        np.save(temporary / "images.npy", np.ascontiguousarray(images, np.uint8))
        np.save(temporary / "labels.npy", np.asarray(labels, np.int64))
        atomic_write_json(temporary / "names.json", list(names))


def load_crop_arrays(folder):
    """The crop set in a folder of crop arrays; its images stay on the disk until they are used."""
    folder = Path(folder)
    names = read_json(folder / "names.json")
    images, labels = (memory_mapped(folder / f"{name}.npy") for name in ("images", "labels"))
    if not (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and images.dtype == np.uint8
        and images.shape == (*labels.shape, ARCFACE_SIZE, ARCFACE_SIZE, 3)
        and labels.ndim == 1
        and labels.dtype.kind in "iu"
        and np.array_equal(np.unique(labels), np.arange(len(names)))
    ):
        raise UserError(f"{folder}: images, labels and names do not fit together; write them again")
    return CropSet(images, np.array(labels, np.int64), names)


def memory_mapped(path):
    """The array in a .npy file, left on the disk; numpy refuses objects, and a shape that the file lacks."""
    try:
        if not path.is_file():
            raise ValueError("no such file")
        array = np.load(path, mmap_mode="r")
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive")
        return array
    except Exception as error:  # a crafted header can fail anywhere in numpy
        raise UserError(f"{path}: not a readable array ({one_line(error)[:160]}); write it again") from error
