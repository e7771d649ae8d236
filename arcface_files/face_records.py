"""faces.json and the embedding files beside it: what was found in which photo, and whether it still holds.

ArcFace_embeds/faces.json: {"detector": {...}, "recogniser": {...}, "multiple_faces": policy, "crop":
"aligned" | "box", "images": {file name: {"status": "ok" | "no face" | "several faces" | "unreadable: why",
"sha256", "width", "height", "faces" (how many), "box": [x1, y1, x2, y2], "landmarks": 5 x [x, y], "score",
"embedding_sha256"}}}. Coordinates are pixels of the photo after its EXIF turn. ArcFace_embeds/{stem}.pt: a
float32 tensor (D,).

An embedding that somebody else has put there is used as it is and never changed: only a file whose content
faces.json names as "embedding_sha256" is ours. Its entry has "given_sha256" instead.
"""

import io
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import torch

from arcface_files.safe_load import MEBIBYTE, load_tensors
from utils.errors import UserError
from utils.files import atomic_write_bytes, atomic_write_json, read_json, sha256_bytes, sha256_file
from utils.identities import readable
from utils.progress import log

FACES_FILE = "faces.json"
OK, NO_FACE, SEVERAL, UNREADABLE = "ok", "no face", "several faces", "unreadable"


def face_settings(analyser, recogniser, multiple_faces, crop):
    """What an embedding depends on besides the photo; entries made with other settings are stale."""
    detection = {"det_size": analyser.det_size, "threshold": analyser.threshold, "pad": analyser.pad}
    return {
        "detector": network_record(analyser.models["detection"]) | detection,
        "recogniser": network_record(recogniser.path),
        "multiple_faces": multiple_faces,
        "crop": crop,
    }


class FaceRecords:
    """The faces.json of a folder, and the embeddings beside it.

    Args:
        embeds_dir: folder for both. settings: from :func:`face_settings`. size: numbers of an embedding.
    """

    def __init__(self, embeds_dir, settings, size):
        self.folder, self.settings, self.size = Path(embeds_dir), settings, size
        self.entries, self.waiting = {}, {}
        self.known = read_faces(embeds_dir)

    def keep_up_to_date(self, paths, pool):
        """Keep the entries of photos that still hold; the content hash of every photo by file name.

        Raises:
            UserError: two photos with the same stem.
        """
        refuse_equal_stems(paths)
        hashes = dict(zip([path.name for path in paths], pool.map(hash_or_none, paths), strict=True))
        if {key: self.known.get(key) for key in self.settings} == self.settings:
            known = self.known.get("images", {})
            kept = [path for path in paths if self.holds(known.get(path.name), path, hashes[path.name])]
            self.entries = {path.name: known[path.name] for path in kept}
        return hashes

    def holds(self, entry, photo, photo_hash):
        """Whether an entry is of this very photo, and the embedding beside it the one that it names."""
        if not isinstance(entry, dict) or not isinstance(entry.get("faces"), int):
            return False
        if entry.get("sha256") != photo_hash or entry.get("status") not in (OK, NO_FACE, SEVERAL):
            return False
        named = entry.get("given_sha256") or entry.get("embedding_sha256")
        file = self.file(photo.name)
        return named == (sha256_file(file) if file.is_file() else None)

    def file(self, name):
        """The embedding file of a photo called ``name``."""
        return self.folder / f"{Path(name).stem}.pt"

    def is_ours(self, name):
        """Whether the embedding of a photo is as we wrote it, or what damage has left of that."""
        entry = self.known.get("images", {}).get(name)
        written = entry.get("embedding_sha256") if isinstance(entry, dict) else None
        if written is None or written == sha256_file(self.file(name)):
            return written is not None
        try:
            read_embedding(self.file(name), self.size)
            return False
        except UserError:
            return True

    def add(self, name, entry, embedding):
        """Take a photo's entry and its embedding, (D,) float32 or None; :meth:`write` writes them."""
        file, data = self.file(name), None
        if embedding is not None:
            stream = io.BytesIO()
            torch.save(embedding.clone(), stream)
            data = stream.getvalue()
            entry["embedding_sha256"] = sha256_bytes(data)
        present = sha256_file(file) if file.is_file() else None
        if present and present != entry.get("embedding_sha256") and not self.is_ours(name):
            entry["given_sha256"], data = present, None
            entry.pop("embedding_sha256", None)
        self.entries[name], self.waiting[name] = entry, data

    def write(self, paths):
        """Write what was added: first what the embeddings will be, then they themselves.

        So a killed run leaves no embedding that its faces.json does not name.
        """
        for name in self.waiting:
            if self.file(name).is_file() and self.is_ours(name):
                self.file(name).unlink()
        if self.has_changed(paths):
            self.set_aside()
            self.known = self.content(paths)
            atomic_write_json(self.folder / FACES_FILE, self.known)
        for name, data in self.waiting.items():
            if data is not None:
                atomic_write_bytes(self.file(name), data)
        self.waiting = {}

    def content(self, paths):
        """What faces.json is to hold of these photos."""
        images = {path.name: self.entries[path.name] for path in paths if path.name in self.entries}
        return self.settings | {"images": images}

    def has_changed(self, paths):
        """Whether that is something else than it holds; without an entry there may be no file either."""
        return self.known != self.content(paths) and bool(self.known or self.entries)

    def set_aside(self):
        """Keep a faces.json that we cannot read, under another name: it may be somebody else's."""
        file = self.folder / FACES_FILE
        if file.is_file() and not self.known:
            other = file.with_name(f"{FACES_FILE}.damaged-{sha256_file(file)[:8]}")
            file.rename(other)
            log(f"{file}: damaged, kept as {other.name} and made anew")

    def report(self):
        """Name the embeddings that were given."""
        given = sorted(name for name, entry in self.entries.items() if "given_sha256" in entry)
        if given:
            shown = ", ".join(self.file(name).name for name in given[:5]) + (", ..." if given[5:] else "")
            log(f"{self.folder}: {len(given)} embeddings of others, used as they are: {shown}")


