"""Colour of the head: skin, eyes, brows, lips, lines, beard and hair, painted on the (u, v) grid."""

from functools import lru_cache

import cv2
import numpy as np

from mini.head_geometry import EXTENT, GRID, both_sides, bumps, direction_grid, lookup
from utils.seeding import derive_seed

_TEXEL = 2 * EXTENT / (GRID - 1)
# top, side: thickness in cm; fringe: lowered front; curl: 0 to 1; curtain: how far side hair falls; recede.
HAIR_STYLES = {
    "bald": dict(top=0, side=0), "buzz": dict(top=0.15, side=0.1), "short": dict(top=1.0, side=0.45),
    "side-part": dict(top=1.6, side=0.6, part=1), "quiff": dict(top=1.0, side=0.35, front=1.7),
    "curly": dict(top=2.3, side=1.4, curl=1), "receding": dict(top=0.6, side=0.55, recede=0.3),
    "shoulder": dict(top=1.2, side=1.0, curtain=1, back=9, part=1), "long": dict(top=1.1, side=0.9, curtain=1, back=15, part=0.6),
    "long-fringe": dict(top=1.2, side=1.0, curtain=1, back=15, fringe=0.33), "bob": dict(top=1.3, side=1.6, curtain=1, back=6.5),
    "bob-fringe": dict(top=1.3, side=1.5, curtain=1, back=6.5, fringe=0.36), "bun": dict(top=0.5, side=0.35, bun=1),
    "curly-long": dict(top=2.2, side=2.2, curtain=1, curl=1, back=12), "pixie": dict(top=1.1, side=0.5, fringe=0.22, part=1),
    "side-part-long": dict(top=1.5, side=1.1, curtain=1, back=15, part=1, swept=0.22),
}


@lru_cache(maxsize=2)
def noise_bank(size=512):
    """Fixed tileable noise in about [-1, 1]: fine, medium and coarse, each float32 (size, size)."""
    rng = np.random.default_rng(20240501)
    bank = []
    for sigma in (0.8, 2.5, 9.0):
        field = rng.normal(size=(size, size)).astype(np.float32)
        field = cv2.GaussianBlur(np.tile(field, (3, 3)), (0, 0), sigma)[size:2 * size, size:2 * size]
        bank.append(np.clip(field / field.std() / 2.2, -1.3, 1.3))
    return bank


