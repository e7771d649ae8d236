"""Recogniser training in seconds: crops that are colour patches, and settings for a tiny network."""

import numpy as np

from configs.fr_config import TrainFRConfig


def patches(people, views, seed=0):
    """(images uint8 (people * views, 112, 112, 3), labels): each person 4 x 4 colours, each view noisy."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(40, 215, (people, 1, 4, 4, 3)).repeat(28, 2).repeat(28, 3)
    images = patterns + rng.normal(0, 25, (people, views, 112, 112, 3))
    return np.clip(images, 0, 255).astype(np.uint8).reshape(-1, 112, 112, 3), np.arange(people).repeat(views)


def tiny_training(dataset, output, **changes):
    """Settings of a training on a few crops."""
    values = {
        "dataset": str(dataset),
        "output": str(output),
        "network": "iresnet_tiny",
        "embedding_size": 16,
        "dropout": 0.1,
        "optimizer": "adamw",
        "base_lr": 0.5,
        "batch_size": 4,
        "max_epochs": 2,
        "schedule": "onecycle",
        "stop_patience": 0,
        "held_out_identities": 2,
        "precision": "fp32",
        "threads": 1,
        "log_every": 2,
    }
    return TrainFRConfig(**values | changes)
