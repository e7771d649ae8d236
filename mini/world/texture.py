"""Noise and ramps that skin and hair are painted with."""

from functools import lru_cache

import cv2
import numpy as np

from mini.world.head_geometry import GRID


@lru_cache(maxsize=2)
def noise_bank(size=512):
    """Fixed tileable noise in about [-1, 1]: fine, medium and coarse, each float32 (size, size)."""
    rng = np.random.default_rng(20240501)
    bank = []
    for sigma in (0.8, 2.5, 9.0):
        field = rng.normal(size=(size, size)).astype(np.float32)
        field = cv2.GaussianBlur(np.tile(field, (3, 3)), (0, 0), sigma)[size : 2 * size, size : 2 * size]
        bank.append(np.clip(field / field.std() / 2.2, -1.3, 1.3))
    return bank


def noise(level, seed):
    """A (GRID, GRID) window of the noise bank, at a place decided by the seed."""
    field = noise_bank()[level]
    row, column = seed % (512 - GRID), (seed // 977) % (512 - GRID)
    return field[row : row + GRID, column : column + GRID]


def step(value, width):
    """Smooth 0 to 1 ramp of a signed value over a width."""
    return np.clip(value / width + 0.5, 0, 1)


def planes(colour):
    """A colour (3,) shaped to combine with textures of shape (3, H, W); faster than (H, W, 3)."""
    return np.float32(colour)[:, None, None]
