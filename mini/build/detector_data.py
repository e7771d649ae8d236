"""Pictures to train the mini detector on: a pool of renders, and scenes cut, pasted and degraded from it.

The renderer is slower than the network, so each render is used many times: placed at another size, cut off,
mirrored, padded with black, set among others, and degraded the way JPEG, small sensors, upscaling and a small
VAE degrade a photo. Coordinates are pixels with centres at integers.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mini.face_world import render, render_background, sample_identity, sample_view
from mini.world.backgrounds import BACKGROUNDS, STUDIO
from mini.world.identity import HELD_OUT, TRAINING_PEOPLE
from utils.files import atomic_path
from utils.progress import progress
from utils.seeding import derive_seed

SHARD = 250
PLACES = (*BACKGROUNDS, STUDIO)
LARGE_EVERY = 8  # every eighth picture is rendered at twice the size, for large sharp faces
MIRROR = [1, 0, 2, 4, 3]  # the five landmarks, left and right exchanged
# Kinds of scenes with their shares: the whole render, a face of any size at any place, a face that fills the
# picture, four scenes side by side, a picture without a face.
SCENES = {"whole": 0.45, "anywhere": 0.24, "tight": 0.09, "mosaic": 0.06, "empty": 0.16}


@dataclass
class Pool:
    """Renders (uint8 RGB), the boxes (N, 4) and landmarks (N, 5, 2) of their faces, and empty places."""

    images: list
    boxes: np.ndarray
    landmarks: np.ndarray
    backgrounds: list


@dataclass
class Scene:
    """A training picture: image uint8 (S, S, 3); per face box (4,), landmarks (5, 2) and whether it is
    required.

    A face that is not required is mostly outside the picture: the loss neither asks for it nor penalises it.
    """

    image: np.ndarray
    boxes: np.ndarray
    landmarks: np.ndarray
    required: np.ndarray


def render_pool(folder, faces, backgrounds, seed=0):
    """Render a pool into ``folder`` in shards, going on where an earlier call stopped; returns the Pool."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = [("faces", render_faces, start, min(SHARD, faces - start)) for start in range(0, faces, SHARD)]
    shards += [
        ("places", render_places, start, min(SHARD, backgrounds - start))
        for start in range(0, backgrounds, SHARD)
    ]
    paths = []
    for kind, make, start, count in progress(shards, "rendering for the detector"):
        paths.append(folder / f"{kind}_{seed}_{start:06d}_{count}.npz")
        if not paths[-1].exists():
            arrays = make(range(start, start + count), seed)
            with atomic_path(paths[-1]) as temporary, open(temporary, "wb") as stream:
                np.savez(stream, **arrays)
    return load_pool(paths)


def render_faces(indices, seed):
    """Arrays of one shard of faces: training identities only, a quarter of them in the lab."""
    made = [render_one(index, seed) for index in indices]
    arrays = {f"image_{place}": rendering.image for place, rendering in enumerate(made)}
    return {
        **arrays,
        "boxes": np.float32([rendering.box for rendering in made]),
        "landmarks": np.float32([rendering.landmarks for rendering in made]),
    }


def render_one(index, seed):
    """The rendering of one index of the pool."""
    identity = sample_identity(derive_seed("detector identity", seed, index) % TRAINING_PEOPLE)
    wide = {"yaw": index % 151 - 75.0} if index % 10 == 3 else {}  # beyond the 60 degrees of ordinary views
    view = sample_view(derive_seed("detector view", seed, index), "lab" if index % 4 == 0 else "wild", **wide)
    return render(identity, view, 256 if index % LARGE_EVERY == 1 else 128)


def render_places(indices, seed):
    """Arrays of one shard of backgrounds; their seeds stay below HELD_OUT."""
    return {
        f"image_{place}": render_background(
            PLACES[index % len(PLACES)], derive_seed("detector place", seed, index) % HELD_OUT
        )
        for place, index in enumerate(indices)
    }


def load_pool(paths):
    """The Pool in shard files written by :func:`render_pool`."""
    images, boxes, landmarks, backgrounds = [], [], [], []
    for path in paths:
        with np.load(path) as shard:
            count = sum(name.startswith("image_") for name in shard)
            pictures = [shard[f"image_{place}"] for place in range(count)]
            if "boxes" not in shard:
                backgrounds += pictures
                continue
            images += pictures
            boxes.append(shard["boxes"])
            landmarks.append(shard["landmarks"])
    return Pool(images, np.concatenate(boxes), np.concatenate(landmarks), backgrounds)


