"""Learning rate, best epoch and early stopping, as pure functions of the validation scores so far.

So every process decides the same from the same list of scores, and a resumed run as an uninterrupted one.
"""

import math

import numpy as np

RELATIVE_THRESHOLD = 1e-4  # an improvement must beat the best by this factor, as in ReduceLROnPlateau


def published_learning_rate(base, batch_size, num_processes):
    """lr = base * images per step / 512 (base 0.1: 0.025 for one process of 128 images)."""
    return base * batch_size * num_processes / 512


def improves(score, best):
    """Whether `score` (higher is better) beats `best` by more than the threshold."""
    return best is None or score > best + RELATIVE_THRESHOLD * abs(best)


def plateau_drops(scores, patience):
    """How often the rate has dropped: each time more than `patience` epochs in a row were no better."""
    best, bad, drops = None, 0, 0
    for score in scores:
        if improves(score, best):
            best, bad = score, 0
        else:
            bad += 1
        if bad > patience:
            drops, bad = drops + 1, 0
    return drops


def epochs_without_gain(scores):
    """Epochs since the last improvement."""
    best, bad = None, 0
    for score in scores:
        best, bad = (score, 0) if improves(score, best) else (best, bad + 1)
    return bad


def best_epoch(scores):
    """The first epoch with the highest score; None when there is none."""
    return int(np.argmax(scores)) if scores else None


def learning_rate(config, peak, step, total_steps, steps_per_epoch, scores):
    """The rate of one step.

    Args:
        config: with schedule, warmup_epochs, milestones, lr_factor, lr_patience.
        peak: the rate after the warm-up.
        step: 0 for the first step of the run; `total_steps` and `steps_per_epoch` of the run.
        scores: validation scores of the epochs so far.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    ramp = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
    if config.schedule == "onecycle":
        after = min(1.0, max(0.0, (step - warmup) / max(1, total_steps - warmup)))
        return peak * ramp * (0.5 * (1 + math.cos(math.pi * after)) + 1e-3)
    if config.schedule == "milestones":
        drops = sum(step // steps_per_epoch >= milestone for milestone in config.milestones)
    else:
        drops = plateau_drops(scores, config.lr_patience)
    return peak * ramp * config.lr_factor**drops
