"""From images to faces: detect, align, embed; how many images have no usable face is a result of its own."""

import contextlib
from dataclasses import dataclass, field

import numpy as np

from arcface_files.extraction import batches
from arcface_files.faces import ARCFACE_SIZE, align, choose_face
from evaluation.encoders import small_picture
from evaluation.feature_cache import FeatureCache
from evaluation.image_sets import ImageSet
from utils.errors import UserError
from utils.files import sha256_bytes, sha256_file
from utils.images import load_image
from utils.progress import progress

READ_BATCH = 64


@dataclass
class FaceSet:
    """The faces of an image set: one row of each array per image in which a face was found.

    landmarks: (M, 5, 2) float32; boxes: (M, 4); detection_scores: (M,); labels: (M,) str; index: (M,)
    position in `images`. embeddings: judge name -> (M, D) float32. hashes: content hash per image of
    `images`, None for unreadable ones, whose messages are in `unreadable`. measured: what several parts of a
    report read and no cache keeps. small: position -> the crop that was cut there, in 16 x 16 pixels.
    """

    images: ImageSet
    hashes: list
    index: np.ndarray
    landmarks: np.ndarray
    boxes: np.ndarray
    detection_scores: np.ndarray
    unreadable: list = field(default_factory=list)
    embeddings: dict = field(default_factory=dict)
    measured: dict = field(default_factory=dict)
    small: dict = field(default_factory=dict)

    @property
    def name(self):
        """The set's name."""
        return self.images.name

    @property
    def labels(self):
        """Identity of each face, (M,) str."""
        return np.array(self.images.labels, dtype=str)[self.index]

    @property
    def has_face(self):
        """Whether a face was found in each of the readable images, bool."""
        return np.isin([i for i, key in enumerate(self.hashes) if key is not None], self.index)

    @property
    def face_share(self):
        """Share of the readable images in which a face was found."""
        return self.has_face.mean()

    @property
    def keys(self):
        """Content hash of each face's image, (M,)."""
        return [self.hashes[i] for i in self.index]

    @property
    def crop_keys(self):
        """A key for each face's crop: the image's hash and that of the landmarks, which place the crop."""
        points = [sha256_bytes(landmarks.tobytes())[:16] for landmarks in self.landmarks]
        return [f"{key}-{point}" for key, point in zip(self.keys, points, strict=True)]

    @property
    def readable(self):
        """The images that could be read, as an ImageSet; it may be empty."""
        kept = [i for i, key in enumerate(self.hashes) if key is not None]
        paths, labels = (tuple(of[i] for i in kept) for of in (self.images.paths, self.images.labels))
        return ImageSet(self.name, self.images.folder, paths, labels)

    def path(self, position):
        """The image file of the face at `position`."""
        return self.images.paths[self.index[position]]

    def crops(self, positions=None, size=112):
        """Aligned uint8 RGB crops (n, size, size, 3) of the faces at `positions` (all when None)."""
        positions = range(len(self.index)) if positions is None else positions
        crops = [align(load_image(self.path(p)), self.landmarks[p], size) for p in positions]
        if size == ARCFACE_SIZE:
            self.small.update(zip(positions, map(small_picture, crops), strict=True))
        return np.stack(crops) if crops else np.zeros((0, size, size, 3), np.uint8)

    def small_crops(self, positions):
        """The crops at `positions` as 16 x 16 pixels each; those that were cut before are not cut again."""
        self.crops([p for p in positions if p not in self.small])
        return [self.small[p] for p in positions]


def find_faces(images, analyser, policy="largest", cache_folder=None):
    """The :class:`FaceSet` of an :class:`ImageSet`.

    Unreadable images are left out and named in `unreadable`; images without a face count in
    `face_share` only.
    """
    cache = FeatureCache(cache_folder, f"faces|{policy}|{detector_id(analyser)}")
    hashes, unreadable, keys, paths = [], [], [], []
    for path in images.paths:
        try:
            hashes.append(sha256_file(path))
            keys.append(hashes[-1])
            paths.append(path)
        except OSError as error:
            hashes.append(None)
            unreadable.append(f"{path.relative_to(images.folder)}: {error.strerror}")
    rows = cache.fetch(keys, Detections(paths, analyser, policy), READ_BATCH, f"faces of {images.name}")
    where = [i for i, key in enumerate(hashes) if key is not None]
    for i, row in zip(where, rows, strict=True):
        if row[0] == UNREADABLE:
            unreadable.append(f"{images.paths[i].relative_to(images.folder)}: damaged image")
            hashes[i] = None
    found = np.array([row[0] >= 0 for row in rows], bool) if len(rows) else np.zeros(0, bool)
    rows = rows[found] if found.any() else np.zeros((0, 15), np.float32)
    index = np.array(where, np.int64)[found]
    return FaceSet(images, hashes, index, rows[:, 5:].reshape(-1, 5, 2), rows[:, 1:5], rows[:, 0], unreadable)


NO_FACE, UNREADABLE = -1.0, -2.0


class Detections:
    """Callable for the cache: rows (score, box, landmarks); score -1: no face, -2: damaged image."""

    def __init__(self, paths, analyser, policy):
        self.paths, self.analyser, self.policy = paths, analyser, policy

    def __call__(self, positions):
        paths = [self.paths[position] for position in positions]
        return np.concatenate([self.detect(batch) for batch in batches(paths, len(paths))])

    def detect(self, paths):
        """The rows of pictures that are decoded together."""
        rows = np.full((len(paths), 15), np.nan, np.float32)
        rows[:, 0] = UNREADABLE
        pictures = {}
        for place, path in enumerate(paths):
            with contextlib.suppress(UserError):
                pictures[place] = load_image(path)
        found = self.analyser.detect(list(pictures.values()))
        for (place, picture), faces in zip(pictures.items(), found, strict=True):
            face = choose_face(faces, picture.shape[:2], self.policy)
            rows[place, 0] = NO_FACE
            if face is not None:
                rows[place] = [face.score, *face.box, *face.landmarks.ravel()]
        return rows


def embed_faces(faces, analyser, judge="recogniser", cache_folder=None, batch_size=64):
    """Embeddings (M, D) of all faces by an analyser's recogniser, also put into faces.embeddings[judge]."""
    path = analyser.models["recognition"]
    cache = FeatureCache(cache_folder, f"recogniser|{sha256_file(path)}")
    desc = f"embeddings of {faces.name}"
    rows = cache.fetch(faces.crop_keys, lambda p: analyser.embed(faces.crops(p)), batch_size, desc)
    faces.embeddings[judge] = rows
    return rows


def detector_id(analyser):
    """Text that changes whenever the detections would."""
    settings = [getattr(analyser, name, None) for name in ("det_size", "threshold", "pad")]
    return f"{sha256_file(analyser.models['detection'])}|{settings}"


def load_sets(image_sets, analyser, judges, policy="largest", cache_folder=None):
    """Faces and embeddings of several image sets: {set name: FaceSet}. `judges`: name -> FaceAnalyser."""
    sets = {}
    for images in progress(image_sets, "image sets") if len(image_sets) > 1 else image_sets:
        sets[images.name] = faces = find_faces(images, analyser, policy, cache_folder)
        for judge, judge_analyser in judges.items():
            embed_faces(faces, judge_analyser, judge, cache_folder)
    return sets
