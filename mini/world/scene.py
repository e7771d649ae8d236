"""A small deferred renderer: camera rays, ellipsoids with a depth test, and the final lighting."""

from dataclasses import dataclass

import cv2
import numpy as np

from mini.world.head_geometry import grid_coordinates, lookup


@dataclass(frozen=True)
class Camera:
    """Pinhole camera on the line through the head's centre; pixel centres at integers."""

    width: int
    centre: tuple
    scale: float
    distance: float

    def rays(self):
        """Unit ray directions as three float32 (width, width) arrays in the camera frame."""
        axis = np.arange(self.width, dtype=np.float32)
        x = ((axis - self.centre[0]) / self.scale)[None]
        y = ((axis - self.centre[1]) / self.scale)[:, None]
        length = 1 / np.sqrt(x * x + y * y + np.float32(self.distance**2))
        return x * length, y * length, -np.float32(self.distance) * length

    def project(self, points):
        """Camera-frame points (N, 3) in cm to pixels (N, 2) float32."""
        points = np.asarray(points, np.float32)
        near = self.distance / (self.distance - points[:, 2:3])
        return points[:, :2] * near * self.scale + np.float32(self.centre)


def turned(matrix, vectors):
    """Apply a (3, 3) matrix to three arrays."""
    return [
        matrix[row, 0] * vectors[0] + matrix[row, 1] * vectors[1] + matrix[row, 2] * vectors[2]
        for row in range(3)
    ]


class Canvas:
    """Depth, normal (camera frame), albedo and gloss of what is nearest in each pixel."""

    def __init__(self, camera):
        self.camera = camera
        self.rays = camera.rays()
        width = camera.width
        self.depth = np.full((width, width), np.inf, np.float32)
        self.normal = [np.zeros((width, width), np.float32) for _ in range(3)]
        self.albedo = [np.zeros((width, width), np.float32) for _ in range(3)]
        self.gloss = np.zeros((width, width), np.float32)
        self.occlusion = np.ones((width, width), np.float32)

    def window(self, points, margin):
        """Slices of the canvas around camera-frame points, grown by a margin in cm."""
        pixels = self.camera.project(points)
        reach = margin * self.camera.scale
        low = np.clip(np.floor(pixels.min(0) - reach), 0, self.camera.width).astype(int)
        high = np.clip(np.ceil(pixels.max(0) + reach) + 1, 0, self.camera.width).astype(int)
        return slice(low[1], max(high[1], low[1])), slice(low[0], max(high[0], low[0]))

    def write(self, region, mask, depth, normal, albedo, gloss, occlusion):
        """Put a surface into a window where the mask holds and it is nearer than what is there."""
        mask = mask & (depth < self.depth[region])
        np.copyto(self.depth[region], depth, where=mask)
        for channel in range(3):
            np.copyto(self.normal[channel][region], normal[channel], where=mask)
            # One plane at a time: on (H, W, 3) arrays numpy's inner loop would be three long, which is slow.
            np.copyto(self.albedo[channel][region], albedo[..., channel], where=mask)
        np.copyto(self.gloss[region], gloss, where=mask)
        np.copyto(self.occlusion[region], occlusion, where=mask)

    def ellipsoid(self, frame, centre, radii, albedo, gloss=0.1, occlusion=1.0):
        """Intersect an ellipsoid that is aligned with a frame.

        Args:
            frame: (matrix (3, 3) to the camera frame, translation (3,) in the camera frame).
            centre, radii: in the frame, cm.
            albedo: colour (3,), or a function of the frame's x, y, z arrays giving (H, W, 3).
            gloss, occlusion: numbers, or functions of x, y, z as above giving (H, W).
        """
        matrix, offset = frame
        corners = np.float32([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) * radii + centre
        region = self.window(corners @ matrix.T + offset, 0.5)
        if not self.depth[region].size:
            return
        radii = np.float32(radii)
        origin = ((np.float32([0, 0, self.camera.distance]) - offset) @ matrix - centre) / radii
        direction = turned(matrix.T, [ray[region] for ray in self.rays])
        dx, dy, dz = (part / r for part, r in zip(direction, radii, strict=True))
        square = dx * dx + dy * dy + dz * dz
        half = origin[0] * dx + origin[1] * dy + origin[2] * dz
        inside = half * half - square * (float(origin @ origin) - 1)
        length = (-half - np.sqrt(np.maximum(inside, 0))) / square
        unit = [origin[k] + length * part for k, part in enumerate((dx, dy, dz))]
        local = [part * r + c for part, r, c in zip(unit, radii, centre, strict=True)]
        normal = [part / r for part, r in zip(unit, radii, strict=True)]
        size = np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2) + 1e-9
        normal = turned(matrix, [part / size for part in normal])
        values = [value(*local) if callable(value) else value for value in (albedo, gloss, occlusion)]
        self.write(region, inside > 0, length, normal, *values)

    def covered(self):
        """Boolean (width, width): where a surface was drawn."""
        return np.isfinite(self.depth)


