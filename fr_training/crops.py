"""Aligned face crops in memory: one uint8 array, labels, and names of the identities.

Three sources give the same CropSet: a folder of crops (SET/ID_1/*.png, as align_faces.py writes), a manifest
of augment_dataset.py (JSON), and a folder of crop arrays (images.npy, labels.npy, names.json), which are
memory-mapped.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arcface_files.faces import ARCFACE_SIZE
from utils.errors import UserError
from utils.files import atomic_path, atomic_write_json, read_json
from utils.identities import image_files, subfolders
from utils.images import load_image
from utils.progress import progress

MANIFEST_KIND = "fr-manifest"
DECODE_THREADS = 4


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
        raise UserError(f"{source}: no such crop set; make it with fr_training/align_faces.py")
    listing = {folder.name: image_files(folder) for folder in subfolders(source)}
    if not listing:
        raise UserError(
            f"{source}: no identity folders (ID_1/*.png) in it; make it with fr_training/align_faces.py"
        )
    return decode(listing, source)


def load_manifest(path):
    """The crop set a manifest of augment_dataset.py lists; its paths are relative to the manifest."""
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("kind") != MANIFEST_KIND:
        raise UserError(f"{path}: not a manifest of augment_dataset.py")
    root = Path(path).parent
    listing = {
        name: [root / item["file"] for item in items] for name, items in manifest["identities"].items()
    }
    return decode(listing, path)


def decode(listing, source):
    """Read the files of `listing` (name -> files) into one array, decoding in parallel."""
    for name, files in listing.items():
        if not files:
            raise UserError(f"{source}: identity {name} has no images; remove its folder or add crops")
    files = [file for name in listing for file in listing[name]]
    labels = np.repeat(np.arange(len(listing)), [len(found) for found in listing.values()])
    images = np.empty((len(files), ARCFACE_SIZE, ARCFACE_SIZE, 3), np.uint8)

    def read(place):
        image = load_image(files[place])
        if image.shape != images.shape[1:]:
            raise UserError(
                f"{files[place]}: {image.shape[1]} x {image.shape[0]} pixels, crops are 112 x 112; "
                "align them with fr_training/align_faces.py"
            )
        images[place] = image

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
    try:
        images = np.load(folder / "images.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: broken crop arrays ({error}); write them again") from error
    shape = (len(labels), ARCFACE_SIZE, ARCFACE_SIZE, 3)
    if (
        images.dtype != np.uint8
        or images.shape != shape
        or sorted(set(labels.tolist())) != list(range(len(names)))
    ):
        raise UserError(f"{folder}: images, labels and names do not fit together; write them again")
    return CropSet(images, labels, names)
