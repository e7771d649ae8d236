"""Verification figures: ten-fold accuracy as published, AUC, EER, and TAR at small FAR.

Source of the protocol: LFW's image-restricted evaluation as insightface and its followers run it.
"""

import numpy as np

from evaluation.identity import verification_stats
from utils.errors import UserError

THRESHOLDS = np.arange(0, 4, 0.01)
FOLDS = 10
FAR_TARGETS = (1e-3, 1e-4)


def squared_distances(first, second):
    """Squared L2 distances (P,) of the normalised rows of two (P, D) arrays, in 0..4."""
    first, second = normalise(first), normalise(second)
    return np.sum(np.square(first - second), axis=1)


def normalise(embeddings):
    """Rows of unit length, float64; a row of zeros stays."""
    embeddings = np.asarray(embeddings, np.float64)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(norms > 0, norms, 1.0)


def ten_fold_accuracy(first, second, same):
    """Mean and standard deviation (ddof 0) over ten folds of the accuracy on pairs.

    Squared L2 distance of the normalised embeddings; a pair is called the same person when its distance is
    below the threshold; thresholds 0 to 4 in steps of 0.01; ten consecutive folds, unshuffled; for each fold
    the first of the best thresholds on the other nine.

    Args:
        first, second: embeddings (P, D) of the pairs' images, numpy or torch, any scale.
        same: (P,) true where both show one person.

    Raises:
        UserError: fewer than ten pairs, or only pairs of one kind.
    """
    same = np.asarray(same).astype(bool).reshape(-1)
    check_pairs(same)
    distances = squared_distances(first, second)
    # correct[p, t]: pair p is classified correctly at threshold t.
    correct = (distances[:, None] < THRESHOLDS) == same[:, None]
    bounds = fold_bounds(len(same))
    per_fold = np.add.reduceat(correct, bounds[:-1], axis=0, dtype=np.int64)
    sizes = np.diff(bounds)
    others = (per_fold.sum(0) - per_fold) / (len(same) - sizes)[:, None]
    chosen = np.argmax(others, axis=1)
    accuracies = per_fold[np.arange(FOLDS), chosen] / sizes
    return float(accuracies.mean()), float(accuracies.std())


def fold_bounds(pairs):
    """Start of each fold and the end: the first `pairs % 10` folds have one pair more, as KFold's."""
    sizes = np.full(FOLDS, pairs // FOLDS)
    sizes[: pairs % FOLDS] += 1
    return np.concatenate([[0], np.cumsum(sizes)])


def check_pairs(same, name="benchmark"):
    """UserError for pairs of which no accuracy can be computed."""
    if same.all() or not same.any():
        kind = "the same person" if same.all() else "different people"
        raise UserError(f"{name}: all {len(same)} pairs show {kind}; accuracy, AUC and EER need both kinds")
    if len(same) < FOLDS:
        raise UserError(f"{name}: {len(same)} pairs are too few for {FOLDS} folds")


def tar_at_far(genuine, impostor, far):
    """Share of genuine scores accepted at the lowest threshold whose false accept rate is at most `far`.

    Scores are similarities, a score at or above the threshold is accepted; ties count as accepted, so the
    rate never exceeds `far`. With fewer than 1/far impostors this is the rate above the highest impostor.
    """
    impostor = np.sort(np.asarray(impostor))[::-1]
    allowed = int(np.floor(far * len(impostor) + 1e-9))
    # The threshold lies just above the first impostor that must not be accepted.
    return float(np.mean(np.asarray(genuine) > impostor[allowed])) if allowed < len(impostor) else 1.0


def evaluate_pairs(first, second, same, name="benchmark"):
    """All figures of one benchmark as a dict.

    Keys: accuracy, accuracy_std, auc, eer, tar@far=1e-3, tar@far=1e-4, pairs, and roc, a dict of the lists
    far and tar.
    """
    same = np.asarray(same).astype(bool).reshape(-1)
    check_pairs(same, name)
    accuracy, spread = ten_fold_accuracy(first, second, same)
    scores = 1.0 - squared_distances(first, second) / 2.0  # cosine
    genuine, impostor = scores[same], scores[~same]
    stats = verification_stats(genuine, impostor)
    figures = {"accuracy": accuracy, "accuracy_std": spread, "auc": stats["auc"], "eer": stats["eer"]}
    figures |= {far_name(far): tar_at_far(genuine, impostor, far) for far in FAR_TARGETS}
    far, tar = roc_curve(genuine, impostor)
    return figures | {"pairs": len(same), "roc": {"far": far.tolist(), "tar": tar.tolist()}}


def far_name(far):
    """The key of TAR at a FAR: tar@far=1e-3."""
    return f"tar@far=1e-{round(-np.log10(far))}"


def roc_curve(genuine, impostor, points=200):
    """FAR on a logarithmic grid from 1e-5 to 1, and the TAR at each."""
    far = np.logspace(-5, 0, points)
    return far, np.array([tar_at_far(genuine, impostor, value) for value in far])
