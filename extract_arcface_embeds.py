"""Photos in, face embeddings out: what the identity losses of train_id_booth.py compare with.

    python extract_arcface_embeds.py --config configs/extract_mini.py
    python extract_arcface_embeds.py --config configs/extract_sd21.py --source-folder /data/lab_photos
    python extract_arcface_embeds.py --config configs/extract_sd21.py --class-folder CLASS_IMAGES --dry-run

For every photo: detect faces, choose one, align it by five landmarks to 112 x 112 pixels, embed it. Written
to ArcFace_embeds/ beside the images: {stem}.pt, a float32 tensor (D,) as the recogniser gives it, not
normalised, and faces.json with box, landmarks, score, photo size and content hash of each photo (see
arcface_files/face_records.py). Run the same command again to go on: what is up to date stays.
"""

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
    face_settings,
    refuse_equal_stems,
    report_orphans,
    save_faces,
    store_embedding,
    up_to_date_entries,
)
from arcface_files.faces import FaceAnalyser, align, choose_face
from arcface_files.recogniser import embed_crops, load_recogniser
from configs.extract_config import ExtractConfig
from utils.claims import Claims
from utils.config import parse_command_line
from utils.devices import pick_device
from utils.errors import Interrupted, UserError, one_line, run
from utils.files import sweep_temporaries
from utils.identities import IdentityFolder, find_identities, image_files
from utils.images import image_size, load_image
from utils.launch import leave_on_signals
from utils.progress import log, progress
from utils.run_record import summarise, write_run_record

PIXELS_IN_FLIGHT = 64_000_000  # photos decoded at a time: about 200 MB, whatever their size
SECONDS_BETWEEN_SAVES = 10
SAMPLE_TIMED = 8  # photos embedded by a dry run to estimate the time


def main():
    """Embed all identities and class images; 1 when a photo or identity failed."""
    config = parse_command_line(ExtractConfig, "configs/extract_sd21.py")
    folders = find_folders(config)
    if config.dry_run:
        return print_plan(config, folders)
    analyser, recogniser = load_networks(config)
    root = config.source_folder or config.class_folder
    write_run_record(root, config, "extract_run.json")
    leave_on_signals()
    with Claims(root) as claims:
        rows = [extract_identity(folder, analyser, recogniser, config, claims) for folder in folders]
    return summarise(rows, root, "extract_summary")


def load_networks(config):
    """The pack's detector, and the recogniser that the training loss uses too."""
    analyser = FaceAnalyser(
        config.pack,
        config.det_size,
        config.detection_threshold,
        config.detection_pad,
        config.batch_size,
        config.device,
    )
    weights = config.recogniser or analyser.models["recognition"]
    return analyser, load_recogniser(weights, pick_device(config.device))


def find_folders(config):
    """The identities, and the class images as one more folder."""
    folders = find_identities(config.source_folder, config.identities) if config.source_folder else []
    if config.class_folder:
        folders.append(class_images(config.class_folder))
    return folders


def class_images(folder):
    """A flat folder of class images, images/* with ArcFace_embeds/*, in the form of an identity."""
    return IdentityFolder("class images", Path(folder) / "images", Path(folder) / "ArcFace_embeds")


def extract_identity(folder, analyser, recogniser, config, claims):
    """Embed one identity's photos; a problem ends this identity in one line and leaves the others alone.

    Args:
        folder: IdentityFolder. analyser: FaceAnalyser. recogniser: from load_recogniser. claims: Claims.

    Returns:
        dict: the identity's line in the summary; `status` is "done", "failed", or "elsewhere" when another
        run is at it.
    """
    paths, counts, status = image_files(folder.images_dir), Counter(), "failed"
    unit = f"embeddings/{folder.name}"
    try:
        if not paths:
            raise UserError(
                f"{folder.images_dir}: no photos; put .png or .jpg files there or remove the folder"
            )
        if claims.take(unit):
            sweep_temporaries(folder.embeds_dir)
            counts = embed_images(
                paths,
                folder.embeds_dir,
                analyser,
                recogniser,
                config.multiple_faces,
                config.batch_size,
                config.workers,
                folder.name,
            )
            status = "failed" if counts[UNREADABLE] else "done"
        else:
            status = "elsewhere"
    except Interrupted:
        raise
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        log(f"{folder.name}: {kind}{one_line(error)}")
    claims.release(unit)
    return {
        "identity": folder.name,
        "photos": len(paths),
        "embedded": counts[OK],
        "no face": counts[NO_FACE],
        "several faces": counts[SEVERAL],
        "unreadable": counts[UNREADABLE],
        "kept": counts["kept"],
        "status": status,
    }


def embed_folder(folder, analyser, recogniser, multiple_faces="largest", batch_size=32, workers=4):
    """:func:`embed_images` on a flat folder of class images: images/* to ArcFace_embeds/*."""
    images = class_images(folder)
    paths = image_files(images.images_dir)
    return embed_images(
        paths, images.embeds_dir, analyser, recogniser, multiple_faces, batch_size, workers, images.name
    )


