"""The ten places of the paper's prompts and the dark-blue studio, drawn from a seed and slightly defocused."""

import cv2
import numpy as np

BACKGROUNDS = ("forest", "city street", "beach", "office", "bus", "laboratory", "factory", "construction site",
               "hospital", "night club")
STUDIO = "studio"
_LIGHT = {
    "forest": ([0.93, 1.03, 0.88], 0.92), "city street": ([1.0, 1.0, 1.0], 1.0),
    "beach": ([1.06, 1.0, 0.92], 1.12), "office": ([1.0, 1.0, 0.99], 1.0), "bus": ([0.98, 1.0, 1.02], 0.95),
    "laboratory": ([0.94, 1.0, 1.06], 1.03), "factory": ([1.05, 0.98, 0.88], 0.9),
    "construction site": ([1.06, 1.0, 0.9], 1.05), "hospital": ([0.96, 1.01, 1.03], 1.06),
    "night club": ([1.0, 0.78, 1.12], 0.75), STUDIO: ([1.0, 1.0, 1.0], 1.0),
}


def light_tint(name, rng):
    """Colour (3,) and strength of a place's light, with some spread."""
    colour, level = _LIGHT[name]
    spread = 0.10 if name == "night club" else 0.035
    return np.clip(np.float64(colour) + rng.normal(0, spread, 3), 0.5, 1.35), level


def ambient_light(name):
    """Linear colour of light from above and below, float32 (2, 3)."""
    colour = np.float32(_LIGHT[name][0])
    return np.stack([colour * 0.75, colour * 0.4])


def background_image(name, seed, size):
    return np.full((size, size, 3), 0.5, np.float32)
