"""The ten places of the paper's prompts and the dark-blue studio, drawn from a seed, slightly defocused."""

import cv2
import numpy as np

from mini.world.places_indoors import bus, factory, hospital, laboratory, night_club, office
from mini.world.places_outdoors import beach, city_street, construction_site, forest
from mini.world.sketch import Sketch
from utils.errors import UserError
from utils.seeding import derive_seed

PLACES = {
    "forest": forest,
    "city street": city_street,
    "beach": beach,
    "office": office,
    "bus": bus,
    "laboratory": laboratory,
    "factory": factory,
    "construction site": construction_site,
    "hospital": hospital,
    "night club": night_club,
}
BACKGROUNDS = tuple(PLACES)
STUDIO = "studio"
_LIGHT = {
    "forest": ([0.93, 1.03, 0.88], 0.92),
    "city street": ([1.0, 1.0, 1.0], 1.0),
    "beach": ([1.06, 1.0, 0.92], 1.12),
    "office": ([1.0, 1.0, 0.99], 1.0),
    "bus": ([0.98, 1.0, 1.02], 0.95),
    "laboratory": ([0.94, 1.0, 1.06], 1.03),
    "factory": ([1.05, 0.98, 0.88], 0.9),
    "construction site": ([1.06, 1.0, 0.9], 1.05),
    "hospital": ([0.96, 1.01, 1.03], 1.06),
    "night club": ([1.0, 0.78, 1.12], 0.75),
    STUDIO: ([1.0, 1.0, 1.0], 1.0),
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
    """A place from a seed, slightly out of focus: float32 RGB (size, size, 3) in [0, 1]."""
    if name != STUDIO and name not in PLACES:
        raise UserError(f"background: {name!r} is unknown; use one of {', '.join((*PLACES, STUDIO))}")
    rng = np.random.default_rng(derive_seed("background", name, int(seed)))
    if name == STUDIO:
        return _studio(rng, size)
    sketch = Sketch(size, rng)
    PLACES[name](sketch)
    blur = float(rng.uniform(0.5, 1.3)) * size / 128
    image = cv2.GaussianBlur(_framed(sketch.pixels, rng), (0, 0), blur).astype(np.float32) / 255
    grain = rng.normal(1, 0.05, (12, 12, 1)).astype(np.float32)
    image *= cv2.merge([cv2.resize(grain, (size, size))] * 3)
    image *= np.float32(rng.uniform(0.85, 1.12))
    return np.clip(image, 0, 1, out=image)


def _framed(pixels, rng):
    """Another framing of the same place: mirrored half of the time, and a random crop."""
    size = len(pixels)
    side = round(size * rng.uniform(0.78, 0.98))
    row, column = (int(rng.integers(0, size - side + 1)) for _ in range(2))
    crop = cv2.resize(
        pixels[row : row + side, column : column + side], (size, size), interpolation=cv2.INTER_LINEAR
    )
    return crop[:, ::-1].copy() if rng.random() < 0.5 else crop


def _studio(rng, size):
    """Dark-blue paper behind the lab photos, brighter in the middle."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    glow = np.exp(-((axis[None] + rng.normal(0, 0.06)) ** 2 + (axis[:, None] + 0.1) ** 2) * 0.8)
    paper = np.float32([0.07, 0.11, 0.24]) * np.float32(rng.uniform(0.95, 1.05))
    return paper * (0.6 + 0.75 * glow)[..., None]