def cast_shadow(canvas, head_frame, radius, light, reach=(0.5, 1.1, 2.0, 3.4, 5.5)):
    """How much key light arrives, in [0, 1], with the head's radial surface as the only blocker.

    Computed at half the canvas' resolution and smoothed: shadows are soft, and cheap.
    """
    matrix, offset = head_frame
    half = [np.ascontiguousarray(ray[::2, ::2]) for ray in canvas.rays]
    depth = np.where(canvas.covered(), canvas.depth, 0)[::2, ::2]
    start = [ray * depth for ray in half]
    start[2] = start[2] + canvas.camera.distance
    point = turned(matrix.T, [part - o for part, o in zip(start, offset, strict=True)])
    toward = matrix.T @ np.float32(light)
    blocked = np.zeros_like(depth)
    for step in reach:
        columns, rows, distance = grid_coordinates(
            *(p + step * t for p, t in zip(point, toward, strict=True))
        )
        inside = lookup(radius, columns, rows) - distance
        np.maximum(blocked, np.clip(inside / (0.25 + 0.18 * step), 0, 1), out=blocked)
    lit = cv2.GaussianBlur(1 - blocked, (0, 0), 1.0)
    return cv2.resize(lit, canvas.depth.shape[::-1], interpolation=cv2.INTER_LINEAR)


def light_direction(azimuth, elevation):
    """Unit vector towards a light; azimuth + is image right, elevation + is up; degrees."""
    a, e = np.radians([azimuth, elevation])
    return np.float32([np.sin(a) * np.cos(e), -np.sin(e), np.cos(a) * np.cos(e)])


def shade(canvas, view, shadow, ambient):
    """Light the canvas.

    Args:
        view: light fields are read.
        shadow: (width, width) key visibility in [0, 1].
        ambient: (2, 3) linear colour of light from above and from below.
    Returns:
        float32 (width, width, 3), sRGB-like in [0, 1] (square-root transfer), undefined where nothing is.
    """
    nx, ny, nz = canvas.normal
    key = light_direction(view.key_azimuth, view.key_elevation)
    tint = np.float32([view.tint_r, view.tint_g, view.tint_b])
    facing = nx * key[0] + ny * key[1] + nz * key[2]
    wrapped = np.clip((facing + 0.18) / 1.18, 0, 1)
    half = key + np.float32([0, 0, 1])
    half /= np.linalg.norm(half)
    shine = cv2.pow(np.clip(nx * half[0] + ny * half[1] + nz * half[2], 0, 1), 22) * canvas.gloss
    up = 0.5 - 0.5 * ny
    side = float(np.sign(view.key_azimuth))
    fill = np.clip(0.25 + 0.75 * nz - 0.2 * side * nx, 0, 1) * view.fill_strength
    rim = cv2.pow(np.clip(1 - nz, 0, 1), 3) * np.clip(0.2 - side * nx - 0.4 * ny, 0, 1) * view.rim_strength
    glow = shine * shadow * (0.35 * view.key_strength) + 0.3 * rim * canvas.occlusion
    grazing = 1 - np.abs(facing)
    lit = []
    for channel, bleed in enumerate((0.06, 0.0, -0.01)):
        hue = float(tint[channel])
        direct = (wrapped + bleed * grazing) * (shadow * (1 - bleed) + bleed)
        around = (ambient[0, channel] * up + ambient[1, channel] * (1 - up)) * 0.42 + fill * (0.6 + 0.4 * hue)
        light = direct * (view.key_strength * hue * 0.95) + around * 0.72 * canvas.occlusion
        albedo = canvas.albedo[channel]
        lit.append(np.sqrt(np.clip((albedo * albedo * light + glow * hue) * view.exposure, 0, 4)))
    return cv2.merge(lit)