def embed_images(
    paths, embeds_dir, analyser, recogniser, multiple_faces="largest", batch_size=32, workers=4, name=""
):
    """Detect, align and embed the photos that have no up-to-date entry in embeds_dir/faces.json.

    Args:
        paths: photos with distinct stems. embeds_dir: folder for {stem}.pt and faces.json.
        analyser: FaceAnalyser. recogniser: from load_recogniser.
        multiple_faces: "largest", "central" or "refuse". name: what messages call these photos.

    Returns:
        Counter: photos by "ok" (an embedding exists), "no face", "unreadable"; "several faces" counts photos
        with more than one face, embedded or refused; "kept" those that were up to date.

    Raises:
        UserError: two photos with the same stem, a full disk.
    """
    embeds_dir = Path(embeds_dir)
    refuse_equal_stems(paths)
    report_orphans(paths, embeds_dir)
    settings = face_settings(analyser, recogniser, multiple_faces)
    with ThreadPoolExecutor(workers) as pool:
        entries, hashes = up_to_date_entries(paths, embeds_dir, settings, pool)
        counts = Counter(kept=len(entries))
        todo = [path for path in paths if path.name not in entries]
        bar = progress(total=len(todo), desc=name or str(embeds_dir), leave=False, disable=not todo)
        saved = monotonic()
        try:
            for batch, images in decoded_batches(todo, batch_size, pool):
                found = embed_batch(images, analyser, recogniser, multiple_faces)
                for path, (entry, embedding) in zip(batch, found, strict=True):
                    entry["sha256"] = hashes[path.name]
                    store_embedding(embeds_dir / f"{path.stem}.pt", entry, embedding)
                    entries[path.name] = entry
                    report_photo(f"{name}/{path.name}", entry)
                bar.update(len(batch))
                if monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    save_faces(embeds_dir, settings, paths, entries)
                    saved = monotonic()
        finally:  # an interrupted run keeps what it has embedded
            save_faces(embeds_dir, settings, paths, entries)
        bar.close()
    counts.update(
        entry["status"].partition(":")[0] for entry in entries.values() if entry["status"] != SEVERAL
    )
    counts[SEVERAL] = sum(entry.get("faces", 0) > 1 for entry in entries.values())
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


def embed_batch(images, analyser, recogniser, multiple_faces):
    """Per photo its entry for faces.json and its embedding, float32 (D,) or None."""
    readable = [i for i, image in enumerate(images) if not isinstance(image, UserError)]
    faces = dict(zip(readable, analyser.detect([images[i] for i in readable]), strict=True))
    chosen = {i: choose_face(faces[i], images[i].shape[:2], multiple_faces) for i in readable}
    with_face = [i for i in readable if chosen[i]]
    embeddings = {}
    if with_face:
        crops = np.stack([align(images[i], chosen[i].landmarks) for i in with_face])
        embeddings = dict(zip(with_face, embed_crops(crops, recogniser), strict=True))
    return [
        (photo_entry(image, faces.get(i), chosen.get(i)), embeddings.get(i)) for i, image in enumerate(images)
    ]


def photo_entry(image, faces, face):
    """What faces.json says of a photo."""
    if isinstance(image, UserError):
        return {"status": f"{UNREADABLE}: {one_line(image)}"}
    entry = {
        "status": OK if face else SEVERAL if faces else NO_FACE,
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


def print_plan(config, folders):
    """What the run would do and about how long it takes; writes nothing."""
    analyser, recogniser = load_networks(config)
    settings = face_settings(analyser, recogniser, config.multiple_faces)
    rows, todo = [], []
    with ThreadPoolExecutor(config.workers) as pool:
        for folder in folders:
            paths = image_files(folder.images_dir)
            kept = up_to_date_entries(paths, folder.embeds_dir, settings, pool)[0]
            todo += [path for path in paths if path.name not in kept]
            rows.append(
                {
                    "identity": folder.name,
                    "photos": len(paths),
                    "up to date": len(kept),
                    "to do": len(paths) - len(kept),
                }
            )
        seconds = len(todo) * seconds_per_photo(todo[:SAMPLE_TIMED], analyser, recogniser, config, pool)
    summarise(rows)
    megabytes = len(todo) * (4 * recogniser.embedding_size + 2500) / 2**20
    log(f"{len(todo)} photos to embed: about {seconds:.0f} s on this machine and {megabytes:.1f} MiB of disk")


def seconds_per_photo(paths, analyser, recogniser, config, pool):
    """Time for decoding and embedding, from a few photos."""
    start = monotonic()
    for _, images in decoded_batches(paths, config.batch_size, pool):
        embed_batch(images, analyser, recogniser, config.multiple_faces)
    return (monotonic() - start) / max(1, len(paths))


if __name__ == "__main__":
    run(main)