def make_scene(pool, size, rng):
    """A random Scene of ``size`` pixels, degraded two times in three."""
    scene = compose(pool, size, rng, dict(SCENES))
    if rng.random() < 0.67:
        scene.image = degrade(scene.image, rng)
    return scene


def compose(pool, size, rng, shares):
    """A random Scene before any degradation; ``shares`` as SCENES."""
    weights = np.array(list(shares.values()))
    kind = str(rng.choice(list(shares), p=weights / weights.sum()))
    if kind == "empty":
        return Scene(empty(pool, size, rng), *no_faces())
    if kind == "mosaic":
        quarters = {name: share for name, share in shares.items() if name != "mosaic"}
        return mosaic([compose(pool, size // 2, rng, quarters) for _ in range(4)], size // 2)
    index = int(rng.integers(len(pool.images)))
    matrix = placement(kind, pool.images[index].shape[0], pool.boxes[index], size, rng)
    return place(pool, index, matrix, canvas(pool, kind, size, rng), rng.random() < 0.5)


def no_faces():
    """Boxes, landmarks and `required` of a scene without people."""
    return np.zeros((0, 4), np.float32), np.zeros((0, 5, 2), np.float32), np.zeros(0, bool)


def canvas(pool, kind, size, rng):
    """The picture that a render is pasted into: black as from padding, or, half the time, another place."""
    if kind != "anywhere" or rng.random() < 0.5:
        return np.zeros((size, size, 3), np.uint8)
    return resize(pool.backgrounds[int(rng.integers(len(pool.backgrounds)))], size)


def placement(kind, source, box, size, rng):
    """The (2, 3) matrix that takes a render of ``source`` pixels to its place in ``size`` pixels."""
    centre, extent = (box[:2] + box[2:]) / 2, float(np.sqrt(np.prod(box[2:] - box[:2])))
    if kind == "whole":
        factor, angle, target = size / source, 0.0, None
    elif kind == "tight":
        factor, angle = size * rng.uniform(0.7, 1.05) / extent, rng.normal(0, 3)
        target = size / 2 + rng.normal(0, 0.06, 2) * size
    else:
        face = np.exp(rng.uniform(np.log(min(18.0, size / 3)), np.log(0.75 * size)))
        factor, angle = face / extent, rng.normal(0, 7)
        target = rng.uniform(0.42 * face, size - 0.42 * face, 2)
    radians = np.deg2rad(angle)
    linear = factor * np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    # The outer edges of the pictures coincide: pixel centres at integers move by half a pixel.
    shift = np.full(2, factor / 2 - 0.5) if target is None else target - linear @ centre
    return np.column_stack([linear, shift])


def place(pool, index, matrix, behind, mirrored):
    """The Scene of one render warped by ``matrix`` onto ``behind``, mirrored or not."""
    size, source = behind.shape[0], pool.images[index]
    factor = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if factor < 0.7:  # bilinear sampling would alias: shrink by area first
        small = max(8, round(source.shape[0] * factor))
        ratio = source.shape[0] / small
        source = cv2.resize(source, (small, small), interpolation=cv2.INTER_AREA)
        warp = np.column_stack([matrix[:, :2] * ratio, matrix @ [ratio / 2 - 0.5, ratio / 2 - 0.5, 1]])
    else:
        warp = matrix
    image = cv2.warpAffine(
        source, warp, (size, size), dst=behind, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT
    )
    landmarks = pool.landmarks[index] @ matrix[:, :2].T + matrix[:, 2]
    box = warp_box(pool.boxes[index], matrix)
    if mirrored:
        image = np.ascontiguousarray(image[:, ::-1])
        landmarks = mirror_landmarks(landmarks, size)
        box = box[[2, 1, 0, 3]] * [-1, 1, -1, 1] + [size - 1, 0, size - 1, 0]
    return Scene(image, np.float32([box]), np.float32([landmarks]), np.array([visible(box, size) >= 0.6]))


def mirror_landmarks(landmarks, width):
    """The five landmarks (5, 2) of a picture of that width in pixels after it is mirrored left to right."""
    return (landmarks * [-1, 1] + [width - 1, 0])[MIRROR]


def warp_box(box, matrix):
    """The upright box of the ellipse that fills ``box``, after an affine map with rotation."""
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    centre = matrix[:, :2] @ centre + matrix[:, 2]
    half = np.sqrt((matrix[:, :2] ** 2) @ half**2)
    return np.concatenate([centre - half, centre + half])


def visible(box, size):
    """The share of a box's area inside the picture."""
    inside = np.clip(box, 0, size - 1)
    return float(np.prod(np.maximum(inside[2:] - inside[:2], 0)) / np.prod(box[2:] - box[:2]))


def mosaic(scenes, half):
    """Four scenes of ``half`` pixels in a square."""
    rows = [np.hstack([scenes[0].image, scenes[1].image]), np.hstack([scenes[2].image, scenes[3].image])]
    offsets = [np.array([x, y], np.float32) for y in (0, half) for x in (0, half)]
    pairs = list(zip(scenes, offsets, strict=True))
    return Scene(
        np.vstack(rows),
        np.concatenate([scene.boxes + np.tile(offset, 2) for scene, offset in pairs]),
        np.concatenate([scene.landmarks + offset for scene, offset in pairs]),
        np.concatenate([scene.required for scene in scenes]),
    )


def empty(pool, size, rng):
    """A picture without a face: a place, a body without a head, noise, or blobs of skin colour."""
    kind = rng.random()
    background = resize(pool.backgrounds[int(rng.integers(len(pool.backgrounds)))], size, rng)
    if kind < 0.45:
        return background
    if kind < 0.75:
        return headless(pool, background, rng)
    return noise(size, rng) if kind < 0.87 else blobs(background, rng)


def resize(image, size, rng=None):
    """The picture, or with ``rng`` a random square part of it, perhaps mirrored, at ``size`` x ``size``."""
    if rng is not None:
        side = int(image.shape[0] * rng.uniform(0.4, 1.0))
        y, x = rng.integers(image.shape[0] - side + 1, size=2)
        image = image[y : y + side, x : x + side, :: 1 if rng.random() < 0.5 else -1]
    return cv2.resize(np.ascontiguousarray(image), (size, size), interpolation=cv2.INTER_AREA)


def headless(pool, background, rng):
    """Neck and shoulders of a render whose head is covered with a softly cut piece of ``background``."""
    index, size = int(rng.integers(len(pool.images))), background.shape[0]
    factor = size / pool.images[index].shape[0]
    body, box = resize(pool.images[index], size), pool.boxes[index] * factor
    (x1, y1, x2, y2), mask = box, np.zeros((size, size), np.float32)
    centre, axes = (int((x1 + x2) / 2), int(y1 + 0.4 * (y2 - y1))), (int(x2 - x1), int(0.8 * (y2 - y1)))
    cv2.ellipse(mask, centre, axes, 0, 0, 360, 1.0, -1)
    mask = cv2.GaussianBlur(mask, (0, 0), 0.02 * size)[..., None]
    return (body * (1 - mask) + background * mask).astype(np.uint8)


def noise(size, rng):
    """Coloured noise, from single pixels to large stains."""
    grid = int(rng.choice([4, 8, 16, 32, size]))
    shape = (grid, grid, 3 if rng.random() < 0.7 else 1)
    stains = np.broadcast_to(rng.normal(rng.uniform(60, 190), rng.uniform(10, 70), shape), (grid, grid, 3))
    image = cv2.resize(np.float32(stains), (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(image, 0, 255).astype(np.uint8)


def blobs(background, rng):
    """``background`` with a few smooth ovals of skin colour, without features: balls, hands, lamps."""
    image, size = background.copy(), background.shape[0]
    for _ in range(int(rng.integers(1, 4))):
        colour = np.array([1.0, rng.uniform(0.65, 0.85), rng.uniform(0.45, 0.75)]) * rng.uniform(60, 240)
        axes = tuple(int(side) for side in rng.uniform(0.06, 0.35, 2) * size)
        centre = tuple(int(place) for place in rng.uniform(0.1, 0.9, 2) * size)
        cv2.ellipse(image, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour.tolist(), -1, cv2.LINE_AA)
    return cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.5, 4)))


def degrade(image, rng):
    """Loss of detail, blur, changes of colour and light, noise, JPEG; each at random. uint8 (H, W, 3)."""
    size = image.shape[0]
    if rng.random() < 0.25:  # lost detail: scaled down and up again
        small = max(16, int(size * rng.uniform(0.3, 0.9)))
        image = cv2.resize(
            cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA),
            (size, size),
            interpolation=int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC])),
        )
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.3, 2.0)) * size / 128)
    values = image.astype(np.float32)
    if rng.random() < 0.15:
        values[:] = values @ np.float32([[0.299], [0.587], [0.114]])
    if rng.random() < 0.6:  # exposure, contrast, white balance
        values = (values - 127.5) * rng.uniform(0.6, 1.3) + 127.5 * rng.uniform(0.6, 1.4)
        values = values * np.float32(rng.normal(1, 0.06, 3))
    if rng.random() < 0.3:
        values = values + rng.normal(0, rng.uniform(1, 14), values.shape)
    image = np.clip(values, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 95))]
        image = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
    return image
