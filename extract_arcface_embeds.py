"""Photos in, face embeddings out: what the identity losses of train_id_booth.py compare with.

    python extract_arcface_embeds.py --config configs/extract_mini.py
    python extract_arcface_embeds.py --config configs/extract_sd21.py --source-folder /data/lab_photos
    python extract_arcface_embeds.py --config configs/extract_sd21.py --class-folder CLASS_IMAGES --dry-run
    accelerate launch extract_arcface_embeds.py --config configs/extract_sd21.py      folders spread over GPUs

For every photo: detect faces, choose one, cut it out at 112 x 112 pixels (``crop``), embed it. Written
to ArcFace_embeds/ beside the images: {stem}.pt, a float32 tensor (D,) as the recogniser gives it, not
normalised, and faces.json with box, landmarks, score, photo size and content hash of each photo (see
arcface_files/face_records.py). Run the same command again to go on: what is up to date stays.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import monotonic

from arcface_files.extraction import decoded_batches, embed_batch, embed_images, photo_counts
from arcface_files.face_records import (
    NO_FACE,
    OK,
    SEVERAL,
    UNREADABLE,
    FaceRecords,
    face_settings,
)
from arcface_files.faces import FaceAnalyser
from arcface_files.people import class_images, find_identities, root_of
from arcface_files.recogniser import load_recogniser
from configs.extract_config import ExtractConfig
from id_booth.consent import known_consent
from id_booth.launch import gather_rows, leave_on_signals, leave_together, start_processes, work_order
from utils.claims import Claims
from utils.config import parse_command_line
from utils.devices import pick_device, use_threads
from utils.errors import Interrupted, UserError, one_line, run
from utils.files import check_folder_name, sweep_temporaries
from utils.identities import image_files
from utils.outputs import open_output
from utils.progress import log
from utils.run_record import summarise, write_run_record

RECORDS = ["extract_run.json", "extract_summary.json", "extract_summary.txt"]
SAMPLE_TIMED = 8  # photos embedded by a dry run to estimate the time


def main():
    """Embed all identities and class images; 1 when a photo or identity failed."""
    config = parse_command_line(ExtractConfig, "configs/extract_mini.py")
    use_threads(config.threads)
    folders = find_folders(config)
    if config.dry_run:
        return print_plan(config, folders)
    state = start_processes(cpu=pick_device(config.device).type == "cpu")
    analyser, recogniser = load_networks(config, pick_device(config.device, state))
    root = open_folders(config, write=False)
    leave_on_signals()
    with Claims(root) as claims:
        order = work_order([[folder] for folder in folders], state.process_index, state.num_processes)
        outputs = Outputs(config, claims)
        rows = [extract_identity(folder, analyser, recogniser, config, outputs) for folder in order]
    rows = gather_rows(rows, ("identity",))
    if state.is_main_process and any(row["status"] != "done" or row["kept"] < row["photos"] for row in rows):
        open_folders(config)
        write_run_record(root, config, RECORDS[0])
    else:
        root = None  # all was up to date: nothing is written, and photos may be on a disk that is only read
    return leave_together(summarise(rows, root, "extract_summary", state.is_main_process))


def open_folders(config, write=True):
    """Take the folders that are written into, or refuse to (utils/outputs.py); that of the records."""
    if config.embeds_folder:
        sources = [config.source_folder, config.class_folder]
        open_output(config.embeds_folder, RECORDS, sources, write=write)
        return config.embeds_folder
    folders = [root_of(folder) for folder in (config.source_folder, config.class_folder) if folder]
    root = folders[0]
    for folder in folders:
        open_output(folder, RECORDS if folder == root else [], shared=True, write=write)
    return root


class NotWritable(UserError):
    """Nothing can be written, for whomever."""


class Outputs:
    """The folders that are written into; opened when there is something to write, not before."""

    def __init__(self, config, claims):
        self.config, self.claims, self.opened = config, claims, False

    def begin(self, folder):
        """Claim an IdentityFolder; False when another run has it."""
        try:
            self.opened = self.opened or open_folders(self.config)
            claimed = self.claims.take(f"embeddings/{folder.name}")
        except UserError as error:
            hint = "" if self.config.embeds_folder else "; or give embeddings a folder by --embeds-folder"
            raise NotWritable(f"{error}{hint}") from error
        sweep_temporaries(folder.embeds_dir)
        return claimed


def load_networks(config, device):
    """The pack's detector, and the recogniser that the training loss uses too."""
    analyser = FaceAnalyser(
        config.pack,
        config.det_size,
        config.detection_threshold,
        config.detection_pad,
        config.batch_size,
        device,
    )
    weights = config.recogniser or analyser.models["recognition"]
    return analyser, load_recogniser(weights, device)


