"""Augmentations of aligned face crops: uint8 in, uint8 out, one random stream per image.

`augment_batch` names the recipes. An image's random stream derives from (seed, epoch, index), so its
augmentation depends neither on the batch it is in nor on the number of processes.
"""

import cv2
import numpy as np

FLIP_PROBABILITY = 0.5
RAND_OPERATIONS, RAND_MAX_MAGNITUDE, RAND_BINS = 4, 16, 31  # the published "ra_4_16"
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


def rand_augment(image, rng):
    """RandAugment (Cubuk et al., 2020): operations drawn with replacement, each with its own magnitude.

    Magnitude m of 31 bins as in torchvision, whose ranges these are; the list is the published one of 13.
    """
    for _ in range(RAND_OPERATIONS):
        name = RAND_NAMES[rng.integers(len(RAND_NAMES))]
        magnitude = rng.integers(1, RAND_MAX_MAGNITUDE + 1) / (RAND_BINS - 1)
        image = RAND_TABLE[name](image, magnitude, -1.0 if rng.random() < 0.5 else 1.0)
    return image


def blend(image, other, factor):
    """`other` at factor 0, `image` at 1, extrapolated beyond; rounded down to uint8 as torchvision does."""
    mixed = image.astype(np.float32) * factor + np.asarray(other, np.float32) * (1.0 - factor)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def grey(image):
    """Luminance (H, W, 1) as uint8."""
    return (image.astype(np.float32) @ LUMA).astype(np.uint8)[..., None]


def warp(image, matrix):
    """Affine warp about the image centre, nearest neighbour, black outside (as published)."""
    height, width = image.shape[:2]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    shift = centre - matrix[:, :2] @ centre + matrix[:, 2]
    full = np.column_stack([matrix[:, :2], shift])
    return cv2.warpAffine(image, full, (width, height), flags=cv2.INTER_NEAREST, borderValue=0)


def rotation(degrees):
    """(2, 3) matrix of a turn about the centre."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0]])


def sharpened(image, factor):
    """Blend with the smoothed image (3 x 3, centre weight 5 of 13); the border stays."""
    kernel = np.float32([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13.0
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, kernel)[1:-1, 1:-1]
    return blend(image, smooth, factor)


def autocontrast(image):
    """Each channel stretched to 0..255; a flat channel stays."""
    low = image.min((0, 1)).astype(np.float32)
    span = image.max((0, 1)).astype(np.float32) - low
    scale = np.where(span > 0, 255.0 / np.maximum(span, 1), 1.0).astype(np.float32)
    return np.clip((image - np.where(span > 0, low, 0)) * scale, 0, 255).astype(np.uint8)


def equalized(image):
    """Each channel's histogram equalised."""
    return np.dstack([cv2.equalizeHist(np.ascontiguousarray(image[..., c])) for c in range(3)])


# Magnitude m in (0, 1], sign +-1. Ranges as torchvision.transforms.RandAugment at 112 pixels.
RAND_TABLE = {
    "Identity": lambda x, m, sign: x,
    "ShearX": lambda x, m, sign: warp(x, np.array([[1.0, 0.3 * m * sign, 0.0], [0.0, 1.0, 0.0]])),
    "TranslateX": lambda x, m, sign: warp(
        x, np.array([[1.0, 0.0, 150 / 331 * x.shape[1] * m * sign], [0.0, 1.0, 0.0]])
    ),
    "Rotate": lambda x, m, sign: warp(x, rotation(30.0 * m * sign)),
    "Brightness": lambda x, m, sign: blend(x, 0, 1 + 0.9 * m * sign),
    "Color": lambda x, m, sign: blend(x, grey(x), 1 + 0.9 * m * sign),
    "Contrast": lambda x, m, sign: blend(x, grey(x).mean(), 1 + 0.9 * m * sign),
    "Sharpness": lambda x, m, sign: sharpened(x, 1 + 0.9 * m * sign),
    "Posterize": lambda x, m, sign: x & np.uint8(256 - (1 << int(round(4 * m)))),
    "Solarize": lambda x, m, sign: np.where(x >= 255 * (1 - m), 255 - x, x).astype(np.uint8),
    "AutoContrast": lambda x, m, sign: autocontrast(x),
    "Equalize": lambda x, m, sign: equalized(x),
    "Grayscale": lambda x, m, sign: np.repeat(grey(x), 3, axis=2),
}
RAND_NAMES = tuple(RAND_TABLE)


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
