"""The miniature world's sets for the study, made by the public scripts from renders of people never seen.

Lab photos -> embeddings -> LoRAs of the three objectives -> samples -> crops; beside them crops of wild
renders of the same people (the oracle) and a benchmark of wild renders of others. What is there is kept.
"""

import itertools
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from arcface_files.faces import FaceAnalyser, align, choose_face
from fr_training.benchmark_bin import write_bin
from fr_training.verification import FOLDS
from mini.face_world import render, sample_identity, sample_view
from mini.lab_photos import HELD_OUT, write_lab_photos
from utils.errors import UserError
from utils.images import save_png
from utils.progress import log, progress
from utils.run_record import PROJECT_ROOT
from utils.seeding import derive_seed

BENCHMARK_FIRST = HELD_OUT + 500_000  # nobody else uses these people
BENCHMARK_PEOPLE, BENCHMARK_VIEWS = 60, 8  # 6 people a fold; 168 genuine pairs there, and as many impostors
PACK = "mini/weights/pack"


def prepare(config):
    """Make what is missing for a StudyConfig of the miniature world."""
    root = Path(config.real).parent.parent
    photos = root / "FACE_DATASET"
    write_lab_photos(photos, config.people, config.photos)
    samples = make_samples(root, photos, config.generators)
    crop(photos, config.real, config.labels)
    for method in config.generators:
        crop(samples / method, Path(config.synthetic) / method, config.labels)
    wild = write_wild_photos(root / "oracle_photos", config.people, max(config.counts))
    crop(wild, config.oracle, config.labels)
    benchmark = Path(config.benchmarks[0])
    if not benchmark.is_file():
        write_bin(benchmark, *wild_pairs())


def make_samples(root, photos, methods):
    """Embed, train and sample with the public scripts; the folder of the sample set."""
    folders = {"--source-folder": photos}
    call("extract_arcface_embeds.py", "configs/extract_mini.py", folders)
    loras = {"--class-folder": root / "CLASS_IMAGES", "--output-folder": root / "Trained_LoRA_Models"}
    call("train_id_booth.py", "configs/train_mini.py", folders | loras)
    outputs = {
        "--lora-folder": root / "Trained_LoRA_Models",
        "--output-folder": root / "Generated_Samples",
        "--set-name": "study",
    }
    call("inference_id_booth.py", "configs/inference_mini.py", folders | outputs, "--methods", *methods)
    return root / "Generated_Samples" / "study"


def crop(source, output, labels):
    """align_faces.py on one folder."""
    settings = {"--source": source, "--output": output, "--labels": labels}
    call("fr_training.align_faces", "configs/align_mini.py", settings)


def call(script, config, settings, *more):
    """Run a public script as a user would, echoing the command."""
    start = [script] if script.endswith(".py") else ["-m", script]
    values = [str(part) for pair in settings.items() for part in pair]
    arguments = [*start, "--config", config, *values, *more]
    log(f"$ python {shlex.join(arguments)}")
    if subprocess.run([sys.executable, *arguments], cwd=PROJECT_ROOT).returncode:
        raise UserError(f"{script}: failed, see its messages above; run the study again to go on")


def wild_photo(person, view):
    """A wild render of a miniature identity: uint8 (128, 128, 3)."""
    seed = derive_seed(person, "study view", view)
    return render(sample_identity(person), sample_view(seed, "wild")).image


def write_wild_photos(folder, people, each):
    """FOLDER/ID_k/*.png: wild renders of the people of the real set; existing ones are kept."""
    for number in progress(range(people), "oracle photos"):
        for view in range(each):
            path = Path(folder) / f"ID_{number + 1}" / f"{view:03d}.png"
            if not path.is_file():
                save_png(path, wild_photo(HELD_OUT + number, view))
    return folder


def wild_pairs(people=BENCHMARK_PEOPLE, views=BENCHMARK_VIEWS):
    """(images, same) of the benchmark: ten folds of people of their own, each half genuine, half impostor."""
    analyser = FaceAnalyser(PACK, pad=0.25)
    crops = [
        detected_crops(analyser, BENCHMARK_FIRST + person, views)
        for person in progress(range(people), "pairs")
    ]
    images, same = [], []
    for fold in np.array_split(np.arange(people), FOLDS):
        rng = np.random.default_rng(derive_seed("study pairs", int(fold[0])))
        genuine = [pair for person in fold for pair in itertools.combinations(crops[person], 2)]
        others = [(a, b) for i, j in itertools.combinations(fold, 2) for a in crops[i] for b in crops[j]]
        count = min(len(genuine), len(others))
        chosen = [genuine[:count], [others[k] for k in rng.choice(len(others), count, replace=False)]]
        for flag, pairs in zip((True, False), chosen, strict=True):
            images += [image for pair in pairs for image in pair]
            same += [flag] * len(pairs)
    return np.stack(images), np.array(same)


def detected_crops(analyser, person, views):
    """Aligned crops of a person's wild renders in which the pack's detector finds a face."""
    photos = [wild_photo(person, view) for view in range(views)]
    faces = [
        choose_face(found, photo.shape[:2])
        for found, photo in zip(analyser.detect(photos), photos, strict=True)
    ]
    return [
        align(photo, face.landmarks) for photo, face in zip(photos, faces, strict=True) if face is not None
    ]
