"""The rendered training set of the base model: shards of pictures with their captions' attributes."""

import concurrent.futures
import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mini.build.captions import names
from mini.build.tokenizer import NAMES
from mini.face_world import render, sample_identity, sample_view
from mini.world.identity import TRAINING_PEOPLE
from utils.files import atomic_path, atomic_write_json, read_json
from utils.progress import progress
from utils.seeding import derive_seed

SHARD = 250
LAB_EVERY = 8
NAMED_LAB_EVERY = 4


@dataclass
class RenderedSet:
    """images: uint8 RGB (N, 128, 128, 3).  landmarks: float32 (N, 5, 2).  boxes: float32 (N, 4) face boxes.
    attributes: N mappings for ``mini.build.captions.caption``."""

    images: np.ndarray
    landmarks: np.ndarray
    boxes: np.ndarray
    attributes: list

    def __len__(self):
        return len(self.images)


def render_training_image(index, seed, size=128):
    """Picture ``index`` of the training set, and the name of the person, or None.

    Even pictures show the NAMES people with names in turn, every fourth time in the lab; odd ones each show
    another person without a name, every eighth in the lab.
    """
    turn, who = divmod(index // 2, NAMES)
    named = index % 2 == 0
    lab = turn % NAMED_LAB_EVERY == NAMED_LAB_EVERY - 1 if named else index % LAB_EVERY == LAB_EVERY - 1
    identity = sample_identity(who if named else (NAMES + index) % TRAINING_PEOPLE)
    view = sample_view(derive_seed("base training set", seed, index), "lab" if lab else "wild")
    return render(identity, view, size), names(NAMES)[who] if named else None


def render_shard(folder, shard, count, seed):
    """Render one shard and write it: ``.npy`` (pictures) and ``.json`` (the rest, written last)."""
    rendered = [render_training_image(shard * SHARD + i, seed) for i in range(count)]
    stem = Path(folder) / f"shard_{shard:05d}"
    with atomic_path(stem.with_suffix(".npy")) as temporary, open(temporary, "wb") as stream:
        np.save(stream, np.stack([r.image for r, _ in rendered]))
    truth = [
        dict(
            landmarks=r.landmarks.tolist(),
            box=[float(v) for v in r.box],
            attributes={**r.attributes, "name": name},
        )
        for r, name in rendered
    ]
    atomic_write_json(stem.with_suffix(".json"), truth)


def missing_shards(folder, count):
    """(shard number, pictures in it) of the shards of a set of ``count`` pictures that are not on disk."""
    sizes = [(first // SHARD, min(SHARD, count - first)) for first in range(0, count, SHARD)]
    return [(shard, size) for shard, size in sizes if not (Path(folder) / f"shard_{shard:05d}.json").exists()]


def render_set(folder, count, seed, processes=1):
    """Render what is missing of a set of ``count`` pictures; the pixels do not depend on ``processes``."""
    todo = missing_shards(folder, count)
    Path(folder).mkdir(parents=True, exist_ok=True)
    if processes == 1:
        for shard, size in progress(todo, desc="render (shards)"):
            render_shard(folder, shard, size, seed)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        jobs = [pool.submit(render_shard, folder, shard, size, seed) for shard, size in todo]
        finished = concurrent.futures.as_completed(jobs)
        try:
            for job in progress(finished, desc="render (shards)", total=len(jobs)):
                job.result()
        except BaseException:
            # Leaving the pool's block waits for its jobs; on an interrupt those still queued are dropped.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def load_attributes(folder, count):
    """The attributes alone of the first ``count`` pictures of a rendered set."""
    shards = [Path(folder) / f"shard_{first // SHARD:05d}.json" for first in range(0, count, SHARD)]
    return [item["attributes"] for shard in shards for item in read_json(shard)][:count]


def load_set(folder, count):
    """The first ``count`` pictures of a rendered set as a RenderedSet, in memory (49 KB a picture)."""
    images, truth = [], []
    for first in range(0, count, SHARD):
        stem = Path(folder) / f"shard_{first // SHARD:05d}"
        images.append(np.load(stem.with_suffix(".npy")))
        truth.extend(read_json(stem.with_suffix(".json")))
    return RenderedSet(
        images=np.concatenate(images)[:count],
        landmarks=np.float32([item["landmarks"] for item in truth])[:count],
        boxes=np.float32([item["box"] for item in truth])[:count],
        attributes=[item["attributes"] for item in truth][:count],
    )
