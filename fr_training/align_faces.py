"""Cut the faces out of photos or samples: aligned 112 x 112 crops for recognition and evaluation.

    python -m fr_training.align_faces --config configs/align_tfd.py
    python -m fr_training.align_faces --config configs/align_mini.py --source SAMPLES/ID-Booth --output SET

Detection sees every image with a black margin of half its size (as published), so that faces that fill it are
found; the largest face is warped to the ArcFace template by its five landmarks. Images without a face are
listed in missing_faces.json: their share is a result too. An existing crop whose source is unchanged is kept.
An output holds the crops of one source; another one is refused. A crop's PNG text holds the hash of its
source, and the provenance of a generated one; no other file in the output is replaced or deleted.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m fr_training.align_faces")

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from arcface_files.extraction import decoded_batches
from arcface_files.face_records import hash_or_none
from arcface_files.faces import FaceAnalyser, align, choose_face
from arcface_files.people import IMAGES, people_in
from configs.fr_config import AlignConfig
from id_booth.launch import leave_on_signals
from id_booth.sampling.provenance import png_chunks, read_record
from utils.claims import Claims
from utils.config import parse_command_line
from utils.devices import use_threads
from utils.errors import UserError, one_line, run
from utils.files import atomic_write_json, read_json
from utils.identities import natural_key
from utils.images import read_png_text, save_png
from utils.outputs import guard, open_output
from utils.progress import log, progress
from utils.run_record import publishable, summarise, write_run_record

MISSING, STATE = "missing_faces.json", "alignment.json"
RECORDS = [MISSING, STATE, "run.json", "summary.json", "summary.txt"]
SOURCE_HASH = "Source SHA-256"  # PNG text of a crop, by which we recognise our own files
DECODE_THREADS = 4


def main(argv=None):
    config = parse_command_line(AlignConfig, "configs/align_mini.py", argv)
    listing = people_in(config.source)
    refuse_other_level(config.source, listing)
    open_output(config.output, RECORDS, [config.source], write=not config.dry_run)
    state = Alignment(config, listing)
    state.refuse_other_source()
    total, todo = sum(map(len, listing.values())), state.todo()
    log(f"{config.source}: {total} images of {len(listing)} identities, {total - len(todo)} done already")
    if config.dry_run:
        return 0
    leave_on_signals()
    use_threads(config.threads)
    with Claims(config.output) as claims:
        if not claims.take("alignment"):
            raise UserError(f"{config.output}: another run is aligning here; wait for it")
        update_labels(config.labels, listing)
        state.align(todo)
        state.finish()
        if todo:
            write_run_record(config.output, config)
    return summarise(state.rows(), config.output)


def refuse_other_level(source, listing):
    """UserError where `listing` takes pictures for a person that are none: ROOT/ID_1/images, class images."""
    if IMAGES in listing:
        raise UserError(
            f"{source}: {IMAGES} in it holds pictures and no folders of people; give the folder above where "
            "they are one person's, or else move them away"
        )
    for name, files in listing.items():
        if files and (read_record(files[0]) or {}).get("identity") == "":
            raise UserError(
                f"{source}: {name} holds class images, of no person; give the folder of the people"
            )


class Alignment:
    """The crops of a listing of images: what is done, what is to do, how each image ended.

    ``images`` maps "identity/file" to {"sha256": of the source, "face": whether a crop exists, "trouble": why
    there is none, where that is not a missing face}.
    """

    def __init__(self, config, listing):
        self.config, self.listing, self.output = config, listing, Path(config.output)
        names = ("pack", "det_size", "threshold", "pad", "face")
        self.settings = publishable({name: getattr(config, name) for name in names})
        old = read_state(self.output)
        self.source = publishable(str(Path(config.source)))
        self.before, self.source_before = old.get("images", {}), old.get("source")
        self.images = dict(self.before) if publishable(old.get("settings")) == self.settings else {}
        crops = Counter(self.crop_path(name, file) for name, files in listing.items() for file in files)
        self.contested = {crop for crop, count in crops.items() if count > 1}

    def refuse_other_source(self):
        """UserError where the output holds crops of another folder, which this run would replace.

        Another is one that was called otherwise, or that has not one image of those that were aligned.
        """
        files = {f"{name}/{file.name}": file for name, files in self.listing.items() for file in files}
        known = ((files.get(key), entry) for key, entry in self.before.items() if isinstance(entry, dict))
        same = any(file and hash_or_none(file) == entry.get("sha256") for file, entry in known)
        named = self.source_before in (None, self.source)
        if self.before and not (named and same):
            raise UserError(
                f"{self.output}: holds the crops of {self.source_before or 'another folder'}, not of "
                f"{self.config.source}; name another output, or delete its {STATE} if the folder has moved"
            )

    def todo(self):
        """(identity, file) of all images that are not aligned yet with these settings."""
        return [
            (name, file)
            for name, files in self.listing.items()
            for file in files
            if not self.done(name, file)
        ]

    def done(self, name, file):
        """Whether a file of this content was aligned with these settings and its crop still exists."""
        entry = self.images.get(f"{name}/{file.name}")
        if not isinstance(entry, dict) or "trouble" in entry or entry.get("sha256") != hash_or_none(file):
            return False
        return not entry.get("face") or source_hash(self.crop_path(name, file)) == entry["sha256"]

    def crop_path(self, name, file):
        """Where an image's crop lies."""
        return self.output / name / crop_name(file)

    def align(self, todo):
        """Detect, choose and cut; a file that cannot be read or a crop that cannot be written is noted."""
        config, names = self.config, {file: name for name, file in todo}
        if not todo:
            return
        analyser = FaceAnalyser(config.pack, config.det_size, config.threshold, config.pad, config.batch_size)
        bar = progress(desc="align", total=len(todo))
        with ThreadPoolExecutor(DECODE_THREADS) as pool:
            for files, images in decoded_batches([file for _, file in todo], config.batch_size, pool):
                readable = [image for image in images if not isinstance(image, UserError)]
                found = iter(analyser.detect(readable))
                for file, image in zip(files, images, strict=True):
                    faces = image if isinstance(image, UserError) else next(found)
                    self.add(names[file], file, image, faces)
                self.save()
                bar.update(len(files))
        bar.close()

    def add(self, name, file, image, faces):
        """Write the crop of one image and note the result; ``faces`` may be the UserError of its decoding."""
        entry = {"sha256": hash_or_none(file), "face": False}
        try:
            if isinstance(faces, UserError):
                raise faces
            face = choose_face(faces, image.shape[:2], self.config.face)
            if face is not None:
                self.write(self.crop_path(name, file), align(image, face.landmarks), file, entry["sha256"])
                entry["face"] = True
        except UserError as error:
            log(f"{name}/{file.name}: {one_line(error)}")
            entry["trouble"] = publishable(one_line(error))
        self.images[f"{name}/{file.name}"] = entry

    def write(self, path, crop, file, digest):
        """Write one crop, with the record of a generated image; UserError where a file of others is there."""
        guard(path)
        if path in self.contested:
            raise UserError(f"{path.name}: would be the crop of another file too; rename one")
        if path.exists() and source_hash(path) is None:
            raise UserError(f"{path}: was not written by this project; move it away")
        record = read_record(file)  # a photo has none, and none of its own notes go on
        save_png(path, crop, (png_chunks(record) if record else {}) | {SOURCE_HASH: digest})

    def save(self):
        """Write what is known so far."""
        state = {"source": self.source, "settings": self.settings, "images": self.images}
        atomic_write_json(self.output / STATE, state)

    def finish(self):
        """Forget images that are gone, delete our crops of them, and write the list of missing faces."""
        present = {f"{name}/{file.name}" for name, files in self.listing.items() for file in files}
        self.images = {key: entry for key, entry in self.images.items() if key in present}
        with_face = {self.crop_path(*key.split("/", 1)) for key, e in self.images.items() if e["face"]}
        for key, entry in self.before.items():
            crop = self.crop_path(*key.split("/", 1))
            if crop not in with_face and crop.is_file() and source_hash(crop) == entry.get("sha256"):
                guard(crop)
                crop.unlink()
        missing = {}
        for key, entry in self.images.items():
            if not entry["face"]:
                missing.setdefault(key.split("/", 1)[0], []).append(key.split("/", 1)[1])
        atomic_write_json(self.output / MISSING, missing)
        self.save()

    def rows(self):
        """The summary: a row for each identity."""
        rows = []
        for name, files in self.listing.items():
            entries = [self.images[f"{name}/{file.name}"] for file in files]
            counts = Counter(
                "crops" if e["face"] else "trouble" if "trouble" in e else "missing" for e in entries
            )
            status = "failed" if counts["trouble"] or not files else "done"
            rows.append(
                {
                    "identity": name,
                    "images": len(files),
                    "crops": counts["crops"],
                    "without face": counts["missing"],
                    "unreadable": counts["trouble"],
                    "status": status,
                }
            )
        return rows


