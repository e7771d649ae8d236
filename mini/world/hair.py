"""Hair and beard: where they grow, how thick they are in cm, and their strands, on the (u, v) grid."""

from functools import lru_cache

import cv2
import numpy as np

from mini.world.head_geometry import TEXEL, bumps, direction_grid
from mini.world.texture import noise, noise_bank, planes, step

# top, side: thickness in cm; fringe: lowered front; curl: 0 to 1; curtain: how far side hair falls; recede.
HAIR_STYLES = {
    "bald": dict(top=0, side=0),
    "buzz": dict(top=0.15, side=0.1),
    "short": dict(top=1.0, side=0.45),
    "side-part": dict(top=1.6, side=0.6, part=1),
    "quiff": dict(top=1.0, side=0.35, front=1.7),
    "curly": dict(top=2.3, side=1.4, curl=1),
    "receding": dict(top=0.6, side=0.55, recede=0.3),
    "shoulder": dict(top=1.2, side=1.0, curtain=1, back=9, part=1),
    "long": dict(top=1.1, side=0.9, curtain=1, back=15, part=0.6),
    "long-fringe": dict(top=1.2, side=1.0, curtain=1, back=15, fringe=0.33),
    "bob": dict(top=1.3, side=1.6, curtain=1, back=6.5),
    "bob-fringe": dict(top=1.3, side=1.5, curtain=1, back=6.5, fringe=0.36),
    "bun": dict(top=0.5, side=0.35, bun=1),
    "curly-long": dict(top=2.2, side=2.2, curtain=1, curl=1, back=12),
    "pixie": dict(top=1.1, side=0.5, fringe=0.22, part=1),
    "side-part-long": dict(top=1.5, side=1.1, curtain=1, back=15, part=1, swept=0.22),
}


def grow_beard(albedo, identity, at):
    """Paint the beard and return its thickness (GRID, GRID) in cm, or None without one."""
    if identity.beard == "none":
        return None
    u, v, *_ = direction_grid()
    wide = np.abs(u)
    grain = noise(0, identity.seed + 99)
    moustache = bumps([(0, at["mouth_v"] - 0.1, 0.2, 0.04, 1.3)])
    goatee = bumps([(0, at["mouth_v"] + 0.24, 0.2, 0.13, 1.5)])
    line = 0.64 - 0.3 * wide - 0.36 * wide * wide
    full = step(v - line + 0.03 * grain, 0.12) * step(1.5 - v, 0.2) * step(1.3 - wide, 0.2)
    mouth = bumps(
        [(0, at["mouth_v"] + 0.02 + at["gap"] / 2, at["mouth_half"] * 0.75, 0.055 + at["gap"] / 2, 1.6)]
    )
    parts = {
        "stubble": np.maximum(full, moustache),
        "moustache": moustache,
        "goatee": np.maximum(goatee, moustache),
        "full": np.maximum(full, moustache),
        "long": np.maximum(full, moustache),
    }[identity.beard]
    cover = np.clip(parts - 0.25, 0, 1) * np.clip(1 - mouth, 0, 1)
    cover = np.clip(cover * (1.25 + 0.35 * grain), 0, 1)
    strength = 0.45 if identity.beard == "stubble" else 0.93
    shade = planes(identity.hair) * (0.85 + 0.25 * grain)
    albedo += (shade - albedo) * (cover * strength)
    thick = {"stubble": 0.02, "moustache": 0.3, "goatee": 0.45, "full": 0.55, "long": 0.9}[identity.beard]
    if identity.beard == "long":
        thick = thick + bumps([(0, 1.1, 0.4, 0.2, 1.8)])
    return cover * thick * (1 + 0.25 * grain)


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
        return 0.75 * noise(1, identity.seed + 3) + 0.35 * noise(0, identity.seed + 4)
    wave = 7 * np.sin(far * 5 + shift)
    columns, rows = angle * 62 + (wave * part + shift), far * 16 + shift
    mixed = [
        cv2.remap(field, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        for field in (fine, medium)
    ]
    return 0.6 * mixed[0] + 0.6 * mixed[1]


def grow_hair(albedo, gloss, identity, view):
    """Paint the hair on the scalp and return its thickness (GRID, GRID) in cm, or None for a bald head."""
    style = HAIR_STYLES[identity.hair_style]
    if not style["top"]:
        return None
    u, v, *_ = direction_grid()
    edge = _hairline(identity, style, u)
    strands = _strands(identity, style.get("curl", 0), style.get("part", 0))
    slope = np.float32(np.gradient(edge[0]) / TEXEL)[None]
    steep = cv2.GaussianBlur(np.sqrt(1 + np.minimum(slope * slope, 20)), (0, 0), 5)
    cover = step(edge + 0.05 * strands * steep - v, 0.07 * steep)
    if style.get("recede"):
        cover *= 1 - np.clip(bumps([(0, -1.0, 0.5, 0.25, 1.1)]), 0, 0.85)
    inward = np.clip((edge - v) / (0.32 * np.minimum(steep, 2.0)), 0, 1)
    inward = inward * (2 - inward)
    top = np.clip((-0.25 - v) / 0.6, 0, 1)
    thick = style["side"] + (style["top"] - style["side"]) * top * (2 - top)
    thick = thick * identity.hair_volume + bumps(
        [
            (0, -0.9, 0.5, 0.22, style.get("front", 0) * identity.hair_volume),
            (0.5 * view.hair_shift, -1.2, 0.4, 0.3, 0.25),
        ]
    )
    if style.get("part"):
        thick = thick - bumps([(identity.hair_part, -1.0, 0.03, 0.5, 0.55)]) * style["part"]
    thick = np.maximum(cover * (0.12 + inward * np.maximum(thick, 0.05)), 0)
    rough = 0.22 if style.get("curl") else 0.09
    thick = thick * (1 + rough * strands)
    colour = planes(identity.hair) * (1 + 0.38 * strands) * (0.7 + 0.3 * inward)
    opacity = np.clip(cover * (0.75 if identity.hair_style == "buzz" else 1.0) * 1.1, 0, 1)
    albedo += (np.clip(colour, 0.01, 1) - albedo) * opacity
    gloss += (0.45 + 0.3 * strands - gloss) * opacity
    return thick


def _hairline(identity, style, u):
    """Lowest v that hair covers, for every grid cell."""
    wide = [0, 0.3, 0.5, 0.64, 0.76, 0.92, 1.1, 1.3, 1.55, 1.7, 2.0]
    edge = np.float64([-0.74, -0.73, -0.68, -0.55, -0.3, -0.03, 0.06, -0.2, -0.1, 0.5, 0.8])
    edge[:4] += (
        identity.hair_line + style.get("fringe", 0) - np.float64([1, 1.1, 1.2, 0.8]) * style.get("recede", 0)
    )
    if style.get("curtain"):
        edge[4:] = [-0.22, 1.1, 1.5, 1.6, 1.6, 1.6, 1.6]
    axis = np.interp(np.abs(u[0]), wide, edge)
    if style.get("swept"):
        axis = axis + style["swept"] * np.clip(-np.sign(identity.hair_part) * u[0] * 2 + 0.3, 0, 1) * (
            np.abs(u[0]) < 0.75
        )
    smooth = cv2.GaussianBlur(np.float32(axis)[None], (0, 0), 2.2)
    return np.broadcast_to(smooth, u.shape)
