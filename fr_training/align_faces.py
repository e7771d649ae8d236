"""Cut the faces out of photos or samples: aligned 112 x 112 crops for recognition and evaluation.

    python -m fr_training.align_faces --config configs/align_tfd.py
    python -m fr_training.align_faces --config configs/align_mini.py --source SAMPLES/ID-Booth --output SET

Detection sees every image with a black margin of half its size (as published), so that faces that fill it are
found; the largest face is warped to the ArcFace template by its five landmarks. Images without a face are
listed in missing_faces.json: their share is a result too. An existing crop whose source is unchanged is kept.
"""

from pathlib import Path

from arcface_files.faces import FaceAnalyser, align, choose_face
from configs.fr_config import AlignConfig
from utils.config import parse_command_line
from utils.errors import UserError, run
from utils.files import atomic_write_json, read_json, sha256_file
from utils.identities import find_identities, image_files, natural_key, sample_folders, subfolders
from utils.images import load_image, save_png
from utils.progress import log, progress
from utils.run_record import write_run_record

MISSING, STATE = "missing_faces.json", "alignment.json"


def main(argv=None):
    config = parse_command_line(AlignConfig, "configs/align_mini.py", argv)
    listing = find_images(config.source)
    output, state = Path(config.output), Known(config)
    todo = [(name, file) for name, files in listing.items() for file in files if not state.done(name, file)]
    total = sum(map(len, listing.values()))
    log(f"{config.source}: {total} images of {len(listing)} identities, {total - len(todo)} done already")
    if config.dry_run:
        return 0
    update_labels(config.labels, listing)
    if todo:
        analyser = FaceAnalyser(config.pack, config.det_size, config.threshold, config.pad, config.batch_size)
        bar = progress(desc="align", total=len(todo))
        for start in range(0, len(todo), config.batch_size):
            chunk = todo[start : start + config.batch_size]
            align_batch(config, analyser, chunk, state)
            bar.update(len(chunk))
        bar.close()
    state.finish(listing)
    write_run_record(output, config)
    missing = read_json(output / MISSING)
    log(
        f"{output}: {total - sum(map(len, missing.values()))} crops, "
        f"{sum(map(len, missing.values()))} images without a face (see {MISSING})"
    )
    return 0


def find_images(source):
    """Identity name -> image files, for photos (both nestings) and for samples (SOURCE/ID_1/*.png)."""
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give the folder that holds the identities")
    direct = {folder.name: image_files(folder) for folder in sample_folders(source)}
    direct.pop("images", None)
    if any(direct.values()):
        return {name: files for name, files in direct.items() if files}
    return {person.name: image_files(person.images_dir) for person in find_identities(source)}


class Known:
    """What is aligned already: per image the source's hash and whether a face was found."""

    def __init__(self, config):
        self.output = Path(config.output)
        self.settings = {
            "pack": str(config.pack),
            "det_size": config.det_size,
            "threshold": config.threshold,
            "pad": config.pad,
            "face": config.face,
        }
        file = self.output / STATE
        old = read_json(file) if file.is_file() else {}
        self.images = old.get("images", {}) if old.get("settings") == self.settings else {}

    def done(self, name, file):
        """Whether a file of this content was aligned with these settings and its crop still exists."""
        entry = self.images.get(f"{name}/{file.name}")
        if entry is None or entry["sha256"] != sha256_file(file):
            return False
        return not entry["face"] or crop_path(self.output, name, file).is_file()

    def add(self, name, file, face):
        """Note the outcome of one image."""
        self.images[f"{name}/{file.name}"] = {"sha256": sha256_file(file), "face": face}

    def save(self):
        """Write what is known so far."""
        atomic_write_json(self.output / STATE, {"settings": self.settings, "images": self.images})

    def finish(self, listing):
        """Forget images that are gone, with their crops, and write the list of missing faces."""
        present = {f"{name}/{file.name}" for name, files in listing.items() for file in files}
        crops = {
            crop_path(self.output, name, file)
            for name, files in listing.items()
            for file in files
            if self.images[f"{name}/{file.name}"]["face"]
        }
        self.images = {key: entry for key, entry in self.images.items() if key in present}
        for folder in subfolders(self.output):
            for crop in image_files(folder):
                if crop not in crops:
                    crop.unlink()
        missing = {}
        for key, entry in self.images.items():
            if not entry["face"]:
                name, file = key.split("/", 1)
                missing.setdefault(name, []).append(file)
        atomic_write_json(self.output / MISSING, missing)
        self.save()


def crop_path(output, name, file):
    """Where a source image's crop lies; a.jpg becomes a_jpg.png, as there may be an a.png too."""
    suffix = file.suffix.lower()
    stem = file.stem if suffix == ".png" else f"{file.stem}_{suffix[1:]}"
    return Path(output) / name / f"{stem}.png"


def align_batch(config, analyser, chunk, state):
    """Detect, choose and cut one batch of (name, file)."""
    images = [load_image(file) for _, file in chunk]
    for (name, file), image, faces in zip(chunk, images, analyser.detect(images), strict=True):
        face = choose_face(faces, image.shape[:2], config.face)
        if face is not None:
            save_png(crop_path(config.output, name, file), align(image, face.landmarks))
        state.add(name, file, face is not None)
    state.save()


def update_labels(path, names):
    """Add new names to the one map from identity names to labels; known ones keep theirs. Returns the map."""
    path = Path(path)
    labels = read_json(path) if path.is_file() else {}
    if sorted(labels.values()) != list(range(len(labels))):
        raise UserError(f"{path}: labels are not 0, 1, 2, ...; restore the file or delete it")
    new = sorted(set(names) - set(labels), key=natural_key)
    labels |= {name: len(labels) + place for place, name in enumerate(new)}
    if new:
        atomic_write_json(path, labels)
    return labels


if __name__ == "__main__":
    run(main)
