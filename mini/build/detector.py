"""The face detector of the embedded default: trained on the miniature world, exported for insightface.

    python -m mini.build.detector                # train and export to mini/weights/pack/det_mini.onnx
    python -m mini.build.detector --check-only   # the figures of the exported file on fresh people

Running the same command again goes on from the last checkpoint in the build folder.
"""

import copy
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import tyro

from arcface_files.face_pack import open_network
from mini.build.detector_data import make_scene, render_pool
from mini.build.detector_net import DetectorNet, detection_loss, export_detector
from mini.face_world import render, render_background, sample_identity, sample_view
from mini.paths import WEIGHTS, build_dir
from mini.world.backgrounds import BACKGROUNDS
from utils.errors import UserError, run
from utils.files import atomic_path
from utils.identities import image_files
from utils.images import load_image
from utils.progress import log, progress
from utils.seeding import derive_seed

DEFAULT_PATH = WEIGHTS / "pack/det_mini.onnx"
HELD_OUT = 1_000_000  # identity seeds from here on are in no training set
FACES, PLACES = 6000, 1650
# Side of a training picture in pixels: (share of the steps, pictures per step); a step costs about the same.
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


def train_detector(out_path, build_dir, seed=0, minutes=None, steps=16000, faces=FACES, places=PLACES):
    """Train the detector and write it to ``out_path`` as ONNX.

    Args:
        out_path: the .onnx file to write; loads as an SCRFD of insightface.
        build_dir: folder for renders and the checkpoint; the same call goes on from what is there.
        minutes: time budget for training without the rendering; replaces ``steps``, and then the weights
            depend on the machine's speed.
        steps: optimisation steps.
        faces, places: how many faces and empty places to render.
    Returns:
        Path of the file.
    """
    build_dir = Path(build_dir)
    pool = render_pool(build_dir / "detector_pool", faces, places, seed)
    checkpoint = build_dir / f"detector_{seed}.pt"
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
    """One optimisation step; ``done`` is the part of the training behind us. Returns the three losses."""
    rng = np.random.default_rng(derive_seed("detector step", seed, training.step))
    images, scenes = make_batch(pool, rng)
    losses = detection_loss(training.network(images), scenes)
    if not torch.isfinite(losses).all():
        raise FloatingPointError(f"detector: the loss is not finite at step {training.step}")
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
    targets = [tuple(map(torch.from_numpy, (scene.boxes, scene.landmarks, scene.counts))) for scene in scenes]
    return (images.float() - 127.5) / 128, targets


def check_detector(path, n=2000, places=1000, photos=None):
    """Figures of an exported detector, run through insightface, on people and places it was not trained on.

    Args:
        path: the .onnx file.
        n: held-out faces, wild views with |yaw| up to 60 degrees, 128 x 128 pixels, score threshold 0.5.
        places: backgrounds without a person.
        photos: a folder of photos with one face each, or None.
    Returns:
        dict: megabytes; found (part of the faces matched at IoU 0.5); found_blurred (the same pictures scaled
        to half and back); false_on_faces (surplus detections per 100 faces); landmark_error (mean distance
        over the projected inter-ocular distance, part) and its 95th percentile; false_on_places (per 100);
        for photos, by detector size, the parts with at least one and with exactly one face.
    """
    detector = open_detector(path)
    renderings = [held_out(index) for index in progress(range(n), "rendering held-out faces")]
    figures = {"megabytes": round(Path(path).stat().st_size / 1e6, 3), "faces": n, "places": places}
    figures.update(face_figures(detector, renderings))
    softened = [soften(rendering.image) for rendering in renderings]
    figures["found_blurred"] = face_figures(detector, renderings, softened)["found"]
    names = [BACKGROUNDS[index % len(BACKGROUNDS)] for index in range(places)]
    empty = (render_background(name, HELD_OUT + index) for index, name in enumerate(names))
    figures["false_on_places"] = 100 * float(np.mean([len(detect(detector, image)[0]) for image in empty]))
    return {**figures, **(photo_figures(detector, photos) if photos else {})}


