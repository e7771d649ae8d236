"""The head as a star-shaped surface: distance from its centre as a function of direction.

Directions are stored on a square (u, v) grid by Lambert's azimuthal equal-area projection around the face's
forward axis, so that one texture covers the whole head, with its finest resolution on the face.  Head frame:
x to the image's right at yaw 0, y down, z towards the camera; centimetres.
"""

from functools import lru_cache

import cv2
import numpy as np

GRID = 280
EXTENT = 2.0
TEXEL = 2 * EXTENT / (GRID - 1)
_POWER = 2.35
BOUNDING_RADIUS = 15.5
TRACE_BLOCK = 8192  # rays per block, small enough for a core's second-level cache


@lru_cache(maxsize=2)
def direction_grid(grid=GRID):
    """(u, v, x, y, z), each float32 (grid, grid): the projection's coordinates and the unit directions."""
    axis = np.linspace(-EXTENT, EXTENT, grid, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    squared = u * u + v * v
    inside = np.minimum(squared, 3.9999)
    scale = np.sqrt(inside / np.maximum(squared, 1e-9)) * np.sqrt(1 - inside / 4)
    return u, v, u * scale, v * scale, 1 - inside / 2


@lru_cache(maxsize=1)
def _skull_terms():
    """Terms of all identities: |x|^p, |y|^p, the term of z, narrowing to the jaw in [0, 1], crown in cm."""
    _, _, x, y, z = direction_grid()
    px, py, pz = (np.abs(axis) ** np.float32(_POWER) for axis in (x, y, z))
    down = np.clip(y * 1.25, 0, 1)
    down = down * down * (3 - 2 * down)
    deep = np.where(z > 0, np.float32(9.3), 10.2 - 2.6 * down)
    return px, py, pz * cv2.pow(deep, -_POWER), down, np.clip(-y * 1.4, 0, 1) * 0.35


def bumps(rows, grid=GRID):
    """Sum of axis-aligned Gaussians: rows of (u, v, sigma_u, sigma_v, height) -> float32 (grid, grid)."""
    axis = direction_grid(grid)[0][0]
    rows = np.float32(rows)
    across = np.exp(-0.5 * ((axis[None] - rows[:, 0:1]) / rows[:, 2:3]) ** 2)
    down = np.exp(-0.5 * ((axis[None] - rows[:, 1:2]) / rows[:, 3:4]) ** 2)
    return (down * rows[:, 4:5]).T @ across


def both_sides(rows):
    """Rows of bumps together with their mirror images."""
    return [*rows, *((-u, *rest) for u, *rest in rows)]


def anchors(identity, view):
    """Where the features sit on the (u, v) grid: a mapping of plain floats."""
    mouth_v = (
        0.655 + 0.03 * identity.mouth_height + 0.015 * identity.nose_length + 0.01 * identity.face_length
    )
    return dict(
        eye_u=0.113 * identity.eye_spacing,
        eye_v=0.03 + 0.035 * identity.eye_height,
        eye_half=0.158 * identity.eye_size,
        nose_v=0.375 + 0.04 * identity.nose_length,
        mouth_v=mouth_v,
        mouth_half=0.098 * identity.mouth_width * (1 + 0.16 * max(view.smile, 0) - 0.08 * view.mouth_open),
        corner_lift=0.035 * view.smile,
        gap=0.075 * view.mouth_open,
        chin_v=0.93 + 0.035 * identity.chin_length + 0.035 * view.mouth_open,
    )


def _face_bumps(identity, view, at):
    """Bumps of the face in cm; symmetric ones listed once for the right half."""
    i, nose, mouth, eye = identity, at["nose_v"], at["mouth_v"], at["eye_v"]
    smile, width = max(view.smile, 0.0), i.nose_width
    middle = [
        (0, eye + 0.02, 0.055, 0.12, 0.75 * i.nose_bridge),
        (0, 0.5 * (eye + nose), 0.06, 0.09, 0.65 + i.nose_hump * 0.6),
        (0, nose - 0.06, 0.07 * width, 0.075, 0.75),
        (0, nose + 0.01, 0.082 * width, 0.058, i.nose_tip),
        (0, nose + 0.125, 0.09, 0.04, -0.25),
        (0, -0.55, 0.5, 0.22, i.forehead),
        (0, -0.13, 0.09, 0.06, 0.5 * i.brow_ridge),
        (0, mouth, 0.34, 0.17, 0.55),
        (0, mouth - 0.045, 0.17, 0.028, 0.25 + 0.5 * i.upper_lip),
        (0, mouth, 0.19, 0.014, -0.28),
        (0, mouth + 0.05 + at["gap"], 0.14, 0.032, 0.3 + 0.5 * i.lower_lip),
        (0, mouth + 0.125 + at["gap"], 0.13, 0.032, -0.35),
        (0, at["chin_v"], i.chin_width, 0.11, 1.15 + 0.6 * i.chin_forward),
        (0, at["chin_v"] + 0.07, 0.5, 0.2, 0.5),
        (0, 1.45, 0.8, 0.16, -3.0),
        (0, -1.35, 0.7, 0.3, 0.3),
    ]
    side = [
        (at["eye_u"], eye, 0.15, 0.075, -0.25 - 0.75 * i.eye_depth),
        (at["eye_u"], eye + 0.005, 0.09, 0.06, 0.42),
        (0.28, eye - 0.175, 0.2, 0.05, i.brow_ridge),
        (0.12, nose + 0.035, 0.05 * i.nose_wings, 0.042, 0.75 * i.nose_wings),
        (0.58, 0.22, 0.16, 0.11, i.cheekbone),
        (0.5, 0.5, 0.17, 0.2, i.cheek_fullness),
        (0.42, 0.33, 0.13, 0.1, 0.4 * smile),
        (0.95, -0.3, 0.2, 0.25, i.temple),
        (0.16, eye + 0.06, 0.05, 0.07, -0.25),
        (0.8, 0.85, 0.2, 0.16, 0.35 + 0.5 * (i.jaw_width - 5.8)),
    ]
    return middle + both_sides(side)


def skull_radius(identity, view, at):
    """Bare head, float32 (GRID, GRID) in cm: a super-ellipsoid that narrows to the jaw, plus the features."""
    y = direction_grid()[3]
    px, py, depth, down, crown = _skull_terms()
    wide = identity.face_width + (identity.jaw_width + 0.55 - identity.face_width) * down + crown
    tall = np.where(
        y > 0,
        np.float32((11.9 + identity.face_length) ** -_POWER),
        np.float32((10.8 + 0.3 * identity.face_length) ** -_POWER),
    )
    radius = cv2.pow(px * cv2.pow(wide, -_POWER) + py * tall + depth, -1 / _POWER)
    return radius + bumps(_face_bumps(identity, view, at))


def surface_tables(radius):
    """Unit normals (GRID, GRID, 3) in the head frame and occlusion (GRID, GRID) in about [0.5, 1.1]."""
    _, _, x, y, z = direction_grid()
    position = cv2.merge([radius * x, radius * y, radius * z])
    along_u = cv2.Sobel(position, cv2.CV_32F, 1, 0, ksize=3)
    along_v = cv2.Sobel(position, cv2.CV_32F, 0, 1, ksize=3)
    ux, uy, uz = cv2.split(along_u)
    vx, vy, vz = cv2.split(along_v)
    normal = [uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx]
    length = np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2) + 1e-9
    hollow = cv2.blur(cv2.blur(radius, (21, 21)), (13, 13)) - radius
    return [part / length for part in normal], np.clip(1 - 0.42 * hollow, 0.45, 1.12)