def find_folders(config):
    """The identities, and the class images as one more folder."""
    folders = []
    if config.source_folder:
        folders = find_identities(config.source_folder, config.identities, config.embeds_folder)
    if config.class_folder:
        if not Path(config.class_folder).is_dir():
            raise UserError(f"{config.class_folder}: no such folder; give the folder of the class images")
        folders.append(class_images(config.class_folder, config.embeds_folder))
    return folders


def extract_identity(folder, analyser, recogniser, config, outputs):
    """Embed one identity's photos; a problem ends this identity in one line and leaves the others alone.

    Args:
        folder: IdentityFolder. analyser: FaceAnalyser. recogniser: from load_recogniser. outputs: Outputs.

    Returns:
        dict: the identity's line in the summary; `status` is "done", "failed", or "elsewhere" when another
        run is at it.
    """
    paths, counts, status = [], Counter(), "failed"
    networks, name = (analyser, recogniser), folder.name
    work = (config.multiple_faces, config.batch_size, config.workers, name, config.crop)
    begin = partial(outputs.begin, folder)
    try:
        paths = image_files(folder.images_dir)
        refuse_person(folder, paths, config)
        counts = embed_images(paths, folder.embeds_dir, *networks, *work, begin=begin)
        if counts:
            refuse_faceless(folder, counts)
        status = "elsewhere" if counts is None else "failed" if counts[UNREADABLE] else "done"
    except (Interrupted, NotWritable):
        raise
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        log(f"{name}: {kind}{one_line(error)}")
    outputs.claims.release(f"embeddings/{name}")
    counts = counts or Counter()
    return {
        "identity": name,
        "photos": len(paths),
        "embedded": counts[OK],
        "no face": counts[NO_FACE],
        "several faces": counts[SEVERAL],
        "unreadable": counts[UNREADABLE],
        "kept": counts["kept"],
        "status": status,
    }


def refuse_person(folder, paths, config):
    """UserError for an IdentityFolder without photos, with a name that is none, or without consent."""
    check_folder_name(folder.name)
    if not paths:
        raise UserError(f"{folder.images_dir}: no photos; put .png or .jpg files there or remove the folder")
    classes = class_images(config.class_folder) if config.class_folder else None
    if not classes or folder.images_dir != classes.images_dir:
        known_consent(folder, config.require_consent, "train")


def refuse_faceless(folder, counts):
    """UserError where no photo of an IdentityFolder has given an embedding; ``counts``: photo_counts."""
    if not (counts[OK] or counts[UNREADABLE]):
        looked = "taken from" if counts[SEVERAL] else "found in"
        raise UserError(f"{folder.images_dir}: no face {looked} any photo; add photos that show the face")


def print_plan(config, folders):
    """What the run would do and about how long it takes; writes nothing. 1 when somebody would fail."""
    analyser, recogniser = load_networks(config, pick_device(config.device))
    settings = face_settings(analyser, recogniser, config.multiple_faces, config.crop)
    rows, todo = [], []
    with ThreadPoolExecutor(config.workers) as pool:
        for folder in folders:
            paths, kept, status = [], {}, "failed"
            try:
                paths = image_files(folder.images_dir)
                refuse_person(folder, paths, config)
                records = FaceRecords(folder.embeds_dir, settings, recogniser.embedding_size)
                records.keep_up_to_date(paths, pool)
                kept, left = records.entries, [path for path in paths if path.name not in records.entries]
                if not left:
                    refuse_faceless(folder, photo_counts(kept, len(kept)))
                todo += left
                status = "to do" if left else "done"
            except UserError as error:
                log(f"{folder.name}: {one_line(error)}")
            rows.append(
                {
                    "identity": folder.name,
                    "photos": len(paths),
                    "up to date": len(kept),
                    "to do": len(paths) - len(kept) if status == "to do" else 0,
                    "status": status,
                }
            )
        seconds = len(todo) * seconds_per_photo(todo[:SAMPLE_TIMED], analyser, recogniser, config, pool)
    code = summarise(rows)
    megabytes = len(todo) * (4 * recogniser.embedding_size + 2500) / 2**20
    log(f"{len(todo)} photos to embed: about {seconds:.0f} s on this machine and {megabytes:.1f} MiB of disk")
    return code


def seconds_per_photo(paths, analyser, recogniser, config, pool):
    """Time for decoding and embedding, from a few photos."""
    start = monotonic()
    for _, images in decoded_batches(paths, config.batch_size, pool):
        embed_batch(images, analyser, recogniser, config.multiple_faces, config.crop)
    return (monotonic() - start) / max(1, len(paths))


if __name__ == "__main__":
    run(main)
