"""What training reads of extracted faces: landmarks, and embeddings of its own crop and network."""

from pathlib import Path

import numpy as np
import torch

from arcface_files.face_records import FACES_FILE, OK, network_record, read_embedding
from arcface_files.faces import Face, choose_face, crop_face
from arcface_files.recogniser import embed_crops
from utils.errors import UserError
from utils.files import read_json, sha256_file
from utils.identities import image_files, readable
from utils.images import load_image
from utils.progress import log

EXTRACT = "run extract_arcface_embeds.py"


class StoredFaces:
    """The faces.json and the embeddings of one folder, and what they are worth to a training.

    An embedding that is of the other crop, or of another network, is made anew from the photo, in memory: a
    recipe takes photos however they were extracted. One without an entry in faces.json, or that somebody else
    has put there, counts as of the box crop, which is what the official script writes. Where faces.json does
    not say where the face is, it is looked for, in memory too.

    Args:
        embeds_dir: the folder. crop: one of CROPS; recogniser: from load_recogniser; both of the training.
        open_analyser: function that gives the FaceAnalyser to look for faces with; None refuses instead.
    """

    @readable()
    def __init__(self, embeds_dir, crop, recogniser, open_analyser=None):
        self.folder, self.crop, self.recogniser = Path(embeds_dir), crop, recogniser
        self.open_analyser, self.found = open_analyser, {}
        file = self.folder / FACES_FILE
        self.entries, self.stored_crop, self.same_network = {}, "box", True
        if file.is_file():
            content = read_json(file)
            self.entries = photo_entries(content, file)
            self.stored_crop = content.get("crop", "aligned")
            self.same_network = content.get("recogniser") == network_record(recogniser.path)

    def embeddings(self, photos):
        """Embeddings (n, D) float32, zero where there is none, and (n,) bool: which photos have one.

        Raises:
            UserError: a photo that has changed since, an embedding that cannot be read or made anew.
        """
        values, present = torch.zeros(len(photos), self.recogniser.embedding_size), []
        anew, crops = [], []
        for index, photo in enumerate(photos):
            file = self.folder / f"{photo.stem}.pt"
            self.refuse_changed(photo, photo, "sha256")
            if not file.is_file():
                continue
            if self.comparable(photo.name):
                values[index] = read_embedding(file, self.recogniser.embedding_size)
                self.refuse_changed(photo, file, "embedding_sha256", "given_sha256")
                present.append(index)
            elif (crop := self.crop_anew(photo, file)) is not None:
                anew.append(index)
                crops.append(crop)
        if anew:
            values[anew] = embed_crops(np.stack(crops), self.recogniser)
            why = "of the other crop" if self.same_network else "of another recogniser"
            faces = f", {len(self.found)} faces found anew" if self.found else ""
            log(
                f"{self.folder}: {len(anew)} embeddings are {why}; made anew ({self.crop} crop, "
                f"{self.recogniser.path.name}{faces}) in memory"
            )
        has_embedding = torch.zeros(len(photos), dtype=torch.bool)
        has_embedding[present + anew] = True
        return values, has_embedding

    def comparable(self, name):
        """Whether the stored embedding of a photo is of the training's crop and network."""
        if self.given(name):
            return self.crop == "box"
        return self.stored_crop == self.crop and self.same_network

    def given(self, name):
        """Whether somebody else has made the embedding of a photo."""
        return "given_sha256" in self.entries.get(name, {"given_sha256": ""})

    def refuse_changed(self, photo, file, *fields):
        """Refuse a photo, or its embedding, that is not the one that its entry names in one of ``fields``."""
        entry = self.entries.get(photo.name)
        if entry and file.is_file() and sha256_file(file) not in [entry.get(field) for field in fields]:
            raise UserError(
                f"{file}: has changed since the face was extracted; put it back, or {EXTRACT} again"
            )

    def crop_anew(self, photo, file):
        """The crop that a comparable embedding is of, uint8 (112, 112, 3); None without a face."""
        if not photo.is_file():
            what = f"{file}: is an embedding of another crop or network than this training compares"
            raise UserError(f"{what}, and {photo.name} is not there to make it anew; add the photo")
        face = self.face(photo)
        return None if face is None else crop_face(load_image(photo), face, self.crop)

    def face(self, photo):
        """The Face in a photo, from faces.json or else looked for; None where there is none."""
        entry = self.entries.get(photo.name, {})
        if entry.get("status", "") == OK:
            file = self.folder / FACES_FILE
            landmarks = checked_points("landmarks", entry.get("landmarks"), (5, 2), file)
            return Face(checked_points("box coordinates", entry.get("box"), (4,), file), landmarks, 1.0)
        if photo not in self.found and not entry:
            if self.open_analyser is None:
                file = self.folder / FACES_FILE
                raise UserError(f"{file}: does not say where the face is in {photo.name}; {EXTRACT}")
            image = load_image(photo)
            self.found[photo] = choose_face(self.open_analyser().detect([image])[0], image.shape[:2])
        return self.found.get(photo)

    def landmarks(self, photo):
        """The five landmarks in a photo, (5, 2) float64 pixels; None where they are not known.

        They are looked for only where the training needs them.
        """
        if self.crop == "aligned" and "landmarks" not in self.entries.get(photo.name, {}):
            face = self.face(photo)
            return None if face is None else face.landmarks.astype(float)
        points = self.entries.get(photo.name, {}).get("landmarks")
        return (
            None if points is None else checked_points("landmarks", points, (5, 2), self.folder / FACES_FILE)
        )

    def photos_named(self, images_dir, most=None):
        """The photos that the stored embeddings are of, in the order of their names.

        Args:
            images_dir: where the photos are, or would be. most: only of the first so many, None: of all.
        """
        photos, names = image_files(images_dir)[:most], {}
        if not most or not photos:
            names = {Path(name).stem: Path(images_dir) / name for name in self.entries}
        names |= {photo.stem: photo for photo in photos}
        # Not what macOS leaves beside each file, nor a pipe or a folder of such a name.
        stems = sorted(file.stem for file in self.folder.glob("[!.]*.pt") if file.is_file())
        return [names.get(stem, Path(images_dir) / stem) for stem in stems if stem in names or not names]


def photo_entries(content, file):
    """The entries of a faces.json by file name; UserError when it has not that form."""
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise UserError(f"{file}: damaged; {EXTRACT} again")
    if any(Path(name).name != name for name in entries):  # which would lead out of the photos' folder
        raise UserError(f"{file}: names that are no file names; {EXTRACT} again")
    return entries


def checked_points(what, points, shape, file):
    """Coordinates from JSON as float64 of a shape, finite; UserError for anything else."""
    try:
        points = np.asarray(points, float)
    except (TypeError, ValueError):
        points = np.empty(0)
    # Beyond a million pixels lies no photo, and products of such numbers overflow.
    if points.shape != shape or not np.isfinite(points).all() or np.abs(points).max() > 1e6:
        raise UserError(f"{file}: {what} that are none; {EXTRACT} again")
    return points
