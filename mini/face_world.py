"""The miniature world's renderer: ``sample_identity``, ``sample_view`` and ``render``.

A person is a star-shaped head surface with a second layer of hair, ears, neck and clothes, lit by key, fill
and rim light in front of one of ten places or a studio.  Everything is decided by plain numbers in Identity
and View, so the same seeds give the same pixels.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from mini.build.captions import hair_words, skin_word
from mini.world import body, scene
from mini.world.backgrounds import ambient_light, background_image
from mini.world.hair import grow_beard, grow_hair
from mini.world.head_geometry import (
    anchors,
    direction_grid,
    grid_coordinates,
    lookup,
    rotation,
    skull_radius,
    surface_point,
    surface_tables,
    trace,
)
from mini.world.identity import Identity, View, sample_identity
from mini.world.skin import paint_face
from mini.world.views import SIDE_MIN_YAW, sample_view
from utils.seeding import derive_seed

__all__ = ["Identity", "Rendering", "View", "render", "render_background", "sample_identity", "sample_view"]

SUPERSAMPLING = 1.5
HEAD_HEIGHT_CM = 23.0
# Detectors place nose tip and mouth corners slightly inside the surface, where they move less with the pose.
_LANDMARK_DEPTH = np.float32([[1.0], [1.0], [0.96], [0.95], [0.95]])


@dataclass(frozen=True)
class Rendering:
    """A picture and its ground truth.

    image: uint8 RGB (size, size, 3).  landmarks: float32 (5, 2) x, y in pixels (centres at integers): eyes
    at image left and right, nose tip, mouth corners at image left and right.  yaw, pitch, roll in
    degrees (+ nose to image left, + up, + clockwise).  box: float32 (4,) x1, y1, x2, y2 of the face from
    forehead to chin.  attributes: the words of :func:`describe`.
    """

    image: np.ndarray
    landmarks: np.ndarray
    yaw: float
    pitch: float
    roll: float
    box: np.ndarray
    attributes: dict


def render(identity, view, size=128):
    """Draw a person.

    Args:
        identity: Identity.  view: View.  size: width and height in pixels.
    Returns:
        Rendering.
    """
    cv2.setNumThreads(1)
    width = round(size * SUPERSAMPLING)
    at = anchors(identity, view)
    bare = skull_radius(identity, view, at)
    layers, radius = _dress_head(identity, view, at, bare)
    matrix = rotation(view.yaw, view.pitch, view.roll)
    canvas = scene.Canvas(_camera(view, width))
    frame = (matrix, np.zeros(3, np.float32))
    _draw_person(canvas, frame, identity, view, radius, layers)
    light = scene.light_direction(view.key_azimuth, view.key_elevation)
    lit = scene.shade(
        canvas, view, scene.cast_shadow(canvas, frame, radius, light), ambient_light(view.background)
    )

    def project(points):
        moved = np.asarray(points, np.float32) @ matrix.T
        return canvas.camera.project(moved), moved[:, 2]

    body.draw_glasses(lit, identity, at, project, lambda u, v: surface_point(bare, u, v)[0])
    image = _compose(lit, canvas.covered(), view, size)
    landmarks, box = _ground_truth(view, at, bare, project, width / size)
    return Rendering(image, landmarks, view.yaw, view.pitch, view.roll, box, describe(identity, view))


def render_background(name, seed, size=128):
    """A place without a person, uint8 RGB (size, size, 3)."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(derive_seed("empty", name, int(seed)))
    return (background_image(name, int(rng.integers(1 << 31)), size) * 255).round().astype(np.uint8)


def describe(identity, view):
    """The words that are true of a picture; captions are made of these."""
    return dict(
        gender=identity.gender,
        age=identity.age,
        background=view.background,
        yaw=view.yaw,
        pose="side-portrait" if abs(view.yaw) >= SIDE_MIN_YAW else "portrait",
        expression=view.expression,
        glasses=identity.glasses,
        beard=identity.beard,
        hair=hair_words(identity),
        skin=skin_word(identity),
        setting=view.setting,
    )


