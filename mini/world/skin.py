"""Colour of the face: skin, eyes, brows, lips and lines, painted on the (u, v) grid."""

import cv2
import numpy as np

from mini.world.head_geometry import EXTENT, GRID, TEXEL, both_sides, bumps, direction_grid
from mini.world.texture import noise, planes, step
from utils.seeding import derive_seed


def _window(u0, u1, v0, v1):
    """Slices of the grid that cover a rectangle, with its u and v."""

    def index(value):
        return min(max(round((value + EXTENT) / TEXEL), 0), GRID)

    region = (slice(index(v0), index(v1)), slice(index(u0), index(u1)))
    u, v, *_ = direction_grid()
    return region, u[region], v[region]


def _blend(target, region, colour, amount):
    """Mix a colour into a window of an image by a per-pixel amount."""
    patch = target[(slice(None), *region)]
    patch += (planes(colour) - patch) * amount


def paint_face(identity, view, at):
    """Bare skin with features.

    Returns:
        albedo (3, GRID, GRID) sRGB in [0, 1], gloss (GRID, GRID) in [0, 1], relief (GRID, GRID) in cm to add.
    """
    mottle = 1 + 0.035 * noise(1, identity.seed) + 0.03 * noise(2, identity.seed)
    albedo = planes(identity.skin) * mottle
    _flush(albedo, identity, at)
    relief = _lines(albedo, identity, view, at)
    _spots(albedo, identity)
    gloss = 0.22 + bumps(
        [
            (0, at["nose_v"], 0.09, 0.1, 0.25),
            (0, -0.45, 0.35, 0.15, 0.15),
            (0, at["chin_v"], 0.1, 0.07, 0.1),
            *both_sides([(0.5, 0.2, 0.12, 0.1, 0.15)]),
        ]
    )
    for side in (-1, 1):
        _paint_brow(albedo, identity, view, at, side)
        _paint_eye(albedo, gloss, identity, view, at, side)
    _paint_mouth(albedo, gloss, identity, view, at)
    return albedo, gloss, relief


def _flush(albedo, identity, at):
    """Blood under the skin at cheeks, nose and ears; shade around the eyes."""
    red = bumps(
        [
            (0, at["nose_v"], 0.1, 0.08, 0.35),
            *both_sides([(0.5, 0.33, 0.16, 0.13, 0.3), (1.4, 0.1, 0.2, 0.3, 0.3)]),
        ]
    )
    shade = bumps(
        both_sides(
            [
                (at["eye_u"], at["eye_v"] + 0.085, 0.14, 0.04, 0.1 + 0.12 * identity.wrinkles),
                (at["eye_u"], at["eye_v"] - 0.06, 0.15, 0.05, 0.16),
                (0.13, at["nose_v"] + 0.04, 0.02, 0.03, 0.2),
                (0.055, at["nose_v"] + 0.068, 0.026, 0.017, 0.6),
            ]
        )
    )
    if identity.gender == "male":
        shade += bumps([(0, 0.8, 0.5, 0.22, 0.07)])
    albedo *= 1 - shade
    albedo[1] *= 1 - 0.22 * red
    albedo[2] *= 1 - 0.24 * red