def grid_coordinates(x, y, z):
    """Grid columns and rows of the directions of points (any shape, head frame), and their distance."""
    distance = x * x
    distance += y * y
    distance += z * z
    np.sqrt(distance, out=distance)
    scale = distance + z
    scale *= distance
    np.maximum(scale, 1e-6, out=scale)
    np.divide(2, scale, out=scale)
    np.sqrt(scale, out=scale)
    scale *= (GRID - 1) / (2 * EXTENT)
    middle = (GRID - 1) / 2
    columns, rows = x * scale, y * scale
    columns += middle
    rows += middle
    return columns, rows, distance


def lookup(table, columns, rows):
    """Bilinear sample of a grid table at float32 2-D coordinates."""
    return cv2.remap(table, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def trace(radius, origin, direction, steps=16, relax=0.65):
    """March rays onto the surface.

    Args:
        radius: (GRID, GRID) distances in cm.
        origin: camera position (3,) in the head frame.
        direction: three (H, W) float32 arrays, unit ray directions in the head frame.
    Returns:
        (ray length (H, W), signed gap (H, W) in cm at the last point: below about 0.1 the ray has hit).
    """
    dx, dy, dz = direction
    along = -(origin[0] * dx + origin[1] * dy + origin[2] * dz)
    nearest = np.dot(origin, origin) - along * along
    length = along - np.sqrt(np.maximum(BOUNDING_RADIUS**2 - nearest, 0))
    gap = np.empty_like(length)
    height = max(1, TRACE_BLOCK // max(1, length.shape[1]))
    for top in range(0, len(length), height):
        band = slice(top, top + height)
        _march(radius, origin, [part[band] for part in direction], length[band], gap[band], steps, relax)
    return length, gap


def _march(radius, origin, direction, length, gap, steps, relax):
    """Steps of :func:`trace` for some rows of rays; ``length`` and ``gap`` are changed in place."""
    x, y, z = (np.empty_like(length) for _ in range(3))
    for _ in range(steps):
        for point, start, part in zip((x, y, z), origin, direction, strict=True):
            np.multiply(length, part, out=point)
            point += start
        columns, rows, distance = grid_coordinates(x, y, z)
        np.subtract(distance, lookup(radius, columns, rows), out=gap)
        np.multiply(gap, relax, out=x)
        length += x


def surface_point(radius, u, v):
    """Points (..., 3) of the surface at grid positions u, v (arrays or floats), in the head frame."""
    u, v = np.atleast_1d(np.float32(u)), np.atleast_1d(np.float32(v))
    scale = (GRID - 1) / (2 * EXTENT)
    length = lookup(radius, ((u + EXTENT) * scale)[None], ((v + EXTENT) * scale)[None])[0]
    squared = u * u + v * v
    factor = np.sqrt(np.maximum(1 - squared / 4, 0))
    return np.stack([u * factor, v * factor, 1 - squared / 2], -1) * length[:, None]


def rotation(yaw, pitch, roll):
    """(3, 3) head-to-camera matrix; +yaw nose to the image's left, +pitch up, +roll clockwise; degrees."""
    y, p, r = np.radians([yaw, pitch, roll])
    turn = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    nod = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    tilt = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return (tilt @ turn @ nod).astype(np.float32)
