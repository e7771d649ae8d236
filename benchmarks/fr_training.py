"""An epoch of training a face recogniser: the published way, ours, and the bare network.

    python -m benchmarks.fr_training                     the miniature world's network
    python -m benchmarks.fr_training --geometry sd21     the paper's: iresnet50, batch 128

The published way reads and augments one file after another in the main process and fetches the loss at each
step; ours decodes the crops once and keeps them in memory. The floor is the network alone, forward and
backward on a batch that lies ready: no augmentation, clipping or optimiser.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from benchmarks.literal import train_fr_literally
from benchmarks.measure import alternate, describe_runs, report
from configs.fr_config import TrainFRConfig
from fr_training.augment import augment_batch
from fr_training.crops import load_crops
from fr_training.networks import to_input
from fr_training.train_fr import make_accelerator
from fr_training.trainer import Recogniser, Trainer, make_optimizer
from mini.face_world import render, sample_identity, sample_view
from mini.lab_photos import HELD_OUT
from utils.errors import run
from utils.faces import align
from utils.identities import image_files, subfolders
from utils.images import save_png
from utils.seeding import derive_seed

WAYS = {"literal": "published way", "ours": "ours", "floor": "network alone"}


@dataclass
class FRBenchmark:
    """What to measure."""

    geometry: Literal["mini", "sd21"] = "mini"
    """The miniature network at batch 32, or the paper's iresnet50 at batch 128."""
    people: int = 16
    """Identities in the set."""
    crops_each: int = 16
    """Crops of each."""
    rounds: int = 4
    """Epochs of each way."""


def main():
    """Render crops, run epochs of all ways, report."""
    options = tyro.cli(FRBenchmark, description=__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_crops(options, folder / "crops")
        runs = alternate(make_ways(options, folder), options.rounds)
    report_epochs(options, runs)


def write_crops(options, folder):
    """Rendered, aligned faces of held-out people."""
    for person in range(options.people):
        identity = sample_identity(HELD_OUT + person)
        for number in range(options.crops_each):
            picture = render(identity, sample_view(derive_seed(person, "crop", number), "wild"), 128)
            crop = align(picture.image, picture.landmarks)
            save_png(folder / f"ID_{person}" / f"{number:02d}.png", crop)


def make_config(options, folder):
    """The published training, at the size of the geometry."""
    small = {"network": "iresnet_tiny", "embedding_size": 128, "batch_size": 32}
    config = TrainFRConfig(dataset=str(folder / "crops"), augmentation="randaugment", selection="none",
                           precision="fp32", max_epochs=10_000)  # fmt: skip
    return replace(config, **small) if options.geometry == "mini" else config


def make_ways(options, folder):
    """dict of name -> function that does one epoch; all on the same crops and batch size."""
    config = make_config(options, folder)
    crops = load_crops(config.dataset)
    trainer = Trainer(config, crops, None, make_accelerator(config), folder / "run", seed=0)
    paths = [path for person in subfolders(folder / "crops") for path in image_files(person)]
    plain = Recogniser(config, len(crops.names)).train()
    optimizer = make_optimizer(config, plain)
    images, labels = crops.images[: config.batch_size], torch.from_numpy(crops.labels[: config.batch_size])
    ready = to_input(images).contiguous(memory_format=torch.channels_last)

    def literal(epoch):
        def augment(pixels, row):
            return augment_batch(pixels[None], config.augmentation, 0, epoch, [row])[0]

        order = np.random.default_rng(epoch).permutation(len(crops))
        train_fr_literally(plain, optimizer, paths, crops.labels, config.batch_size, augment, order)

    def floor(_):
        for _ in range(trainer.steps_per_epoch):
            trainer.model(ready, labels)[0].backward()
            trainer.model.zero_grad()

    return {"literal": literal, "ours": lambda epoch: trainer.run_epoch(epoch) and None, "floor": floor}


def report_epochs(options, runs):
    """Print the table and keep the figures."""
    figures = {name: describe_runs(run) for name, run in runs.items()}
    literal, floor = figures["literal"]["seconds"], figures["floor"]["seconds"]
    count = options.people * options.crops_each
    rows = [
        {"epoch": WAYS[name], "ms per image": round(1000 * f["seconds"] / count, 3),
         "quartiles": f"{1000 * f['low'] / count:.3f} to {1000 * f['high'] / count:.3f}",
         "times faster than published": round(literal / f["seconds"], 2),
         "times the floor": round(f["seconds"] / floor, 2)}
        for name, f in figures.items()
    ]  # fmt: skip
    report(f"fr_training_{options.geometry}", {"options": vars(options), "figures": figures}, rows)


if __name__ == "__main__":
    run(main)
