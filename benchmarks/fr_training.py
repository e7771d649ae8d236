"""An epoch of training a face recogniser: the published way, ours, and the bare network; reading a benchmark.

    python -m benchmarks.fr_training                     the miniature world's network
    python -m benchmarks.fr_training --geometry sd21     the paper's: iresnet50, batch 128
    python -m benchmarks.fr_training --geometry sd21 --device cuda --precision bf16

The published way reads and augments one file after another in the main process and fetches the loss at each
step; ours decodes the crops once and keeps them in memory. The floor is the network alone, forward and
backward on one batch: no augmentation, clipping or optimiser. Also the time to read a verification file of
6,000 pairs and to compute their ten-fold accuracy.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m benchmarks.fr_training")

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from arcface_files.faces import align
from benchmarks.literal import train_fr_literally
from benchmarks.measure import alternate, describe_runs, report, speed_rows
from configs.fr_config import TrainFRConfig
from fr_training.augment import augment_batch
from fr_training.benchmark_bin import read_bin, write_bin
from fr_training.crops import load_crops
from fr_training.networks import to_input
from fr_training.optimizer import make_optimizer
from fr_training.train_fr import make_accelerator
from fr_training.trainer import Recogniser, Trainer
from fr_training.verification import ten_fold_accuracy
from mini.face_world import render, sample_identity, sample_view
from mini.world.identity import HELD_OUT
from utils.errors import run
from utils.identities import image_files, subfolders
from utils.images import save_png
from utils.seeding import derive_seed

WAYS = {"literal": "published way", "ours": "ours", "floor": "network alone"}


@dataclass
class FRBenchmark:
    """What to measure."""

    geometry: Literal["mini", "sd21"] = "mini"
    """The miniature network at batch 32, or the paper's iresnet50 at batch 128."""
    device: str = "cpu"
    """cpu or cuda; what is not there is refused."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of all ways."""
    people: int = 16
    """Identities in the set."""
    crops_each: int = 16
    """Crops of each."""
    different: int = 0
    """Render only so many crops of each and copy them; 0 renders all."""
    rounds: int = 4
    """Epochs of each way."""
    pairs: int = 6000
    """Pairs of the verification file."""


def main():
    """Render crops, run epochs of all ways, report."""
    options = tyro.cli(FRBenchmark, description=__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_crops(options, folder / "crops")
        runs = alternate(make_ways(options, folder), options.rounds, device=options.device)
        reading = time_verification(options.pairs, folder)
    report_epochs(options, runs, reading)


def write_crops(options, folder):
    """Rendered, aligned faces of held-out people."""
    rendered = options.different or options.crops_each
    for person in range(options.people):
        identity = sample_identity(HELD_OUT + person)
        for number in range(rendered):
            picture = render(identity, sample_view(derive_seed(person, "crop", number), "wild"), 128)
            crop = align(picture.image, picture.landmarks)
            for copy in range(number, options.crops_each, rendered):
                save_png(folder / f"ID_{person}" / f"{copy:02d}.png", crop)


def make_config(options, folder):
    """The published training, at the size of the geometry."""
    small = {"network": "iresnet_tiny", "embedding_size": 128, "batch_size": 32}
    config = TrainFRConfig(
        dataset=str(folder / "crops"),
        augmentation="randaugment",
        selection="none",
        precision=options.precision,
        device=options.device,
        max_epochs=10_000,
    )
    return replace(config, **small) if options.geometry == "mini" else config


def make_ways(options, folder):
    """dict of name -> function that does one epoch; all on the same crops and batch size."""
    config = make_config(options, folder)
    crops = load_crops(config.dataset)
    trainer = Trainer(config, crops, None, make_accelerator(config), folder / "run", seed=0)
    paths = [path for person in subfolders(folder / "crops") for path in image_files(person)]
    device = trainer.accelerator.device
    plain = Recogniser(config, len(crops.names)).train().to(device)
    optimizer = make_optimizer(config, plain)
    images, labels = crops.images[: config.batch_size], torch.from_numpy(crops.labels[: config.batch_size])
    ready, labels = to_input(images, device).contiguous(memory_format=trainer.layout), labels.to(device)

    def literal(epoch):
        def augment(pixels, row):
            return augment_batch(pixels[None], config.augmentation, 0, epoch, [row])[0]

        order = np.random.default_rng(epoch).permutation(len(crops))
        half = config.precision == "bf16"
        train_fr_literally(plain, optimizer, paths, crops.labels, config.batch_size, augment, order, half)

    def floor(_):
        for _ in range(trainer.steps_per_epoch):
            with trainer.accelerator.autocast():
                loss = trainer.model(ready, labels)[0]
            loss.backward()
            trainer.model.zero_grad()

    return {"literal": literal, "ours": lambda epoch: trainer.run_epoch(epoch) and None, "floor": floor}


def time_verification(pairs, folder):
    """Seconds to read a verification file, and for the ten-fold accuracy of embeddings of 512 numbers."""
    crops = load_crops(str(folder / "crops")).images
    rng = np.random.default_rng(0)
    same = np.arange(pairs) % 2 == 0
    write_bin(folder / "pairs.bin", crops[rng.integers(len(crops), size=2 * pairs)], same)
    first, second = rng.normal(size=(2, pairs, 512)).astype(np.float32)
    started = time.perf_counter()
    read_bin(folder / "pairs.bin")
    read = time.perf_counter()
    ten_fold_accuracy(first, second, same)
    return {"read .bin, s": read - started, "ten folds, s": time.perf_counter() - read, "pairs": pairs}


def report_epochs(options, runs, reading):
    """Print the table and keep the figures."""
    figures = {name: describe_runs(run) for name, run in runs.items()}
    count = options.people * options.crops_each
    rows = speed_rows(figures, WAYS, "epoch", "ms per image", 1000 / count, 3)
    result = {"options": vars(options), "figures": figures, "verification": reading}
    report(f"fr_training_{options.geometry}", result, rows, device=options.device)
    print("  ".join(f"{name} {value:.4g}" for name, value in reading.items()))


if __name__ == "__main__":
    run(main)
