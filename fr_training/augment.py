"""Augmentations of aligned face crops: uint8 in, uint8 out, one random stream per image.

`augment_batch` names the recipes. An image's random stream derives from (seed, epoch, index), so its
augmentation depends neither on the batch it is in nor on the number of processes.
"""

import cv2
import numpy as np

from fr_training.rand_augment import rand_augment

FLIP_PROBABILITY = 0.5
LUMA = np.float32([0.299, 0.587, 0.114])


def augment_batch(images, recipe, seed, epoch, indices):
    """Augmented copies of uint8 crops (N, H, W, 3).

    Args:
        recipe: "none", "flip", "randaugment" (flip, then 4 operations of magnitude 1 to 16, as published),
            or "robust" (flip, small shifts and turns, blur, loss of resolution, light and colour: crops as a
            detector and a generator deliver them).
        seed, epoch: of the run.
        indices: (N,) the images' places in the data set.
    """
    if recipe == "none":
        return images
    operation = {"flip": None, "randaugment": rand_augment, "robust": robust}[recipe]
    out = np.empty_like(images)
    for place, (image, index) in enumerate(zip(images, indices, strict=True)):
        rng = np.random.Generator(np.random.PCG64([seed, epoch, int(index)]))
        if rng.random() < FLIP_PROBABILITY:
            image = image[:, ::-1]
        out[place] = image if operation is None else operation(np.ascontiguousarray(image), rng)
    return out


def robust(image, rng):
    """Small misalignment, then softness, then light and colour; see `augment_batch`."""
    image = jitter(image, rng)
    if rng.random() < 0.25:
        image = lower_resolution(image, rng)
    elif rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 2.0))
    return recolour(image, rng)


def jitter(image, rng, shift=2.0, degrees=4.0, scale=0.04):
    """A similarity warp with the spread of a good detector's landmarks (pixels of 112, degrees, factor)."""
    size = image.shape[0]
    matrix = cv2.getRotationMatrix2D(
        ((size - 1) / 2, (size - 1) / 2), rng.normal(0, degrees / 2), 1 + rng.normal(0, scale / 2)
    )
    matrix[:, 2] += rng.normal(0, shift / 2, 2)
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=0)


def lower_resolution(image, rng):
    """Down to 28..90 pixels and back."""
    size = image.shape[0]
    small = int(size * rng.uniform(0.25, 0.8))
    reduced = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
    return cv2.resize(reduced, (size, size), interpolation=cv2.INTER_LINEAR)


def recolour(image, rng):
    """Contrast about mid-grey, brightness, a tint and some desaturation: one affine map of the colours."""
    weight = rng.uniform(0, 0.7) if rng.random() < 0.3 else 0.0
    gain = rng.uniform(0.75, 1.3) * (1 + rng.normal(0, 0.04, 3))
    offset = 128.0 * (1 - gain) + rng.uniform(-25, 25)
    desaturate = (1 - weight) * np.eye(3) + weight * LUMA
    return cv2.transform(image, np.column_stack([gain[:, None] * desaturate, offset]))