def crop_name(file):
    """The name of an image's crop; a.jpg becomes a_jpg.png, as there may be an a.png too."""
    stem, suffix = Path(file).stem, Path(file).suffix.lower()
    return f"{stem}.png" if suffix == ".png" else f"{stem}_{suffix[1:]}.png"


def crop_hashes(folder):
    """(identity, crop's name) -> content hash of the image it was cut from; {} where nothing says so."""
    images = read_state(folder).get("images", {})
    keys = (key.split("/", 1) for key, entry in images.items() if "/" in key and isinstance(entry, dict))
    return {(name, crop_name(image)): images[f"{name}/{image}"].get("sha256") for name, image in keys}


def read_state(folder):
    """The alignment.json of a crop set; {} where there is none that has its images."""
    file = Path(folder) / STATE
    state = read_json(file) if file.is_file() else {}
    return state if isinstance(state, dict) and isinstance(state.get("images"), dict) else {}


def source_hash(crop):
    """The content hash of the image that a crop was cut from; None for a file that is no crop of ours."""
    try:
        return read_png_text(crop).get(SOURCE_HASH)
    except UserError:
        return None


def read_labels(path):
    """Name -> label of a labels.json; UserError where there is none, or labels are no whole numbers."""
    labels = read_json(path)
    if not isinstance(labels, dict) or not all(type(label) is int for label in labels.values()):
        raise UserError(
            f"{path}: labels are no whole numbers; restore the file, or delete it and align again"
        )
    return labels


def update_labels(path, names):
    """Add new names to the one map from identity names to labels; known ones keep theirs. Returns the map."""
    path = Path(path)
    labels = read_labels(path) if path.is_file() else {}
    if sorted(labels.values()) != [*range(len(labels))]:
        raise UserError(f"{path}: labels are not 0, 1, 2, ...; restore the file or delete it")
    new = sorted(set(names) - set(labels), key=natural_key)
    labels |= {name: len(labels) + place for place, name in enumerate(new)}
    if new:
        atomic_write_json(path, labels)
    return labels


if __name__ == "__main__":
    run(main)
