"""The published RandAugment "ra_4_16": four operations of torchvision's list, each of a magnitude of its own.

The published code is torchvision's RandAugment on Pillow images, its list cut to 13 operations and its
magnitude drawn anew for each. These are the same operations of Pillow with the same ranges, so torchvision is
not needed: equal to the pixel, random numbers aside.
"""

import math

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

OPERATIONS, MAX_MAGNITUDE, BINS = 4, 16, 31


def rand_augment(image, rng):
    """A uint8 RGB image (H, W, 3) after OPERATIONS operations, drawn with replacement from TABLE.

    Each has its own magnitude, step 1 to MAX_MAGNITUDE of BINS from nothing to its most, and either sign.
    """
    picture = Image.fromarray(image)
    for _ in range(OPERATIONS):
        operation, magnitudes = TABLE[NAMES[rng.integers(len(NAMES))]]
        magnitude = magnitudes[rng.integers(1, MAX_MAGNITUDE + 1)]
        picture = operation(picture, magnitude if rng.random() < 0.5 else -magnitude)
    return np.asarray(picture)


def affine(picture, *matrix):
    """The pixel at (x, y) from (a x + b y + c, d x + e y + f), nearest neighbour, black outside."""
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def shear(picture, slope):
    """Shear along x about the upper left corner; torchvision goes by way of the angle."""
    return affine(picture, 1, math.tan(math.radians(math.degrees(math.atan(slope)))), 0, 0, 1, 0)


def enhance(kind):
    """An enhancement of Pillow of factor 1 + change, as a function of picture and change."""
    return lambda picture, change: kind(picture).enhance(1.0 + change)


def steps(most, least=0.0):
    """The BINS magnitudes from `least` to `most`, rounded to float32 as torchvision's are."""
    return torch.linspace(least, most, BINS).tolist()


NONE = [0.0] * BINS
COLOUR = steps(0.9)
# Function of picture and magnitude, and its magnitudes. Where torchvision's have no sign, it is ignored.
TABLE = {
    "Identity": (lambda x, m: x, NONE),
    "ShearX": (shear, steps(0.3)),
    "TranslateX": (lambda x, m: affine(x, 1, 0, -int(m * x.width), 0, 1, 0), steps(150 / 331)),
    "Rotate": (lambda x, m: x.rotate(m, Image.Resampling.NEAREST), steps(30.0)),
    "Brightness": (enhance(ImageEnhance.Brightness), COLOUR),
    "Color": (enhance(ImageEnhance.Color), COLOUR),
    "Contrast": (enhance(ImageEnhance.Contrast), COLOUR),
    "Sharpness": (enhance(ImageEnhance.Sharpness), COLOUR),
    "Posterize": (lambda x, m: ImageOps.posterize(x, 8 - round(abs(m))), steps(4.0)),
    "Solarize": (lambda x, m: ImageOps.solarize(x, abs(m)), steps(0.0, least=255.0)),
    "AutoContrast": (lambda x, m: ImageOps.autocontrast(x), NONE),
    "Equalize": (lambda x, m: ImageOps.equalize(x), NONE),
    "Grayscale": (lambda x, m: x.convert("L").convert("RGB"), NONE),
}
NAMES = tuple(TABLE)