def _camera(view, width):
    centre = (width * (0.5 + view.offset_x) - 0.5, width * (0.47 + view.offset_y) - 0.5)
    return scene.Camera(width, centre, view.head_size * width / HEAD_HEIGHT_CM, view.camera_distance)


def _dress_head(identity, view, at, bare):
    """Texture layers (albedo+gloss, normal+occlusion, each (GRID, GRID, 4)); radius with hair and beard."""
    albedo, gloss, relief = paint_face(identity, view, at)
    radius = bare + relief
    beard = grow_beard(albedo, identity, at)
    if beard is not None:
        radius = radius + beard
    hair = grow_hair(albedo, gloss, identity, view)
    if hair is not None:
        radius = radius + hair
    normal, occlusion = surface_tables(radius)
    return (
        cv2.merge([*albedo, gloss.astype(np.float32)]),
        cv2.merge([*normal, occlusion]),
    ), radius


def _draw_person(canvas, frame, identity, view, radius, layers):
    matrix, offset = frame
    _, _, x, y, z = direction_grid()
    outline = np.stack([(radius * part)[::12, ::12].ravel() for part in (x, y, z)], -1)
    region = canvas.window(outline @ matrix.T, 0.6)
    rays = [np.ascontiguousarray(ray[region]) for ray in canvas.rays]
    direction = scene.turned(matrix.T, rays)
    origin = np.float32([0, 0, canvas.camera.distance]) @ matrix
    length, gap = trace(radius, origin, direction)
    columns, rows, _ = grid_coordinates(*(origin[k] + length * direction[k] for k in range(3)))
    colour, shape = lookup(layers[0], columns, rows), lookup(layers[1], columns, rows)
    normal = scene.turned(matrix, cv2.split(shape)[:3])
    canvas.write(
        region,
        gap < 0.2,
        length,
        normal,
        colour[..., :3],
        colour[..., 3],
        shape[..., 3],
    )
    body.draw_ears(canvas, frame, identity, identity.skin)
    body.draw_back_hair(canvas, frame, identity)
    body.draw_trunk(canvas, body.body_frame(view, matrix), identity, view, identity.skin)


def _compose(lit, covered, view, size):
    """Antialias, composite over the background, and add blur and sensor noise."""
    cover = covered.astype(np.float32)
    person = cv2.resize(lit * cv2.merge([cover] * 3), (size, size), interpolation=cv2.INTER_AREA)
    bare = 1 - cv2.resize(cover, (size, size), interpolation=cv2.INTER_AREA)
    image = person + background_image(view.background, view.background_seed, size) * cv2.merge([bare] * 3)
    if view.softness > 0.15:
        image = cv2.GaussianBlur(image, (0, 0), view.softness * size / 128 + 0.15)
    rng = np.random.default_rng(derive_seed("sensor", view.seed))
    image += rng.standard_normal(image.shape, dtype=np.float32) * view.sensor_noise
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def _ground_truth(view, at, bare, project, ratio):
    """Landmarks (5, 2) and box (4,) in final pixels from surface points of the bare head."""
    corner = at["mouth_half"] * 1.105
    low = at["mouth_v"] - 0.22 * at["corner_lift"] + 0.17 * at["gap"] + 0.026
    u = [-at["eye_u"] * 0.98, at["eye_u"] * 0.98, 0.0, -corner, corner]
    v = [at["eye_v"], at["eye_v"], at["nose_v"] - 0.043, low, low]
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ring_u = 1.02 * np.cos(turn)
    ring_v = 0.23 + (at["chin_v"] + 0.09 - 0.23) * np.sin(turn)
    points = surface_point(bare, np.float32([*u, *ring_u]), np.float32([*v, *ring_v]))
    points[:5] *= _LANDMARK_DEPTH
    pixels, _ = project(points)
    pixels = (pixels + 0.5) / ratio - 0.5
    box = np.concatenate([pixels[5:].min(0), pixels[5:].max(0)])
    return pixels[:5].astype(np.float32), box.astype(np.float32)
