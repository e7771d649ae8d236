"""Checks shared by the metrics: bad input is refused here, in words, before it comes out as a number."""

import numpy as np

from utils.errors import UserError


class MetricError(UserError, ValueError):
    """A metric that has no value for this input: an empty set, one identity, NaN, different widths."""


def as_scores(scores, name):
    """`scores` as a flat float array: float64 stays, all else becomes float32 or, for integers, float64.

    Raises MetricError for an empty set and for NaN or infinite scores.
    """
    scores = to_numpy(scores).ravel()
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    elif scores.dtype.itemsize < 4:
        scores = scores.astype(np.float32)
    if scores.size == 0:
        raise MetricError(f"{name} scores: there are none, so no error rate exists; give at least one pair")
    # A sum is finite exactly when every term is (scores are far from overflow), and needs no mask in memory.
    if not np.isfinite(scores.sum(dtype=np.float64)):
        raise MetricError(f"{name} scores: NaN or infinite values among them; mend the embeddings first")
    return scores


def as_features(features, name, at_least=1):
    """`features` as a float array (N, D), float32 or float64.

    Raises MetricError when it is not two-dimensional, has fewer than `at_least` rows, or holds NaN.
    """
    features = to_numpy(features)
    if features.ndim != 2 or features.shape[1] == 0:
        raise MetricError(f"{name} features: shape {features.shape}, they must be (N, D)")
    if len(features) < at_least:
        raise MetricError(f"{name} features: {len(features)} rows, this metric needs at least {at_least}")
    if not np.issubdtype(features.dtype, np.floating) or features.dtype.itemsize < 4:
        features = features.astype(np.float32 if features.dtype.itemsize < 4 else np.float64)
    bad = np.flatnonzero(~np.isfinite(features).all(1))
    if len(bad):
        raise MetricError(f"{name} features: NaN or infinite in {len(bad)} rows, the first is row {bad[0]}")
    return features


def as_labels(labels, count, name):
    """`labels` as an array (N,) of any comparable type; MetricError when the count is another."""
    labels = to_numpy(labels).ravel()
    if len(labels) != count:
        raise MetricError(f"{name} labels: {len(labels)} for {count} embeddings; give one label per row")
    return labels


def same_width(first, second, names=("real", "fake")):
    """MetricError when two feature sets come from encoders of different width."""
    if first.shape[1] != second.shape[1]:
        raise MetricError(
            f"{names[0]} and {names[1]} features: {first.shape[1]} and {second.shape[1]} dimensions; "
            "use one encoder for both"
        )


def unit_rows(features, name, dtype=np.float32):
    """Rows of (N, D) scaled to length one; MetricError for a row of zeros."""
    norms = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    zero = np.flatnonzero(norms[:, 0] == 0)
    if len(zero):
        raise MetricError(f"{name} embeddings: row {zero[0]} is all zeros and has no direction")
    return (features / norms).astype(dtype)


def to_numpy(values):
    """A torch tensor (any device), list or array as a numpy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    return np.asarray(values)
