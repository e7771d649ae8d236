"""faces.json and the embedding files beside it: what was found in which photo, and whether it still holds.

ArcFace_embeds/faces.json: {"detector": {...}, "recogniser": {...}, "multiple_faces": policy, "images": {file
name: {"status": "ok" | "no face" | "several faces" | "unreadable: why", "sha256", "width", "height",
"faces" (how many), "box": [x1, y1, x2, y2], "landmarks": 5 x [x, y], "score", "embedding_sha256"}}}.
Coordinates are pixels of the photo after its EXIF turn. ArcFace_embeds/{stem}.pt: a float32 tensor (D,).
"""

import io
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import torch

from utils.errors import UserError
from utils.files import atomic_write_bytes, atomic_write_json, read_json, sha256_bytes, sha256_file
from utils.progress import log

FACES_FILE = "faces.json"
OK, NO_FACE, SEVERAL, UNREADABLE = "ok", "no face", "several faces", "unreadable"


def face_settings(analyser, recogniser, multiple_faces):
    """What an embedding depends on besides the photo; entries made with other settings are stale."""
    detection = {"det_size": analyser.det_size, "threshold": analyser.threshold, "pad": analyser.pad}
    return {
        "detector": network_record(analyser.models["detection"]) | detection,
        "recogniser": network_record(recogniser.path),
        "multiple_faces": multiple_faces,
    }


def up_to_date_entries(paths, embeds_dir, settings, pool):
    """(entries by file name that still hold, content hashes by file name) of the photos."""
    hashes = dict(zip([path.name for path in paths], pool.map(hash_or_none, paths), strict=True))
    known = read_faces(embeds_dir)
    if {key: known.get(key) for key in settings} != settings:
        return {}, hashes
    entries = known.get("images", {})
    kept = [
        path
        for path in paths
        if holds(entries.get(path.name), hashes[path.name], embeds_dir / f"{path.stem}.pt")
    ]
    return {path.name: entries[path.name] for path in kept}, hashes


def read_faces(embeds_dir):
    """The content of faces.json; empty when it is missing or damaged, so that all is made anew."""
    file = Path(embeds_dir) / FACES_FILE
    if not file.is_file():
        return {}
    try:
        known = read_json(file)
        return known if isinstance(known.get("images"), dict) else {}
    except (UserError, AttributeError):
        log(f"{file}: damaged, made anew")
        return {}


def hash_or_none(path):
    """Content hash of a photo; None when it cannot be opened, which the decoder will report."""
    try:
        return sha256_file(path)
    except OSError:
        return None


def holds(entry, photo_hash, embedding):
    """Whether an entry is of this very photo, and its embedding file as it was written."""
    if not isinstance(entry, dict) or not isinstance(entry.get("faces"), int):
        return False
    if entry.get("sha256") != photo_hash or entry.get("status") not in (OK, NO_FACE, SEVERAL):
        return False
    if entry["status"] != OK:
        return not embedding.exists()
    return embedding.is_file() and sha256_file(embedding) == entry.get("embedding_sha256")


def store_embedding(file, entry, embedding):
    """Write the embedding; where there is none, remove what an older photo of that name has left."""
    if embedding is None:
        file.unlink(missing_ok=True)
        return
    stream = io.BytesIO()
    torch.save(embedding.clone(), stream)
    atomic_write_bytes(file, stream.getvalue())
    entry["embedding_sha256"] = sha256_bytes(stream.getvalue())


def save_faces(embeds_dir, settings, paths, entries):
    """Write faces.json, its photos in their natural order."""
    images = {path.name: entries[path.name] for path in paths if path.name in entries}
    atomic_write_json(embeds_dir / FACES_FILE, settings | {"images": images})


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
    orphans = [file.name for file in sorted(embeds_dir.glob("*.pt")) if file.stem not in stems]
    if orphans:
        shown = ", ".join(orphans[:5]) + (", ..." if len(orphans) > 5 else "")
        log(f"{embeds_dir}: {len(orphans)} without a photo, not used: {shown}")


def network_record(path):
    """File name and content hash of a network."""
    path = Path(path)
    return {"file": path.name, "sha256": hash_once(path, path.stat().st_mtime_ns)}


@lru_cache(maxsize=16)
def hash_once(path, _modified):
    """Content hash of a large file that is asked for once per identity."""
    return sha256_file(path)
