"""Photos to face embeddings: detect, choose a face, align, embed; only what is not up to date."""

import contextlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import numpy as np

from arcface_files.face_records import (
    NO_FACE,
    OK,
    SEVERAL,
    UNREADABLE,
    FaceRecords,
    face_settings,
    read_faces,
    report_orphans,
)
from arcface_files.faces import choose_face, crop_face
from arcface_files.recogniser import embed_crops
from utils.errors import UserError, one_line
from utils.identities import image_files
from utils.images import image_size, load_image
from utils.progress import log, progress
from utils.run_record import publishable

PIXELS_IN_FLIGHT = 64_000_000  # photos decoded at a time: about 200 MB, whatever their size
SECONDS_BETWEEN_SAVES = 10


def embed_folder(folder, analyser, recogniser, crop="aligned", most=None, begin=None):
    """:func:`embed_images` on an IdentityFolder of class images; ``most``: only the first so many.

    A folder keeps the crop it has: trainings that compare different ones share it and make theirs in memory.
    """
    crop = read_faces(folder.embeds_dir).get("crop", crop)
    networks, own = (analyser, recogniser), {"name": folder.name, "crop": crop, "most": most, "begin": begin}
    return embed_images(image_files(folder.images_dir), folder.embeds_dir, *networks, **own)


def embed_images(
    paths,
    embeds_dir,
    analyser,
    recogniser,
    multiple_faces="largest",
    batch_size=32,
    workers=4,
    name="",
    crop="aligned",
    most=None,
    begin=None,
):
    """Detect, crop and embed the photos that have no up-to-date entry in embeds_dir/faces.json.

    Where all have one, nothing is written.

    Args:
        paths: photos with distinct stems. embeds_dir: folder for {stem}.pt and faces.json.
        analyser: FaceAnalyser. recogniser: from load_recogniser.
        multiple_faces: "largest", "central" or "refuse". name: what messages call these photos.
        crop: one of CROPS, what the recogniser is shown. most: embed only the first so many, None: all.
        begin: function called before the first file is written; where it returns False nothing is done.

    Returns:
        Counter: photos by "ok" (an embedding exists), "no face", "unreadable"; "several faces" counts photos
        with more than one face, embedded or refused; "kept" those that were up to date. None after a
        ``begin`` that returned False.

    Raises:
        UserError: two photos with the same stem, a full disk.
    """
    embeds_dir = Path(embeds_dir)
    report_orphans(paths, embeds_dir)
    settings = face_settings(analyser, recogniser, multiple_faces, crop)
    records = FaceRecords(embeds_dir, settings, recogniser.embedding_size)
    with ThreadPoolExecutor(workers) as pool:
        hashes = records.keep_up_to_date(paths, pool)
        todo = [path for path in paths[:most] if path.name not in records.entries]
        if (todo or records.has_changed(paths)) and begin and not begin():
            return None
        bar = progress(total=len(todo), desc=name or str(embeds_dir), leave=False, disable=not todo)
        saved = monotonic()
        try:
            for batch, faces in detected_batches(todo, batch_size, pool, analyser, multiple_faces, crop):
                found = embed_faces(faces, recogniser)
                for path, (entry, embedding) in zip(batch, found, strict=True):
                    records.add(path.name, entry | {"sha256": hashes[path.name]}, embedding)
                    report_photo(f"{name}/{path.name}", entry)
                bar.update(len(batch))
                if monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    records.write(paths)
                    saved = monotonic()
        finally:  # an interrupted run keeps what it has embedded
            records.write(paths)
        bar.close()
    records.report()
    return photo_counts(records.entries, kept=len(paths[:most]) - len(todo))


def photo_counts(entries, kept):
    """See :func:`embed_images`."""
    statuses = (entry["status"].partition(":")[0] for entry in entries.values())
    counts = Counter(status for status in statuses if status != SEVERAL)
    counts[SEVERAL] = sum(entry.get("faces", 0) > 1 for entry in entries.values())
    counts["kept"] = kept
    return counts


