"""Sets of images with the identity of each: the samples of a method, and the real photos."""

import functools
import operator
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arcface_files.people import people_in
from configs.inference_config import BASELINE
from evaluation.measurements import REAL
from id_booth.objectives import OBJECTIVES
from id_booth.sampling.provenance import read_record
from utils.errors import UserError, did_you_mean
from utils.identities import image_files, same_name, subfolders

REFERENCE = "reference photos"
SLACK = 2_000  # so many more images than wanted are kept by the published evaluation


@dataclass(frozen=True)
class ImageSet:
    """Image files and the identity of each, in natural order. `folder` is where they lie."""

    name: str
    folder: Path
    paths: tuple[Path, ...]
    labels: tuple[str, ...]

    def __len__(self):
        return len(self.paths)

    @property
    def identities(self):
        """The identities' names in order of appearance."""
        return list(dict.fromkeys(self.labels))


def real_photos(root, identities=()):
    """The photos below an identity folder in either nesting; UserError when there are none."""
    people = people_in(root)
    for name in identities:
        if same_name(name) not in people:
            raise UserError(f"identities: no {name!r} in {root}; there are {', '.join([*people][:8])}")
    wanted = [*map(same_name, identities)] or people
    return image_set(REAL, root, [(path, name) for name in wanted for path in people[name]])


def reference_photos(folder, most=None, slack=0, seed=0):
    """The photos in a flat folder, or `most` of them by :func:`published_rows`, before they are opened."""
    files = image_files(Path(folder)) if Path(folder).is_dir() else []
    if not files:
        raise UserError(f"{folder}: no images; give a flat folder of photos as reference_folder, or None")
    rows = published_rows(len(files), most or len(files), seed, slack)
    return image_set(REFERENCE, folder, [(files[i], files[i].stem) for i in rows])


def published_rows(count, most, seed=0, slack=SLACK):
    """Ascending row numbers of `most` of `count` images, drawn as in dgm-eval; all of up to most + slack."""
    if count <= most + slack:
        return np.arange(count)
    return np.sort(np.random.RandomState(seed).choice(count, most, replace=False))


def method_samples(folder, identities=()):
    """The samples of one method, FOLDER/{identity}/*.png; UserError when there are none, or of others.

    Args:
        identities: keep only these, silently; samples of others are none of this evaluation's business.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected samples in {folder}/ID_1/000.png")
    wanted = {*map(same_name, identities)}
    found = [(path, name) for name, files in people_in(folder).items() for path in files]
    if identities:
        found = [(path, name) for path, name in found if name in wanted]
    for path, name in found:
        refuse_other_person(path, name)
    return image_set(folder.name, folder, found)


def refuse_other_person(path, name):
    """UserError for a sample that says itself that it is of somebody else than its folder says."""
    person = (read_record(path) or {}).get("identity") or name
    if same_name(person) != name:
        raise UserError(f"{path}: is of {person!r}, in the folder of {name!r}; move it to its own folder")


def unequal_samples(methods):
    """What ImageSets lack of one another in people and samples, as a sentence; "" where nothing."""
    counts = {images.name: Counter(images.labels) for images in methods}
    most, lacking = functools.reduce(operator.or_, counts.values()), []
    for name, have in counts.items():
        if missing := most - have:
            people = [f"{person}: {have[person]} of {most[person]}" for person in [*missing][:5]]
            people += ["..."] * (len(missing) > 5)
            lacking.append(f"{name} has {have.total()} of {most.total()} samples ({', '.join(people)})")
    why = "Not the same people and numbers of samples, so no method is marked as the better"
    return f"{why}: {'; '.join(lacking)}." if lacking else ""


def image_set(name, folder, found):
    """An ImageSet of (path, identity) pairs; UserError for none."""
    if not found:
        raise UserError(f"{folder}: no images of any wanted identity; expected {folder}/ID_1/*.png")
    paths, labels = zip(*found, strict=True)
    return ImageSet(name, Path(folder), paths, labels)


def find_methods(samples_root, methods=()):
    """The method folders below a sample set's folder: the base model, the objectives, then others.

    Args:
        methods: picks and orders them.

    A folder that holds a single set stands for that set. A folder whose sub-folders hold images directly is
    one method.
    """
    root = Path(samples_root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give a sample set's folder, one folder per method in it")
    found = methods_in(root)
    sets = [path for path in subfolders(root) if methods_in(path)]
    if not found and holds_people(root):
        found = {root.name: root}
    elif not found and len(sets) == 1:
        root, found = sets[0], methods_in(sets[0])
    elif not found and sets:
        raise UserError(f"{root}: holds several sample sets; name one, for instance {sets[0]}")
    if not found:
        raise UserError(f"{root}: no method folder with samples; expected {root}/ID-Booth/ID_1/*.png")
    for name in methods:
        if name not in found:
            hint = did_you_mean(name, found)
            raise UserError(f"methods: no {name!r} in {root}; {hint}there are {', '.join(found)}")
    known = [name for name in (BASELINE, *OBJECTIVES) if name in found]
    names = methods or [*known, *(name for name in found if name not in known)]
    return [found[name] for name in names]


def methods_in(root):
    """{name: folder} of the sub-folders that hold identities with images."""
    return {path.name: path for path in subfolders(root) if holds_people(path)}


def holds_people(folder):
    """Whether a folder is one method's: people with images are in it."""
    try:
        return any(people_in(folder).values())
    except UserError:
        return False