@readable()
def read_faces(embeds_dir):
    """The content of faces.json; {} when there is none, or a damaged one, so that all is made anew."""
    file = Path(embeds_dir) / FACES_FILE
    if not file.is_file():
        return {}
    try:
        known = {"crop": "aligned"} | read_json(file)  # what there was before there was a choice
        return known if isinstance(known.get("images"), dict) else {}
    except (UserError, TypeError):
        return {}


def without_face(embeds_dir, paths):
    """Whether faces.json says of every photo that it was looked at, and no face found to embed."""
    entries = read_faces(embeds_dir).get("images", {})
    known = [entry for path in paths if isinstance(entry := entries.get(path.name), dict)]
    return 0 < len(known) == len(paths) and all(entry.get("status") in (NO_FACE, SEVERAL) for entry in known)


def hash_or_none(path):
    """Content hash of a photo; None when it cannot be opened, which the decoder will report."""
    try:
        return sha256_file(path)
    except OSError:
        return None


def refuse_equal_stems(paths):
    """An embedding belongs to a stem: a.png and a.jpg would share one."""
    by_stem = defaultdict(list)
    for path in paths:
        by_stem[path.stem].append(path.name)
    for names in by_stem.values():
        if len(names) > 1:
            raise UserError(f"{paths[0].parent}: {' and '.join(names)} would share one embedding; rename one")


def report_orphans(paths, embeds_dir):
    """Name the embeddings that have no photo."""
    stems = {path.stem for path in paths}
    orphans = [file.name for file in sorted(embeds_dir.glob("[!.]*.pt")) if file.stem not in stems]
    if orphans:
        shown = ", ".join(orphans[:5]) + (", ..." if len(orphans) > 5 else "")
        log(f"{embeds_dir}: {len(orphans)} without a photo, not used: {shown}")


def read_embedding(file, size):
    """One embedding, (size,) float32; the published (1, size) files are read too."""
    try:
        value = load_tensors(file, MEBIBYTE)
        number = value.numel()
        value = value.detach().float().reshape(-1) if number == size else value
    except Exception as error:
        raise UserError(f"{file}: not a readable embedding; delete it and extract again") from error
    if number != size:
        raise UserError(
            f"{file}: holds {number} numbers, the recogniser of this config gives {size}; run "
            "extract_arcface_embeds.py with the same recogniser"
        )
    if not torch.isfinite(value).all():
        raise UserError(f"{file}: holds NaN or infinity; run extract_arcface_embeds.py again")
    return value


def network_record(path):
    """File name and content hash of a network."""
    path = Path(path)
    return {"file": path.name, "sha256": hash_once(path, path.stat().st_mtime_ns)}


@lru_cache(maxsize=16)
def hash_once(path, _modified):
    """Content hash of a large file that is asked for once per identity."""
    return sha256_file(path)
