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

import numpy as np
import torch

from utils.errors import UserError
from utils.files import atomic_write_bytes, atomic_write_json, read_json, sha256_bytes, sha256_file
from utils.progress import log
from utils.safe_load import MEBIBYTE, load_tensors

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


def read_embedding(file, size):
    """One embedding, (size,) float32; the published (1, size) files are read too."""
    try:
        value = load_tensors(file, MEBIBYTE)
        number = value.numel()
        value = value.detach().float().reshape(-1) if number == size else value
    except Exception as error:
        raise UserError(f"{file}: not a readable embedding; run extract_arcface_embeds.py again") from error
    if number != size:
        raise UserError(
            f"{file}: holds {number} numbers, the recogniser of this config gives {size}; run "
            "extract_arcface_embeds.py with the same recogniser"
        )
    if not torch.isfinite(value).all():
        raise UserError(f"{file}: holds NaN or infinity; run extract_arcface_embeds.py again")
    return value


def photo_entries(faces_file):
    """The entries of a faces.json by file name; UserError when it has not that form."""
    content = read_json(faces_file)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise UserError(f"{faces_file}: damaged; run extract_arcface_embeds.py again")
    return entries


def checked_landmarks(points, faces_file):
    """Landmarks from JSON as (5, 2) float64, finite; UserError for anything else."""
    try:
        points = np.asarray(points, float)
    except (TypeError, ValueError):
        points = np.empty(0)
    # Beyond a million pixels lies no photo, and products of such numbers overflow.
    if points.shape != (5, 2) or not np.isfinite(points).all() or np.abs(points).max() > 1e6:
        raise UserError(f"{faces_file}: landmarks that are none; run extract_arcface_embeds.py again")
    return points


def network_record(path):
    """File name and content hash of a network."""
    path = Path(path)
    return {"file": path.name, "sha256": hash_once(path, path.stat().st_mtime_ns)}


@lru_cache(maxsize=16)
def hash_once(path, _modified):
    """Content hash of a large file that is asked for once per identity."""
    return sha256_file(path)
