"""Ears, back hair, bun, neck, clothing and glasses."""

import cv2
import numpy as np

from mini.world.hair import HAIR_STYLES
from mini.world.head_geometry import rotation
from mini.world.texture import noise_bank

_NECK_PIVOT = np.float32([0, 8.0, -3.0])


def body_frame(view, head_matrix):
    """The trunk's frame: turns half as far as the head and hangs from the neck's pivot."""
    matrix = rotation(0.4 * view.yaw, 0.15 * view.pitch, 0.2 * view.roll)
    return matrix, head_matrix @ _NECK_PIVOT - matrix @ _NECK_PIVOT


def draw_ears(canvas, frame, identity, skin):
    """Two flat ellipsoids with a shaded hollow."""
    out, tall = 0.75 + 0.5 * max(identity.ear_out, -0.4), 3.0 * identity.ear_size

    def hollow(x, y, z):
        ring = np.hypot((y - 1.4) / (0.62 * tall), (z + 0.6) / (1.1 * identity.ear_size))
        return np.clip(0.55 + 0.45 * ring, 0.5, 1)

    for side in (-1, 1):
        centre = np.float32([side * (identity.face_width + 0.05), 1.4, -0.8])
        canvas.ellipsoid(
            frame,
            centre,
            (out, tall, 1.75 * identity.ear_size),
            skin * np.float32([1.0, 0.9, 0.88]),
            0.15,
            hollow,
        )


