"""The face detector of the embedded default: trained on the miniature world, exported for insightface.

    python -m mini.build.detector              # train and export to mini/weights/pack/det_mini.onnx
    python -m mini.check --only detector       # how good it is, on held-out people

Running the same command again goes on from the last checkpoint in the build folder.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m mini.build.detector")

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from mini.build.detector_data import make_scene, render_pool
from mini.build.detector_net import DetectorNet, detection_loss, export_detector
from mini.paths import WEIGHTS, build_dir
from utils.errors import UserError, run
from utils.files import atomic_path
from utils.progress import log, progress
from utils.seeding import derive_seed

DEFAULT_PATH = WEIGHTS / "pack/det_mini.onnx"
FOLDER = build_dir() / "detector"
# Side of a training picture in pixels: (share of the steps, batch size), for about equal cost of each step.
SIZES = {128: (0.74, 48), 192: (0.10, 21), 256: (0.08, 12), 320: (0.08, 8)}
LEARNING_RATE, WEIGHT_DECAY, WARM_UP = 3e-3, 1e-4, 0.03
BOX_WEIGHT, LANDMARK_WEIGHT = 2.0, 0.6
AVERAGE = 0.998  # decay of the moving average of the weights that is exported
SAVE_EVERY = 200


@dataclass
class Training:
    """What a checkpoint holds: the network, its moving average, the optimiser, how far it is."""

    network: DetectorNet
    average: DetectorNet
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    def state(self):
        """Everything as one dict of tensors and plain values."""
        parts = {name: getattr(self, name).state_dict() for name in ("network", "average", "optimizer")}
        return {**parts, "step": self.step, "seconds": self.seconds}


def setup(checkpoint, seed):
    """A new Training, or the one saved in ``checkpoint``."""
    torch.manual_seed(derive_seed("detector weights", seed))
    network = DetectorNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    training = Training(network, copy.deepcopy(network).requires_grad_(False), optimizer)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for name in ("network", "average", "optimizer"):
            getattr(training, name).load_state_dict(saved[name])
        training.step, training.seconds = saved["step"], saved["seconds"]
        log(f"detector: going on from step {training.step}")
    return training


def train_detector(
    out_path: Path = DEFAULT_PATH,
    folder: Path = FOLDER,
    seed: int = 0,
    minutes: float | None = None,
    steps: int = 16000,
    faces: int = 6000,
    places: int = 1650,
):
    """Train the detector and write it to ``out_path`` as ONNX.

    Args:
        out_path: the .onnx file to write; loads as an SCRFD of insightface.
        folder: for renders and the checkpoint; the same call goes on from what is there.
        seed: of renders, initial weights and training scenes.
        minutes: time budget for training without the rendering; replaces ``steps``, and then the weights
            depend on the machine's speed.
        steps: optimisation steps.
        faces: how many faces to render.
        places: how many empty places to render.
    Returns:
        Path of the file.
    """
    folder = Path(folder)
    pool = render_pool(folder / "detector_pool", faces, places, seed)
    checkpoint = folder / f"detector_{seed}.pt"
    training = setup(checkpoint, seed)
    training.network.train()
    bar = progress(desc="detector", total=None if minutes else steps, initial=training.step)
    while (done := training.seconds / 60 / minutes if minutes else training.step / steps) < 1:
        started = time.monotonic()
        losses = train_step(training, pool, seed, done)
        training.step += 1
        training.seconds += time.monotonic() - started
        if training.step % SAVE_EVERY == 0:
            save(training, checkpoint)
            log(
                f"step {training.step:6d}  {training.seconds / 60:5.1f} min  score {losses[0]:.3f}  "
                f"box {losses[1]:.3f}  landmarks {losses[2]:.2f} % of the face's size"
            )
        bar.update()
    bar.close()
    save(training, checkpoint)
    export_detector(training.average, out_path)
    return Path(out_path)


def save(training, checkpoint):
    """Write the checkpoint, whole or not at all."""
    with atomic_path(checkpoint) as temporary:
        torch.save(training.state(), temporary)


def train_step(training, pool, seed, done):
    """One optimisation step; ``done`` is the finished share of the training. Returns the three losses."""
    rng = np.random.default_rng(derive_seed("detector step", seed, training.step))
    images, scenes = make_batch(pool, rng)
    losses = detection_loss(training.network(images), scenes)
    if not torch.isfinite(losses).all():
        raise UserError(f"detector: the loss is not finite at step {training.step}; train it again")
    for group in training.optimizer.param_groups:
        cosine = 0.02 + 0.49 * (1 + math.cos(math.pi * done))
        group["lr"] = LEARNING_RATE * min(1.0, done / WARM_UP + 0.01) * cosine
    training.optimizer.zero_grad()
    (losses[0] + BOX_WEIGHT * losses[1] + LANDMARK_WEIGHT * losses[2]).backward()
    torch.nn.utils.clip_grad_norm_(training.network.parameters(), 5.0)
    training.optimizer.step()
    decay = min(AVERAGE, training.step / (training.step + 10))
    average = training.average.state_dict()
    for name, value in training.network.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
    return losses.tolist()


def make_batch(pool, rng):
    """Images (N, 3, S, S) scaled as insightface scales them, and the targets :func:`detection_loss` takes."""
    size = int(rng.choice(list(SIZES), p=[share for share, _ in SIZES.values()]))
    scenes = [make_scene(pool, size, rng) for _ in range(SIZES[size][1])]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
    targets = [
        tuple(map(torch.from_numpy, (scene.boxes, scene.landmarks, scene.required))) for scene in scenes
    ]
    return (images.float() - 127.5) / 128, targets


def main():
    tyro.cli(train_detector, prog="python -m mini.build.detector", description=__doc__)


if __name__ == "__main__":
    run(main)
