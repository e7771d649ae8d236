"""Aligned crops of rendered people, for training and judging the miniature recogniser.

    python -m mini.build.recogniser_data            # writes MINI_BUILD_DIR/recogniser_data/{train,held_out}

People of training have seeds 0 to 99,999, held-out people from 1,000,000 on. A set is a folder of images.npy
(uint8 (N, 112, 112, 3)), labels.npy (int64) and names.json, which fr_training reads as it reads crop folders.
"""

from pathlib import Path

import numpy as np

from arcface_files.faces import align
from fr_training.crops import write_crop_arrays
from mini.face_world import render, sample_identity, sample_view
from mini.paths import build_dir
from utils.errors import run
from utils.files import atomic_path
from utils.progress import progress
from utils.seeding import derive_seed

HELD_OUT_SEED = 1_000_000
TRAIN_IDENTITIES, TRAIN_VIEWS = 1500, 12
HELD_OUT_IDENTITIES, HELD_OUT_VIEWS = 200, 10
LAB_SHARE = 0.25
LANDMARK_NOISE = 0.02  # of the distance between the eyes: what a good detector is off by
SHARD = 100  # identities per file on the way, so that an interrupted rendering goes on


def aligned_crop(identity_seed, view_seed, setting, noise=LANDMARK_NOISE):
    """One rendered photo, aligned by its true landmarks plus a detector's error: uint8 (112, 112, 3)."""
    picture = render(sample_identity(identity_seed), sample_view(view_seed, setting))
    rng = np.random.default_rng(derive_seed("landmark noise", identity_seed, view_seed))
    landmarks = np.asarray(picture.landmarks, np.float32)
    eyes = np.linalg.norm(landmarks[4] - landmarks[0])  # eye to far mouth corner: stable over yaw
    return align(picture.image, landmarks + rng.normal(0, noise * eyes * 0.6, (5, 2)).astype(np.float32))


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
    parts = folder.parent / f".{folder.name}_parts"
    files = [parts / f"{start}_{views}.npy" for start in range(0, identities, SHARD)]
    with progress(desc=f"render {folder.name}", total=identities) as bar:
        for file, start in zip(files, range(0, identities, SHARD), strict=True):
            seeds = range(first_seed + start, first_seed + min(start + SHARD, identities))
            if not file.is_file():
                crops = np.concatenate([identity_crops(seed, views, lab_share) for seed in seeds])
                with atomic_path(file) as temporary, open(temporary, "wb") as stream:
                    np.save(stream, crops)
            bar.update(len(seeds))
    images = np.concatenate([np.load(file) for file in files])
    labels = np.repeat(np.arange(identities), views)
    write_crop_arrays(folder, images, labels, [f"ID_{first_seed + i}" for i in range(identities)])
    for file in files:
        file.unlink()
    return folder


def training_set(folder=None, identities=TRAIN_IDENTITIES, views=TRAIN_VIEWS):
    """The folder of the training set, rendered when missing (about ten minutes on one core)."""
    return render_set(
        Path(folder or build_dir()) / "recogniser_data" / "train", 0, identities, views, LAB_SHARE
    )


def held_out_set(folder=None, identities=HELD_OUT_IDENTITIES, views=HELD_OUT_VIEWS):
    """The folder of the held-out set: wild photos only."""
    return render_set(
        Path(folder or build_dir()) / "recogniser_data" / "held_out", HELD_OUT_SEED, identities, views, 0.0
    )


def main():
    print(training_set())
    print(held_out_set())


if __name__ == "__main__":
    run(main)
