"""The augmented batches of a recogniser's training, made ahead by processes of their own where a GPU waits.

The processes change no image: each image's random stream derives from (seed, epoch, its place in the set).
"""

import functools
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from arcface_files.faces import ARCFACE_SIZE
from fr_training.augment import augment_batch
from utils.seeding import torch_generator

SHARED = Path("/dev/shm")
BATCHES_AHEAD = 2  # of each process
MOST_WORKERS = 8  # of one GPU: enough for several thousand crops a second


class AugmentedBatches(Dataset):
    """(images, labels) of this process's steps: uint8 (N, 112, 112, 3) and int64 (N,) tensors on the CPU.

    Args:
        config: TrainFRConfig. data: CropSet. accelerator: accelerate's. seed: of the run.
        steps: steps of an epoch.
    """

    def __init__(self, config, data, accelerator, seed, steps):
        self.config, self.data, self.seed, self.steps = config, data, seed, steps
        self.rank, self.processes = accelerator.process_index, accelerator.num_processes
        self.epoch, self.on_gpu = 0, accelerator.device.type == "cuda"
        self.workers = worker_count(config.workers, self.on_gpu, config.batch_size)
        self.loader = None

    def of_epoch(self, epoch):
        """The batches of an epoch in the order of its steps."""
        self.epoch = epoch
        if not self.workers:
            return (self[epoch, step] for step in range(self.steps))
        if self.loader is None:  # its processes stay for the epochs to come
            self.loader = DataLoader(
                self,
                batch_size=None,
                sampler=Steps(self),
                num_workers=self.workers,
                prefetch_factor=BATCHES_AHEAD,
                persistent_workers=True,
                pin_memory=self.on_gpu,
                worker_init_fn=leave_threads_alone,
                multiprocessing_context="fork",
            )
        return self.loader

    def __getitem__(self, place):
        epoch, step = place
        order, size = epoch_order(self.seed, epoch, len(self.data)), self.config.batch_size
        start = (step * self.processes + self.rank) * size
        rows = np.sort(order[start : start + size])
        images = augment_batch(self.data.images[rows], self.config.augmentation, self.seed, epoch, rows)
        labels = np.ascontiguousarray(self.data.labels[rows])
        return torch.from_numpy(np.require(images, requirements="CW")), torch.from_numpy(labels)


class Steps:
    """The (epoch, step) places of the epoch that the batches are at, for a DataLoader."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return ((self.batches.epoch, step) for step in range(self.batches.steps))

    def __len__(self):
        return self.batches.steps


@functools.lru_cache(maxsize=1)
def epoch_order(seed, epoch, length):
    """The (length,) order in which the images of a set come in an epoch, the same on every process."""
    return torch.randperm(length, generator=torch_generator("fr order", seed, epoch)).numpy()


def worker_count(wanted, on_gpu, batch_size):
    """Processes that augment: as many as wanted, or of a GPU its share of the cores less one, at most 8.

    They hand batches over in shared memory, of which a container may have 64 MB: half of what is free.
    """
    if wanted is not None:
        return wanted
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    most = min(MOST_WORKERS, (os.cpu_count() or 1) // processes - 1)
    if SHARED.is_dir():
        each = BATCHES_AHEAD * batch_size * 3 * ARCFACE_SIZE**2
        most = min(most, shutil.disk_usage(SHARED).free // 2 // processes // each)
    return max(0, most) if on_gpu else 0


def leave_threads_alone(_):
    """OpenCV's threads do not survive a fork."""
    cv2.setNumThreads(0)