def open_detector(path):
    """insightface's detector object for a file."""
    detector = open_network(path, "cpu")
    detector.prepare(-1, det_thresh=0.5)
    return detector


def detect(detector, image, size=128):
    """Boxes with scores (F, 5) and landmarks (F, 5, 2) in a uint8 RGB image, by insightface's own code."""
    return detector.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), input_size=(size, size))


def held_out(index):
    """A rendering of a person and a view that no training saw."""
    identity = sample_identity(HELD_OUT + index)
    return render(identity, sample_view(derive_seed("held-out view", index) % 2**40 + HELD_OUT, "wild"))


def soften(image):
    """The picture scaled to half and back: about what a small VAE leaves of it."""
    small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def face_figures(detector, renderings, images=None):
    """The part of the faces found, the surplus detections, the landmark errors."""
    matched, surplus, errors = 0, 0, []
    for rendering, image in zip(renderings, images or [one.image for one in renderings], strict=True):
        boxes, landmarks = detect(detector, image)
        overlaps = [box_iou(box[:4], rendering.box) for box in boxes]
        best = int(np.argmax(overlaps)) if overlaps else None
        hit = best is not None and overlaps[best] >= 0.5
        matched, surplus = matched + hit, surplus + len(boxes) - hit
        if hit:
            eyes = np.linalg.norm(rendering.landmarks[0] - rendering.landmarks[1])
            errors.append(np.linalg.norm(landmarks[best] - rendering.landmarks, axis=1).mean() / eyes)
    errors, count = errors or [float("nan")], len(renderings)
    return {
        "found": matched / count,
        "false_on_faces": 100 * surplus / count,
        "landmark_error": float(np.mean(errors)),
        "landmark_error_p95": float(np.percentile(errors, 95)),
    }


def box_iou(first, second):
    """Intersection over union of two boxes x1, y1, x2, y2."""
    inner = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    intersection = float(np.prod(np.maximum(inner, 0)))
    areas = [float(np.prod(box[2:] - box[:2])) for box in (first, second)]
    return intersection / (sum(areas) - intersection)


def photo_figures(detector, folder, sizes=(128, 192, 256, 320)):
    """By detector size, the parts of real photos in which at least one, and exactly one, face is found."""
    folders = [Path(folder), *sorted(Path(folder).glob("*/"))]
    paths = [path for place in folders for path in image_files(place)]
    if not paths:
        raise UserError(f"{folder}: no photos in this folder; give one with .png or .jpg files")
    images, figures = [load_image(path) for path in paths], {"photos": len(paths)}
    for size in sizes:
        counts = np.array([len(detect(detector, image, size)[0]) for image in images])
        figures[f"photos_found_{size}"] = float((counts > 0).mean())
        figures[f"photos_one_face_{size}"] = float((counts == 1).mean())
    return figures


@dataclass
class Arguments:
    """Train the mini face detector, export it, and print its figures."""

    out: Path = DEFAULT_PATH
    """The ONNX file to write, or to check."""
    build_dir: Path = field(default_factory=build_dir)
    """Folder for renders and the checkpoint."""
    seed: int = 0
    """Seed of renders, initial weights and training scenes."""
    steps: int = 16000
    """Optimisation steps."""
    minutes: float | None = None
    """Time budget for training instead of steps; the result then depends on the machine's speed."""
    check_only: bool = False
    """Do not train; print the figures of the file."""
    faces: int = 2000
    """Held-out faces in the check."""
    photos: Path | None = None
    """Folder of real photos with one face each to try as well."""


def main(arguments=None):
    """Entry point."""
    options = tyro.cli(Arguments, args=arguments)
    if not options.check_only:
        train_detector(options.out, options.build_dir, options.seed, options.minutes, options.steps)
    if not options.out.is_file():
        raise UserError(f"{options.out}: no such file; train the detector first")
    for name, value in check_detector(options.out, options.faces, options.faces // 2, options.photos).items():
        print(f"{name:22s} {value:.4f}" if isinstance(value, float) else f"{name:22s} {value}")


if __name__ == "__main__":
    run(main)
