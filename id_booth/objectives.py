"""The identity losses of ID-Booth and its baselines, per item, on face recognition embeddings."""

import torch
import torch.nn.functional as F


def identity_loss(anchor, positive):
    """1 - cosine similarity (PortraitBooth's term).

    Args:
        anchor, positive: (N, D) float embeddings of any norm.

    Returns:
        (N,) in [0, 2].
    """
    return 1 - F.cosine_similarity(anchor, positive, dim=-1)


def triplet_identity_loss(anchor, positive, negative, margin=1.0):
    """max(d(a, p) - d(a, n) + margin, 0) with d = 1 - cosine similarity (ID-Booth's triplet identity term).

    The anchor is the embedding of the denoised prediction, the positive that of the training photo, the
    negative that of another person's (prior) image. With margin 1 the hinge is inactive only where
    cos(a, p) - cos(a, n) >= 1, so in practice the gradient never vanishes.

    Args:
        anchor, positive, negative: (N, D) float embeddings of any norm.

    Returns:
        (N,) in [0, 2 + margin].
    """
    return F.relu(identity_loss(anchor, positive) - identity_loss(anchor, negative) + margin)


def timestep_weight(timesteps, num_train_timesteps, form="squared"):
    """The weight of an identity term: predictions from much noise say little about identity.

    Args:
        timesteps: (N,) integers in [0, num_train_timesteps).
        form: "squared" for (1 - t/T)^2, as the official code runs; "linear" for 1 - t/T; "none" for 1.

    Returns:
        (N,) float32 in [0, 1].
    """
    remaining = 1 - timesteps.float() / num_train_timesteps
    return {"squared": remaining.square(), "linear": remaining, "none": torch.ones_like(remaining)}[form]


def denoising_loss(model_output, target, weight=None):
    """Mean squared error of each item in float32, times an optional weight (min-SNR).

    Args:
        model_output, target: (N, C, H, W).
        weight: None or (N,).

    Returns:
        (N,).
    """
    error = F.mse_loss(model_output.float(), target.float(), reduction="none").flatten(1).mean(1)
    return error if weight is None else error * weight