def _noise(level, seed):
    """A (GRID, GRID) window of the noise bank, at a place decided by the seed."""
    field = noise_bank()[level]
    row, column = seed % (512 - GRID), (seed // 977) % (512 - GRID)
    return field[row:row + GRID, column:column + GRID]


def _step(value, width):
    """Smooth 0 to 1 ramp of a signed value over a width."""
    return np.clip(value / width + 0.5, 0, 1)


def _window(u0, u1, v0, v1):
    """Slices of the grid that cover a rectangle, with its u and v."""
    def index(value):
        return int(np.clip(round((value + EXTENT) / _TEXEL), 0, GRID))
    region = (slice(index(v0), index(v1)), slice(index(u0), index(u1)))
    u, v, *_ = direction_grid()
    return region, u[region], v[region]


def _blend(target, region, colour, amount):
    """Mix a colour into a window of an image by a per-pixel amount."""
    patch = target[region]
    patch += (np.float32(colour) - patch) * amount[..., None]


def paint_face(identity, view, at):
    """Bare skin with features.

    Returns:
        albedo (GRID, GRID, 3) sRGB in [0, 1], gloss (GRID, GRID) in [0, 1], relief (GRID, GRID) in cm to add.
    """
    mottle = 1 + 0.035 * _noise(1, identity.seed) + 0.03 * _noise(2, identity.seed)
    albedo = identity.skin[None, None] * mottle[..., None]
    _flush(albedo, identity, at)
    relief = _lines(albedo, identity, view, at)
    _spots(albedo, identity)
    gloss = 0.22 + bumps([(0, at["nose_v"], 0.09, 0.1, 0.25), (0, -0.45, 0.35, 0.15, 0.15), (0, at["chin_v"], .1, .07, .1),
                          *both_sides([(0.5, 0.2, 0.12, 0.1, 0.15)])])
    for side in (-1, 1):
        _paint_brow(albedo, identity, view, at, side)
        _paint_eye(albedo, gloss, identity, view, at, side)
    _paint_mouth(albedo, gloss, identity, view, at)
    return albedo, gloss, relief


def _flush(albedo, identity, at):
    """Blood under the skin at cheeks, nose and ears; shade around the eyes."""
    red = bumps([(0, at["nose_v"], 0.1, 0.08, 0.35), *both_sides([(0.5, 0.33, 0.16, 0.13, 0.3), (1.4, 0.1, 0.2, 0.3, 0.3)])])
    shade = bumps(both_sides([(at["eye_u"], at["eye_v"] + 0.085, 0.14, 0.04, 0.1 + 0.12 * identity.wrinkles),
                              (at["eye_u"], at["eye_v"] - 0.06, 0.15, 0.05, 0.16), (0.13, at["nose_v"] + 0.04, 0.02, 0.03, .2),
                              (0.055, at["nose_v"] + 0.068, 0.026, 0.017, 0.6)]))
    if identity.gender == "male":
        shade += bumps([(0, 0.8, 0.5, 0.22, 0.07)])
    albedo *= (1 - shade)[..., None]
    albedo[..., 1] *= 1 - 0.22 * red
    albedo[..., 2] *= 1 - 0.24 * red


def _lines(albedo, identity, view, at):
    """Wrinkles and folds: darkens the skin and returns their relief in cm."""
    strength = max(identity.wrinkles, 0.0)
    canvas = np.zeros((GRID, GRID), np.uint8)

    def stroke(points, amount):
        pixels = ((np.float32(points) + EXTENT) / _TEXEL * 16).round().astype(np.int32)
        cv2.polylines(canvas, [pixels[:, None]], False, int(np.clip(255 * amount, 0, 255)), 2, cv2.LINE_AA, shift=4)

    across = np.linspace(-0.42, 0.42, 9)
    for row in range(3):
        wave = -0.36 - 0.095 * row + 0.03 * np.cos(across * (5 + row)) + 0.01 * row
        stroke(np.stack([across * (1 - 0.1 * row), wave], -1), 0.55 * strength + 0.35 * max(view.brow_raise, 0) * (0.3 + strength))
    for side in (-1, 1):
        fold = 0.12 + 0.6 * strength + 0.4 * max(view.smile, 0)
        stroke([(side * 0.16, at["nose_v"] + 0.02), (side * 0.25, at["nose_v"] + 0.12),
                (side * (at["mouth_half"] + 0.08), at["mouth_v"] - 0.02)], fold)
        stroke([(side * (at["mouth_half"] + 0.05), at["mouth_v"] + 0.05), (side * 0.3, at["mouth_v"] + 0.18)], 0.55 * strength)
        outer = at["eye_u"] + at["eye_half"]
        for tilt in (-0.06, 0.0, 0.06):
            stroke([(side * (outer + 0.04), at["eye_v"] + 0.4 * tilt), (side * (outer + 0.14), at["eye_v"] + 1.3 * tilt)],
                   (0.5 * strength + 0.2 * max(view.smile, 0)) * (0.3 + strength))
        stroke([(side * (at["eye_u"] - 0.11), at["eye_v"] + 0.1), (side * at["eye_u"], at["eye_v"] + 0.135),
                (side * (at["eye_u"] + 0.13), at["eye_v"] + 0.1)], 0.12 + 0.6 * strength)
        stroke([(side * 0.05, -0.1), (side * 0.045, -0.2)], 0.5 * strength)
    soft = cv2.GaussianBlur(canvas, (5, 5), 1.0).astype(np.float32) / 255
    albedo *= (1 - 0.4 * soft)[..., None]
    return -0.25 * soft


def _spots(albedo, identity):
    """Freckles over nose and cheeks, single moles, and age spots."""
    if identity.freckles > 0.02:
        where = bumps([(0, 0.25, 0.5, 0.15, 1.0), (0, -0.4, 0.4, 0.2, 0.4)])
        amount = np.clip((_noise(0, identity.seed + 7) - 0.35) * 2.2, 0, 1) * where * identity.freckles
        albedo *= 1 - amount[..., None] * np.float32([0.35, 0.5, 0.6])
    rng = np.random.default_rng(derive_seed("moles", identity.seed))
    for _ in range(identity.moles):
        u, v = rng.uniform(-0.6, 0.6), rng.uniform(-0.4, 0.9)
        region, gu, gv = _window(u - 0.08, u + 0.08, v - 0.08, v + 0.08)
        dot = _step(rng.uniform(0.02, 0.034) - np.hypot(gu - u, gv - v), 0.014)
        _blend(albedo, region, (0.2, 0.11, 0.08), dot * 0.85)


def _paint_eye(albedo, gloss, identity, view, at, side):
    """Lids, white, iris and pupil; the gaze and the opening come from the view."""
    half, centre = at["eye_half"], side * at["eye_u"]
    region, u, v = _window(centre - 1.7 * half, centre + 1.7 * half, at["eye_v"] - 1.5 * half, at["eye_v"] + 1.5 * half)
    out = (u - centre) * side / half
    y = (v - at["eye_v"]) / half + identity.eye_tilt * out
    soft, bow = 0.1, np.clip(1 - out * out, 0, 1)
    opening = view.eye_open * (1 - 0.22 * max(view.smile, 0)) * (1 + 0.25 * max(view.brow_raise, 0) * (view.eye_open > 0.3))
    upper = -0.50 * opening * bow**0.72 + 0.1 * (1 - opening)
    lower = 0.30 * (0.4 + 0.6 * min(opening, 1.0)) * bow**0.9
    inside = _step(y - upper, soft) * _step(lower - y, soft) * _step(1 - np.abs(out), 0.1)
    crease = np.exp(-(((y - upper + 0.26) / 0.085) ** 2)) * np.clip(1.15 - out * out, 0, 1) * (0.2 + 0.4 * identity.lid_crease)
    _blend(albedo, region, identity.skin * 0.5, crease)
    white = np.float32([0.93, 0.91, 0.89]) * (1 - 0.35 * np.exp(-((y - upper) / 0.2) ** 2))[..., None]
    patch = albedo[region]
    patch += (white - patch) * inside[..., None]
    _iris(patch, inside, out * side, y, identity, view)
    lash = 0.09 if identity.gender == "male" else 0.125
    line = np.exp(-(((y - upper + 0.02) / lash) ** 2)) * _step(1.13 - np.abs(out), 0.15)
    _blend(albedo, region, (0.09, 0.06, 0.05), np.clip(line * 0.95, 0, 1))
    under = np.exp(-(((y - lower) / 0.07) ** 2)) * _step(1.05 - np.abs(out), 0.15)
    _blend(albedo, region, identity.skin * 0.45, under * 0.5)
    gloss[region] = np.maximum(gloss[region], inside * 0.6)


def _iris(patch, inside, x, y, identity, view):
    """Iris with a dark rim, pupil and a catch light, clipped to the lid opening."""
    far = np.hypot(x - 0.5 * view.gaze_x, y + 0.06 - 0.3 * view.gaze_y)
    disc = _step(0.42 - far, 0.1) * inside
    colour = identity.eyes * (0.75 + 0.5 * np.clip(far / 0.42, 0, 1))[..., None]
    colour *= (1 - 0.6 * _step(far - 0.35, 0.1))[..., None]
    patch += (colour - patch) * disc[..., None]
    patch += (0.02 - patch) * (_step(0.18 - far, 0.1) * inside)[..., None]
    glint = np.hypot(x - 0.5 * view.gaze_x + 0.14, y - 0.3 * view.gaze_y + 0.2)
    patch += (0.98 - patch) * (_step(0.1 - glint, 0.1) * inside * 0.9)[..., None]


def _paint_brow(albedo, identity, view, at, side):
    half, centre = at["eye_half"], side * (at["eye_u"] + 0.01)
    rise = 0.03 * identity.brow_height + 0.06 * view.brow_raise
    middle = at["eye_v"] - 0.195 - rise
    region, u, v = _window(centre - 0.27, centre + 0.29, middle - 0.15, middle + 0.15)
    out = (u - centre) * side / (1.3 * max(half, 0.14))
    curve = 0.12 * identity.brow_arch * 2.2 * (0.45 - (out - 0.25) ** 2) - 0.02 * view.brow_raise * out
    taper = np.clip(1.05 - 0.55 * np.clip(out, -1, 1), 0.25, 1.4)
    thick = 0.155 * max(identity.brow_thickness, 0.1) * taper * 0.85
    shape = _step(thick - np.abs(v - middle + curve), 0.035) * _step(1.05 - np.abs(out), 0.25)
    hairs = 0.85 + 0.3 * _noise(0, identity.seed + 31)[region]
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
    ends = _step(1 - np.abs(x), 0.08)
    lips = _step(v - upper, 0.022) * _step(lower - v, 0.022) * ends
    red = np.clip(identity.lip_red, 0.12, 0.9)
    tone = identity.skin * np.float32([0.93, 0.66, 0.66]) * (1 - red) + np.float32([0.70, 0.20, 0.22]) * red
    _blend(albedo, region, tone * (0.85 if identity.skin.mean() > 0.4 else 0.95), lips * 0.92)
    gap = _step(v - top, 0.014) * _step(low - v, 0.014) * ends * min(show / 0.02, 1.0)
    _blend(albedo, region, (0.16, 0.05, 0.05), gap)
    teeth = gap * _step(top + 0.045 - v, 0.014) * _step(0.82 - np.abs(x), 0.12)
    _blend(albedo, region, (0.9, 0.88, 0.83), teeth * (0.92 if view.expression != "surprise" else 0.4))
    line = np.exp(-(((v - seam) / 0.013) ** 2)) * _step(1.03 - np.abs(x), 0.06) * (1 - gap)
    _blend(albedo, region, tone * 0.35, line * 0.85)
    gloss[region] = np.maximum(gloss[region], lips * (1 - gap) * 0.5)


def grow_beard(albedo, identity, at):
    """Paint the beard and return its thickness (GRID, GRID) in cm, or None without one."""
    if identity.beard == "none":
        return None
    u, v, *_ = direction_grid()
    wide = np.abs(u)
    noise = _noise(0, identity.seed + 99)
    moustache = bumps([(0, at["mouth_v"] - 0.1, 0.2, 0.04, 1.3)])
    goatee = bumps([(0, at["mouth_v"] + 0.24, 0.2, 0.13, 1.5)])
    line = 0.64 - 0.3 * wide - 0.36 * wide * wide
    full = _step(v - line + 0.03 * noise, 0.12) * _step(1.5 - v, 0.2) * _step(1.3 - wide, 0.2)
    mouth = bumps([(0, at["mouth_v"] + 0.02 + at["gap"] / 2, at["mouth_half"] * 0.75, 0.055 + at["gap"] / 2, 1.6)])
    parts = {"stubble": np.maximum(full, moustache), "moustache": moustache, "goatee": np.maximum(goatee, moustache),
             "full": np.maximum(full, moustache), "long": np.maximum(full, moustache)}[identity.beard]
    cover = np.clip(parts - 0.25, 0, 1) * np.clip(1 - mouth, 0, 1)
    cover = np.clip(cover * (1.25 + 0.35 * noise), 0, 1)
    strength = 0.45 if identity.beard == "stubble" else 0.93
    shade = identity.hair * (0.85 + 0.25 * noise)[..., None]
    albedo += (shade - albedo) * (cover * strength)[..., None]
    thick = {"stubble": 0.02, "moustache": 0.3, "goatee": 0.45, "full": 0.55, "long": 0.9}[identity.beard]
    if identity.beard == "long":
        thick = thick + bumps([(0, 1.1, 0.4, 0.2, 1.8)])
    return cover * thick * (1 + 0.25 * noise)


@lru_cache(maxsize=1)
def _combed():
    """Polar coordinates of the grid around the crown: strands run along the second."""
    u, v, *_ = direction_grid()
    return np.arctan2(u, v + 1.25), np.hypot(u, v + 1.25)


def _strands(identity, curl, part):
    """Strand pattern (GRID, GRID) in about [-1, 1]."""
    angle, far = _combed()
    shift = (identity.seed * 37) % 512
    fine, medium, _ = noise_bank()
    if curl:
        return 0.75 * _noise(1, identity.seed + 3) + 0.35 * _noise(0, identity.seed + 4)
    wave = 7 * np.sin(far * 5 + shift)
    columns, rows = angle * 62 + (wave * part + shift), far * 16 + shift
    mixed = [cv2.remap(field, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP) for field in (fine, medium)]
    return 0.6 * mixed[0] + 0.6 * mixed[1]


def grow_hair(albedo, gloss, identity, view):
    """Paint the hair on the scalp and return its thickness (GRID, GRID) in cm, or None for a bald head."""
    style = HAIR_STYLES[identity.hair_style]
    if not style["top"]:
        return None
    u, v, *_ = direction_grid()
    edge = _hairline(identity, style, u)
    strands = _strands(identity, style.get("curl", 0), style.get("part", 0))
    slope = np.float32(np.gradient(edge[0]) / _TEXEL)[None]
    steep = cv2.GaussianBlur(np.sqrt(1 + np.minimum(slope * slope, 20)), (0, 0), 5)
    cover = _step(edge + 0.05 * strands * steep - v, 0.07 * steep)
    if style.get("recede"):
        cover *= 1 - np.clip(bumps([(0, -1.0, 0.5, 0.25, 1.1)]), 0, 0.85)
    inward = np.clip((edge - v) / (0.32 * np.minimum(steep, 2.0)), 0, 1)
    inward = inward * (2 - inward)
    top = np.clip((-0.25 - v) / 0.6, 0, 1)
    thick = style["side"] + (style["top"] - style["side"]) * top * (2 - top)
    thick = thick * identity.hair_volume + bumps([(0, -0.9, 0.5, 0.22, style.get("front", 0) * identity.hair_volume),
                                                  (0.5 * view.hair_shift, -1.2, 0.4, 0.3, 0.25)])
    if style.get("part"):
        thick = thick - bumps([(identity.hair_part, -1.0, 0.03, 0.5, 0.55)]) * style["part"]
    thick = np.maximum(cover * (0.12 + inward * np.maximum(thick, 0.05)), 0)
    rough = 0.22 if style.get("curl") else 0.09
    thick = thick * (1 + rough * strands)
    colour = identity.hair * (1 + 0.38 * strands)[..., None] * (0.7 + 0.3 * inward)[..., None]
    opacity = np.clip(cover * (0.75 if identity.hair_style == "buzz" else 1.0) * 1.1, 0, 1)
    albedo += (np.clip(colour, 0.01, 1) - albedo) * opacity[..., None]
    gloss += (0.45 + 0.3 * strands - gloss) * opacity
    return thick


def _hairline(identity, style, u):
    """Lowest v that hair covers, for every grid cell."""
    wide = [0, 0.3, 0.5, 0.64, 0.76, 0.92, 1.1, 1.3, 1.55, 1.7, 2.0]
    edge = np.float64([-0.74, -0.73, -0.68, -0.55, -0.3, -0.03, 0.06, -0.2, -0.1, 0.5, 0.8])
    edge[:4] += identity.hair_line + style.get("fringe", 0) - np.float64([1, 1.1, 1.2, 0.8]) * style.get("recede", 0)
    if style.get("curtain"):
        edge[4:] = [-0.22, 1.1, 1.5, 1.6, 1.6, 1.6, 1.6]
    axis = np.interp(np.abs(u[0]), wide, edge)
    if style.get("swept"):
        axis = axis + style["swept"] * np.clip(-np.sign(identity.hair_part) * u[0] * 2 + 0.3, 0, 1) * (np.abs(u[0]) < 0.75)
    smooth = cv2.GaussianBlur(np.float32(axis)[None], (0, 0), 2.2)
    return np.broadcast_to(smooth, u.shape)