def _lines(albedo, identity, view, at):
    """Wrinkles and folds: darkens the skin and returns their relief in cm."""
    strength = max(identity.wrinkles, 0.0)
    canvas = np.zeros((GRID, GRID), np.uint8)

    def stroke(points, amount):
        pixels = ((np.float32(points) + EXTENT) / TEXEL * 16).round().astype(np.int32)
        cv2.polylines(
            canvas, [pixels[:, None]], False, int(min(max(255 * amount, 0), 255)), 2, cv2.LINE_AA, shift=4
        )

    across = np.linspace(-0.42, 0.42, 9)
    for row in range(3):
        wave = -0.36 - 0.095 * row + 0.03 * np.cos(across * (5 + row)) + 0.01 * row
        stroke(
            np.stack([across * (1 - 0.1 * row), wave], -1),
            0.55 * strength + 0.35 * max(view.brow_raise, 0) * (0.3 + strength),
        )
    for side in (-1, 1):
        fold = 0.12 + 0.6 * strength + 0.4 * max(view.smile, 0)
        stroke(
            [
                (side * 0.16, at["nose_v"] + 0.02),
                (side * 0.25, at["nose_v"] + 0.12),
                (side * (at["mouth_half"] + 0.08), at["mouth_v"] - 0.02),
            ],
            fold,
        )
        stroke(
            [(side * (at["mouth_half"] + 0.05), at["mouth_v"] + 0.05), (side * 0.3, at["mouth_v"] + 0.18)],
            0.55 * strength,
        )
        outer = at["eye_u"] + at["eye_half"]
        for tilt in (-0.06, 0.0, 0.06):
            stroke(
                [
                    (side * (outer + 0.04), at["eye_v"] + 0.4 * tilt),
                    (side * (outer + 0.14), at["eye_v"] + 1.3 * tilt),
                ],
                (0.5 * strength + 0.2 * max(view.smile, 0)) * (0.3 + strength),
            )
        stroke(
            [
                (side * (at["eye_u"] - 0.11), at["eye_v"] + 0.1),
                (side * at["eye_u"], at["eye_v"] + 0.135),
                (side * (at["eye_u"] + 0.13), at["eye_v"] + 0.1),
            ],
            0.12 + 0.6 * strength,
        )
        stroke([(side * 0.05, -0.1), (side * 0.045, -0.2)], 0.5 * strength)
    soft = cv2.GaussianBlur(canvas, (5, 5), 1.0).astype(np.float32) / 255
    albedo *= 1 - 0.4 * soft
    return -0.25 * soft


def _spots(albedo, identity):
    """Freckles over nose and cheeks, single moles, and age spots."""
    if identity.freckles > 0.02:
        where = bumps([(0, 0.25, 0.5, 0.15, 1.0), (0, -0.4, 0.4, 0.2, 0.4)])
        amount = np.clip((noise(0, identity.seed + 7) - 0.35) * 2.2, 0, 1) * where * identity.freckles
        albedo *= 1 - amount * planes((0.35, 0.5, 0.6))
    rng = np.random.default_rng(derive_seed("moles", identity.seed))
    for _ in range(identity.moles):
        u, v = rng.uniform(-0.6, 0.6), rng.uniform(-0.4, 0.9)
        region, gu, gv = _window(u - 0.08, u + 0.08, v - 0.08, v + 0.08)
        dot = step(rng.uniform(0.02, 0.034) - np.hypot(gu - u, gv - v), 0.014)
        _blend(albedo, region, (0.2, 0.11, 0.08), dot * 0.85)


def _paint_eye(albedo, gloss, identity, view, at, side):
    """Lids, white, iris and pupil; the gaze and the opening come from the view."""
    half, centre = at["eye_half"], side * at["eye_u"]
    region, u, v = _window(
        centre - 1.7 * half, centre + 1.7 * half, at["eye_v"] - 1.5 * half, at["eye_v"] + 1.5 * half
    )
    out = (u - centre) * side / half
    y = (v - at["eye_v"]) / half + identity.eye_tilt * out
    soft, bow = 0.1, np.clip(1 - out * out, 0, 1)
    opening = (
        view.eye_open
        * (1 - 0.22 * max(view.smile, 0))
        * (1 + 0.25 * max(view.brow_raise, 0) * (view.eye_open > 0.3))
    )
    upper = -0.50 * opening * bow**0.72 + 0.1 * (1 - opening)
    lower = 0.30 * (0.4 + 0.6 * min(opening, 1.0)) * bow**0.9
    inside = step(y - upper, soft) * step(lower - y, soft) * step(1 - np.abs(out), 0.1)
    crease = (
        np.exp(-(((y - upper + 0.26) / 0.085) ** 2))
        * np.clip(1.15 - out * out, 0, 1)
        * (0.2 + 0.4 * identity.lid_crease)
    )
    _blend(albedo, region, identity.skin * 0.5, crease)
    white = planes((0.93, 0.91, 0.89)) * (1 - 0.35 * np.exp(-(((y - upper) / 0.2) ** 2)))
    patch = albedo[(slice(None), *region)]
    patch += (white - patch) * inside
    _iris(patch, inside, out * side, y, identity, view)
    lash = 0.09 if identity.gender == "male" else 0.125
    line = np.exp(-(((y - upper + 0.02) / lash) ** 2)) * step(1.13 - np.abs(out), 0.15)
    _blend(albedo, region, (0.09, 0.06, 0.05), np.clip(line * 0.95, 0, 1))
    under = np.exp(-(((y - lower) / 0.07) ** 2)) * step(1.05 - np.abs(out), 0.15)
    _blend(albedo, region, identity.skin * 0.45, under * 0.5)
    gloss[region] = np.maximum(gloss[region], inside * 0.6)