def draw_back_hair(canvas, frame, identity):
    """Hair behind the neck for long styles, and a bun."""
    style = HAIR_STYLES[identity.hair_style]
    bank = noise_bank()

    def strands(x, y, z):
        pattern = cv2.remap(bank[0], x * 12 + z * 14, y * 2, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        shade = 0.72 + 0.3 * pattern
        return np.clip(cv2.merge([shade * part for part in identity.hair]), 0.01, 1)

    wide = identity.face_width + 0.9 + 0.9 * style.get("side", 0) * identity.hair_volume
    if style.get("back"):
        length = style["back"]
        canvas.ellipsoid(
            frame, np.float32([0, 1 + 0.55 * length, -6.5]), (wide, 5 + 0.6 * length, 5.2), strands, 0.3, 0.7
        )
        for side in (-1, 1):
            lock = np.float32([side * (wide - 2.6), 1 + 0.55 * length, -4.0])
            canvas.ellipsoid(frame, lock, (2.7, 5 + 0.58 * length, 5.6), strands, 0.3, 0.95)
    if style.get("bun"):
        canvas.ellipsoid(frame, np.float32([0, -10.5, -6.5]), (4.2, 4.0, 4.0), strands, 0.3)


def draw_trunk(canvas, frame, identity, view, skin):
    """Neck, shoulders and chest with clothing."""
    wide, neck = identity.shoulder_width, identity.neck_width
    cloth = np.float32([view.cloth_r, view.cloth_g, view.cloth_b])

    def dressed(x, y, z):
        return _clothing(view.clothing, cloth, skin, neck, x, y, z)

    def under_chin(x, y, z):
        return np.clip(0.5 + 0.07 * (y - 10), 0.5, 1)

    canvas.ellipsoid(frame, np.float32([0, 14, -3.6]), (neck, 13, neck * 1.02), skin * 0.97, 0.1, under_chin)
    canvas.ellipsoid(frame, np.float32([0, 19.8, -4.8]), (wide * 0.66, 6.4, 6.8), dressed, 0.05, 0.95)
    canvas.ellipsoid(frame, np.float32([0, 28.6, -4.8]), (wide + 2.0, 13.5, 9.3), dressed, 0.05)


def _clothing(kind, cloth, skin, neck, x, y, z):
    """Colour (H, W, 3) of the trunk's surface by place: neckline, lapels, stripes."""
    colour = np.broadcast_to(cloth, (*x.shape, 3)).copy()
    y = y + 3.6  # patterns are laid out from the chin down
    wide, front = np.abs(x), z > -4.5
    bare = (neck * 1.25 - wide > 0) & (y < 18.6 + 1.3 * (1 - (wide / 7) ** 2))
    if kind == "striped":
        colour[np.mod(y + 0.02 * x * x, 3.0) < 1.4] = np.clip(1.15 - cloth, 0, 1)
    if kind == "v-neck":
        bare = front & (wide < (25.5 - y) * 0.62) & (y < 25.5)
    if kind in ("shirt", "suit"):
        opening = front & (wide < (29.5 - y) * (0.62 if kind == "suit" else 0.4))
        shirt = np.clip(0.35 * cloth + 0.65, 0, 1) if kind == "suit" else np.clip(cloth * 1.25 + 0.05, 0, 1)
        colour[opening] = shirt
        if kind == "suit":
            colour[front & (wide < 1.2 + 0.06 * (y - 18)) & (y > 20.0)] = np.clip(cloth[::-1] * 0.8, 0, 1)
        bare = front & (wide < (21.5 - y) * 0.8) & (y < 21.5)
    if kind == "hoodie":
        colour[(y < 22) & (wide > 4.2)] *= 0.8
        colour[front & (np.abs(wide - 2.6) < 0.3) & (y > 20) & (y < 28)] = np.clip(cloth + 0.35, 0, 1)
    colour[bare] = skin * 0.98
    return colour


def draw_glasses(image, identity, at, project, radius_point):
    """Frames, drawn over the lit picture.

    Args:
        image: float32 (H, W, 3) in [0, 1], changed in place.
        at: feature anchors.
        project: head-frame points (N, 3) -> (pixels (N, 2), camera z (N,)).
        radius_point: function (u, v) -> surface point (3,) of the bare head.
    """
    if identity.glasses == "none":
        return
    eye = radius_point(at["eye_u"], at["eye_v"])
    front = radius_point(0.0, at["eye_v"])[2] + 0.3
    tall, wide, power = {"round": (2.2, 2.35, 2.0), "square": (1.9, 2.6, 5.0), "thin": (1.5, 2.5, 3.2)}[
        identity.glasses
    ]
    angle = np.linspace(0, 2 * np.pi, 33)
    shape = np.stack(
        [
            np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** (2 / power) * wide,
            np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** (2 / power) * tall,
        ],
        -1,
    )
    lines, lenses = [], []
    for side in (-1, 1):
        centre = np.float32([side * max(eye[0], wide + 0.55), eye[1] + 0.3])
        flat = shape + centre
        rim = np.concatenate([flat, front - 0.035 * flat[:, :1] ** 2], 1)
        lenses.append(rim)
        lines.append(rim)
        lines.append(_temple(identity, side, centre, wide, front))
    lines.append(
        np.float32(
            [[-0.6, eye[1] - 0.2, front], [0, eye[1] - 0.45, front + 0.15], [0.6, eye[1] - 0.2, front]]
        )
    )
    _ink(image, lines, lenses, identity, project)


def _temple(identity, side, centre, wide, front):
    """Polyline of a side arm from the rim's outer end to the ear."""
    x = side * (abs(centre[0]) + wide)
    start = np.float32([x, centre[1] - 0.4, front - 0.035 * x * x])
    end = np.float32([side * (identity.face_width + 0.3), centre[1] - 0.2, -0.5])
    return start + (end - start) * np.linspace(0, 1, 8, dtype=np.float32)[:, None]


def _ink(image, lines, lenses, identity, project):
    mask = np.zeros(image.shape[:2], np.uint8)
    glass = np.zeros(image.shape[:2], np.uint8)
    scale = image.shape[0] / 192
    thick = max(1, round({"round": 1.6, "square": 2.4, "thin": 1.0}[identity.glasses] * scale))
    for lens in lenses:
        cv2.fillPoly(glass, [_fixed(project(lens)[0])], 255, cv2.LINE_AA, shift=4)
    for line in lines:
        pixels, depth = project(line)
        keep = pixels[depth > -1.5] if len(line) == 8 else pixels
        if (
            len(line) == 8
            and (depth[0] - depth[-1] > 0 and np.ptp(pixels[:, 0]) > 1)
            and not _visible(line, pixels)
        ):
            continue
        cv2.polylines(mask, [_fixed(keep)], False, 255, thick, cv2.LINE_AA, shift=4)
    x, y, wide, tall = cv2.boundingRect(cv2.max(mask, glass))
    window = (slice(y, y + tall), slice(x, x + wide))
    image, glass, mask = image[window], glass[window], mask[window]
    image += (0.85 - image) * (glass[..., None] / np.float32(255)) * 0.05
    colour = np.float32([0.62, 0.5, 0.34]) * (1 - identity.glasses_darkness) + np.float32([0.05, 0.045, 0.05])
    image += (colour - image) * (mask[..., None] / np.float32(255)) * 0.92


def _visible(line, pixels):
    """An arm shows when the head is turned so that the arm lies outwards of its rim."""
    return (pixels[-1, 0] - pixels[0, 0]) * np.sign(line[0, 0]) > 0


def _fixed(pixels):
    return (pixels * 16).round().astype(np.int32)[:, None]
