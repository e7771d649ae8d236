"""Aligned crops of rendered people, for training and judging the miniature recogniser.

A set is a folder of crop arrays (fr_training/crops.py).
"""

from pathlib import Path

import numpy as np

from arcface_files.faces import align
from fr_training.crops import write_crop_arrays
from mini.chunks import chunked
from mini.face_world import render, sample_identity, sample_view
from mini.world.identity import HELD_OUT
from utils.files import remove
from utils.seeding import derive_seed

TRAIN_IDENTITIES, TRAIN_VIEWS = 1500, 12
HELD_OUT_IDENTITIES, HELD_OUT_VIEWS = 200, 10
LAB_SHARE = 0.25
LANDMARK_NOISE = 0.02  # error of a good detector, of the distance between the eyes
SHARD = 100  # identities per temporary file; an interrupted rendering goes on from there


def aligned_crop(identity_seed, view_seed, setting, noise=LANDMARK_NOISE):
    """One rendered photo, aligned by its true landmarks plus a detector's error: uint8 (112, 112, 3)."""
    picture = render(sample_identity(identity_seed), sample_view(view_seed, setting))
    rng = np.random.default_rng(derive_seed("landmark noise", identity_seed, view_seed))
    landmarks = np.asarray(picture.landmarks, np.float32)
    span = np.linalg.norm(landmarks[4] - landmarks[0])  # eye to far mouth corner: stable over yaw
    return align(picture.image, landmarks + rng.normal(0, noise * span * 0.6, (5, 2)).astype(np.float32))


def identity_crops(identity_seed, views, lab_share):
    """(views, 112, 112, 3) uint8 crops of one person; the first `lab_share` of them are lab photos."""
    lab = round(views * lab_share)
    seeds = [derive_seed("recogniser view", identity_seed, view) for view in range(views)]
    return np.stack(
        [
            aligned_crop(identity_seed, seed, "lab" if view < lab else "wild")
            for view, seed in enumerate(seeds)
        ]
    )


def render_set(folder, first_seed, identities, views, lab_share):
    """The folder of a set of `identities` people with `views` crops each; finished parts are kept."""
    folder = Path(folder)
    if (folder / "names.json").is_file():
        return folder

    def render_people(numbers):
        return {"crops": np.stack([identity_crops(first_seed + n, views, lab_share) for n in numbers])}

    parts = folder.parent / f".{folder.name}_parts"
    crops = chunked(parts, f"{folder.name}_{views}", identities, render_people, SHARD)["crops"]
    names = [f"ID_{first_seed + number}" for number in range(identities)]
    write_crop_arrays(
        folder, crops.reshape(-1, *crops.shape[2:]), np.repeat(np.arange(identities), views), names
    )
    remove(parts)
    return folder


def training_set(folder):
    """The training set below the build's `folder`, rendered when missing (about ten minutes on one core)."""
    place = Path(folder) / "recogniser_data/train"
    return render_set(place, 0, TRAIN_IDENTITIES, TRAIN_VIEWS, LAB_SHARE)


def held_out_set(folder):
    """The held-out set beside the training set: wild photos only."""
    place = Path(folder) / "recogniser_data/held_out"
    return render_set(place, HELD_OUT, HELD_OUT_IDENTITIES, HELD_OUT_VIEWS, 0.0)