def _iris(patch, inside, x, y, identity, view):
    """Iris with a dark rim, pupil and a catch light, clipped to the lid opening."""
    far = np.hypot(x - 0.5 * view.gaze_x, y + 0.06 - 0.3 * view.gaze_y)
    disc = step(0.42 - far, 0.1) * inside
    colour = planes(identity.eyes) * (0.75 + 0.5 * np.clip(far / 0.42, 0, 1))
    colour *= 1 - 0.6 * step(far - 0.35, 0.1)
    patch += (colour - patch) * disc
    patch += (0.02 - patch) * (step(0.18 - far, 0.1) * inside)
    glint = np.hypot(x - 0.5 * view.gaze_x + 0.14, y - 0.3 * view.gaze_y + 0.2)
    patch += (0.98 - patch) * (step(0.1 - glint, 0.1) * inside * 0.9)


def _paint_brow(albedo, identity, view, at, side):
    half, centre = at["eye_half"], side * (at["eye_u"] + 0.01)
    rise = 0.03 * identity.brow_height + 0.06 * view.brow_raise
    middle = at["eye_v"] - 0.195 - rise
    region, u, v = _window(centre - 0.27, centre + 0.29, middle - 0.15, middle + 0.15)
    out = (u - centre) * side / (1.3 * max(half, 0.14))
    curve = 0.12 * identity.brow_arch * 2.2 * (0.45 - (out - 0.25) ** 2) - 0.02 * view.brow_raise * out
    taper = np.clip(1.05 - 0.55 * np.clip(out, -1, 1), 0.25, 1.4)
    thick = 0.155 * max(identity.brow_thickness, 0.1) * taper * 0.85
    shape = step(thick - np.abs(v - middle + curve), 0.035) * step(1.05 - np.abs(out), 0.25)
    hairs = 0.85 + 0.3 * noise(0, identity.seed + 31)[region]
    colour = identity.hair * 0.55 if identity.hair.mean() < 0.5 else identity.hair * 0.66
    _blend(albedo, region, colour, np.clip(shape * hairs, 0, 1) * identity.brow_darkness)


def _paint_mouth(albedo, gloss, identity, view, at):
    """Lips, and what shows between them: teeth first, then dark."""
    wide = at["mouth_half"]
    region, u, v = _window(-wide - 0.1, wide + 0.1, at["mouth_v"] - 0.2, at["mouth_v"] + 0.3)
    x = u / wide
    bow = np.clip(1 - x * x, 0, 1)
    seam = at["mouth_v"] - at["corner_lift"] * (x * x)
    show = at["gap"] + 0.035 * max(view.smile - 0.55, 0) / 0.45
    top, low = seam - 0.12 * show * bow, seam + show * bow**0.8
    upper = top - (0.025 + 0.085 * identity.upper_lip) * bow**0.8 * (1 - 0.3 * np.exp(-((x / 0.15) ** 2)))
    lower = low + (0.03 + 0.085 * identity.lower_lip) * bow**0.75
    ends = step(1 - np.abs(x), 0.08)
    lips = step(v - upper, 0.022) * step(lower - v, 0.022) * ends
    red = np.clip(identity.lip_red, 0.12, 0.9)
    tone = identity.skin * np.float32([0.93, 0.66, 0.66]) * (1 - red) + np.float32([0.70, 0.20, 0.22]) * red
    _blend(albedo, region, tone * (0.85 if identity.skin.mean() > 0.4 else 0.95), lips * 0.92)
    gap = step(v - top, 0.014) * step(low - v, 0.014) * ends * min(show / 0.02, 1.0)
    _blend(albedo, region, (0.16, 0.05, 0.05), gap)
    teeth = gap * step(top + 0.045 - v, 0.014) * step(0.82 - np.abs(x), 0.12)
    _blend(albedo, region, (0.9, 0.88, 0.83), teeth * (0.92 if view.expression != "surprise" else 0.4))
    line = np.exp(-(((v - seam) / 0.013) ** 2)) * step(1.03 - np.abs(x), 0.06) * (1 - gap)
    _blend(albedo, region, tone * 0.35, line * 0.85)
    gloss[region] = np.maximum(gloss[region], lips * (1 - gap) * 0.5)