# ------------------------------------------------------------------------------------------------- one batch


def decoded_batches(paths, batch_size, pool):
    """(paths, images) batch by batch, the next one being decoded meanwhile; an image may be a UserError."""
    batch, decoding = [], []
    for following in [*batches(paths, batch_size), []]:
        images = [future.result() for future in decoding]
        done, batch = batch, following
        decoding = [pool.submit(photo_or_error, path) for path in batch]
        if done:
            yield done, images


def detected_batches(paths, batch_size, pool, *how):
    """(paths, faces found as :func:`find_faces` is told ``how``) batch by batch, ahead by one.

    So a batch's faces are searched while the one before is embedded and the one after decoded. No further one
    is decoded until they are found: however slow the detector, the photos of two batches are held.
    """
    with ThreadPoolExecutor(1) as detector:
        found = None
        for batch, images in decoded_batches(paths, batch_size, pool):
            finding = detector.submit(find_faces, images, *how)
            del images
            if found:
                yield found
            found = batch, finding.result()
        if found:
            yield found


def batches(paths, batch_size):
    """Runs of at most `batch_size` photos that together stay within PIXELS_IN_FLIGHT (or one photo)."""
    batch, pixels = [], 0
    for path in paths:
        size = 0
        with contextlib.suppress(UserError):  # the decoder will say what is wrong with it
            size = int(np.prod(image_size(path)))
        if batch and (len(batch) == batch_size or pixels + size > PIXELS_IN_FLIGHT):
            yield batch
            batch, pixels = [], 0
        batch.append(path)
        pixels += size
    if batch:
        yield batch


def photo_or_error(path):
    """The photo, or the UserError that says why there is none."""
    try:
        return load_image(path)
    except UserError as error:
        return error


def embed_batch(images, analyser, recogniser, multiple_faces, crop):
    """Per photo its entry for faces.json and its embedding, float32 (D,) or None."""
    return embed_faces(find_faces(images, analyser, multiple_faces, crop), recogniser)


def find_faces(images, analyser, multiple_faces, crop):
    """Per photo its entry for faces.json and its face, uint8 (112, 112, 3) or None."""
    readable = [i for i, image in enumerate(images) if not isinstance(image, UserError)]
    faces = dict(zip(readable, analyser.detect([images[i] for i in readable]), strict=True))
    chosen = {i: choose_face(faces[i], images[i].shape[:2], multiple_faces) for i in readable}
    crops = {i: crop_face(images[i], chosen[i], crop) for i in readable if chosen[i]}
    return [
        (photo_entry(image, faces.get(i), None if crops.get(i) is None else chosen[i]), crops.get(i))
        for i, image in enumerate(images)
    ]


def embed_faces(found, recogniser):
    """What :func:`find_faces` gives, with embeddings in place of the faces."""
    crops = [crop for _, crop in found if crop is not None]
    rows = iter(embed_crops(np.stack(crops), recogniser) if crops else ())
    return [(entry, None if crop is None else next(rows)) for entry, crop in found]


def photo_entry(image, faces, face):
    """What faces.json says of a photo."""
    if isinstance(image, UserError):
        return {"status": f"{UNREADABLE}: {publishable(one_line(image))}"}
    entry = {
        "status": OK if face else SEVERAL if len(faces) > 1 else NO_FACE,
        "width": image.shape[1],
        "height": image.shape[0],
        "faces": len(faces),
    }
    if face:
        entry |= {
            "box": np.round(face.box.astype(float), 3).tolist(),
            "score": round(face.score, 4),
            "landmarks": np.round(face.landmarks.astype(float), 3).tolist(),
        }
    return entry


def report_photo(name, entry):
    """One line for a photo that is not simply one face."""
    count = entry.get("faces", 0)
    if entry["status"] == SEVERAL:
        log(f"{name}: {count} faces, refused; leave one in the photo or choose another multiple_faces policy")
    elif entry["status"] != OK:
        log(f"{name}: {entry['status']}")
    elif count > 1:
        log(f"{name}: {count} faces, one taken")
