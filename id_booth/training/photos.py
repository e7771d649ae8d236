"""What training needs of an identity and of the class images: read, checked and encoded once."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from PIL import Image

from arcface_files.face_records import refuse_equal_stems, without_face
from arcface_files.faces import similarity_transform
from arcface_files.stored_faces import EXTRACT, StoredFaces
from id_booth.training.start_check import start_check
from utils.devices import to_device
from utils.errors import UserError
from utils.identities import image_files
from utils.images import load_image
from utils.progress import log


@dataclass
class Photos:
    """Training images of one identity, or the class images, with what is known of their faces.

    ``mean``, ``std``: (n, C, h, w) float32 of the VAE posterior, unscaled, when cached; else None and
    ``pixels`` (n, 3, H, W) float32 in [-1, 1] are encoded at each step. ``embeddings``: (n, D) float32, zero
    where ``has_embedding`` (n,) is False. ``matrices``: (n, 2, 3) float64 similarity from training image to
    aligned crop, NaN where the landmarks are unknown. ``windows``: (n, 4) int64 top, left, height, width of
    the face in latents. ``start_check``: what the run record says of start_check.py, {} without a check.
    """

    name: str
    paths: list
    pixels: torch.Tensor | None
    mean: torch.Tensor | None
    std: torch.Tensor | None
    embeddings: torch.Tensor | None
    has_embedding: torch.Tensor
    matrices: torch.Tensor
    windows: torch.Tensor
    start_check: dict = field(default_factory=dict)

    def __len__(self):
        return len(self.paths)


class PhotoStore:
    """The pictures of several Photos as one: picture i of photos k is row ``first[k] + i``.

    ``has_embedding`` and ``windows`` are those of Photos, joined, on the CPU; ``embeddings``, ``matrices``
    and the posteriors lie on the device; ``counts``: the pictures of each.

    Args:
        photos: list of Photos. models: FrozenModels.
    """

    def __init__(self, photos, models):
        self.photos, self.models = photos, models
        self.counts = [len(each) for each in photos]
        self.first = [sum(self.counts[:k]) for k in range(len(photos))]
        for name in ("has_embedding", "matrices", "windows"):
            setattr(self, name, torch.cat([getattr(each, name) for each in photos]))
        self.matrices = self.matrices.to(models.device)
        known = [each.embeddings for each in photos if each.embeddings is not None]
        self.embeddings = torch.cat(known).to(models.device) if known else None
        self.cached = photos[0].mean is not None
        if self.cached:
            # In one memory order, whatever the encoder left: the order decides the last digits of a step.
            self.mean, self.std = (
                torch.cat([getattr(each, name) for each in photos]).contiguous().to(models.device)
                for name in ("mean", "std")
            )

    def posterior(self, rows):
        """Mean and standard deviation of the VAE posterior of rows, (B, C, h, w) float32 on the device."""
        if self.cached:
            rows = to_device(rows, self.models.device)
            return self.mean[rows], self.std[rows]
        return self.models.encode(torch.stack([self.pixels(row) for row in rows.tolist()]))

    def pixels(self, row):
        """The picture of a row, (3, H, W) float32 in [-1, 1]."""
        owner = max(k for k, first in enumerate(self.first) if first <= row)
        return self.photos[owner].pixels[row - self.first[owner]]


def prepare_photos(folder, config, models, branch=None, most=None):
    """Read and encode the photos of a folder.

    Args:
        folder: IdentityFolder. most: only the first so many photos, None: all.
        branch: IdentityBranch, which needs embeddings (and for the aligned crop landmarks) and is tried out
            on them if the config wants that; None where there is no identity term.

    Raises:
        UserError: no photo, an unreadable one, one changed since, no or an unreadable embedding.
    """
    paths = photo_files(folder, most)
    images, placements = zip(*(load_square(path, config.resolution) for path in paths), strict=True)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    faces = read_faces_of(paths, folder.embeds_dir, config, branch, placements)
    embeddings, has_embedding, given, landmarks = faces
    matrices = alignment_matrices(landmarks)
    mean = std = None
    if config.cache_latents:
        chunks = [models.encode(chunk) for chunk in pixels.split(config.cache_batch_size)]
        mean, std = (torch.cat([pair[i].cpu() for pair in chunks]) for i in (0, 1))
    factor = models.base.latent_factor
    windows = partial(face_windows, matrices, config.resolution // factor, factor)
    photos = Photos(
        folder.name,
        paths,
        None if config.cache_latents else pixels,
        mean,
        std,
        embeddings,
        has_embedding,
        matrices,
        windows(config.face_margin),
    )
    if branch and config.start_check:
        photos.start_check = start_check(photos, pixels, given, windows, config, models, branch)
    return photos


def photo_files(folder, most=None):
    """The photos of a folder, or the first so many; UserError when there is none, or two share a stem."""
    paths = image_files(folder.images_dir)[:most]
    if not paths:
        raise UserError(f"{folder.images_dir}: no photo in it; add png or jpg files of {folder.name}")
    refuse_equal_stems(paths)
    return paths


def load_square(path, side):
    """A photo resized on its shorter side and centre-cropped.

    Returns:
        (image, placement): uint8 (side, side, 3), and (scale, left, top) so that a point (x, y) of the photo
        lies at ((x + 0.5) * scale - 0.5 - left, ...) of the image (pixel centres at integers).
    """
    image = load_image(path)
    height, width = image.shape[:2]
    if (height, width) == (side, side):
        return image, (1.0, 0, 0)
    scale = side / min(height, width)
    new_width, new_height = max(side, round(width * scale)), max(side, round(height * scale))
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.LANCZOS)
    left, top = (new_width - side) // 2, (new_height - side) // 2
    # A copy: a view would keep the whole of a panorama.
    return np.asarray(resized)[top : top + side, left : left + side].copy(), (scale, left, top)


def read_faces_of(paths, embeds_dir, config, branch, placements):
    """What is known of the faces in photos.

    Returns:
        (embeddings, has_embedding, given, landmarks): (n, D) float32, None without a branch; (n,) bool;
        (n,) bool, whether somebody else has made it; and (n, 5, 2) float64 in the training images, NaN where
        they are not known.
    """
    landmarks, none = np.full((len(paths), 5, 2), np.nan), torch.zeros(len(paths), dtype=torch.bool)
    if branch is None:
        return None, none, none, landmarks
    stored = StoredFaces(embeds_dir, config.crop, branch.recogniser, branch.open_analyser)
    embeddings, present = stored.embeddings(paths)
    if not present.any():
        cause = f"no embedding of these photos; {EXTRACT} first"
        if without_face(embeds_dir, paths):
            cause = "no face was found to embed in these photos; add photos that show the face"
        raise UserError(f"{embeds_dir}: {cause}")
    if not present.all():
        missing = ", ".join(p.name for p, here in zip(paths, present, strict=True) if not here)
        log(f"{embeds_dir}: {missing} without embedding; used for reconstruction only")
    for index, (path, (scale, left, top)) in enumerate(zip(paths, placements, strict=True)):
        if (points := stored.landmarks(path)) is not None:
            landmarks[index] = (points + 0.5) * scale - 0.5 - (left, top)
    if config.crop == "aligned" and np.isnan(landmarks[present.numpy()]).any():
        raise UserError(f"{embeds_dir}/faces.json: landmarks missing; {EXTRACT} again")
    given = torch.tensor([stored.given(path.name) for path in paths])
    return embeddings, present, given, landmarks


def alignment_matrices(landmarks):
    """(n, 2, 3) float64 similarity from each training image to its 112 x 112 aligned crop, NaN if unknown."""
    matrices = np.full((len(landmarks), 2, 3), np.nan)
    for index, points in enumerate(landmarks):
        if not np.isnan(points).any():
            matrices[index] = similarity_transform(points)
    return torch.from_numpy(matrices)


def face_windows(matrices, latent_side, factor, margin):
    """(n, 4) int64: top, left, height, width in latents of the window that holds each aligned crop.

    The window is the crop's footprint in the image plus ``margin`` latents, its size the largest over the
    identity's photos and an even number, so that all of an identity's windows decode in one batch. Photos
    without landmarks get the whole image.
    """
    corners = np.array([[0, 0], [111, 0], [0, 111], [111, 111]], float)
    boxes = np.tile([0.0, 0.0, latent_side, latent_side], (len(matrices), 1))
    for index, matrix in enumerate(matrices.numpy()):
        if not np.isnan(matrix).any():
            footprint = (corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
            boxes[index, :2] = np.floor(footprint.min(0) / factor) - margin
            boxes[index, 2:] = np.ceil(footprint.max(0) / factor) + margin
    known = ~torch.isnan(matrices).flatten(1).any(1).numpy()
    chosen = boxes[known] if known.any() else boxes
    sides = (chosen[:, 2:] - chosen[:, :2]).max(0)
    width, height = (min(latent_side, int(np.ceil(side / 2) * 2)) for side in sides)
    windows = np.zeros((len(boxes), 4), np.int64)
    for index, box in enumerate(boxes):
        centre_x, centre_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        windows[index] = (
            np.clip(round(centre_y - height / 2), 0, latent_side - height),
            np.clip(round(centre_x - width / 2), 0, latent_side - width),
            height,
            width,
        )
    return torch.from_numpy(windows)
