"""The miniature world's sets for the study, made by the public scripts from renders of held-out people.

    python -m mini.study_data --config configs/study_mini.py       fr_training.study does this by itself

Lab photos -> embeddings -> LoRAs of the three objectives -> samples -> crops; beside them crops of wild
renders of the same people (the oracle) and a benchmark of wild renders of others. What is there is kept.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m mini.study_data")

import itertools
from pathlib import Path

import numpy as np

from arcface_files.faces import FaceAnalyser, align, choose_face
from configs.fr_config import StudyConfig
from configs.inference_config import BASELINE
from evaluation.commands import run_python
from fr_training.benchmark_bin import write_bin
from fr_training.verification import FOLDS
from id_booth.objectives import OBJECTIVES
from mini.face_world import render, sample_identity, sample_view
from mini.lab_photos import write_lab_photos
from mini.paths import WEIGHTS
from mini.pipeline import make_samples
from mini.world.identity import HELD_OUT
from utils.config import parse_command_line
from utils.errors import UserError, did_you_mean, run
from utils.images import save_png
from utils.progress import progress
from utils.seeding import derive_seed

PEOPLE, PHOTOS = 24, 10  # identities, and lab photos of each
BENCHMARK_FIRST = HELD_OUT + 500_000  # far from the people of the other sets
BENCHMARK_PEOPLE, BENCHMARK_VIEWS = 60, 8  # 6 people a fold; 168 genuine pairs there, and as many impostors


def main(argv=None):
    config = parse_command_line(StudyConfig, "configs/study_mini.py", argv)
    if not (config.generators and config.oracle):
        raise UserError("generators, oracle: name both, as configs/study_mini.py does")
    known = (BASELINE, *OBJECTIVES)
    for name in config.generators:
        if name not in known:
            hint = f"{did_you_mean(name, known)}there are {', '.join(known)}"
            raise UserError(f"generators: no method {name!r} makes samples; {hint}")
    if not config.dry_run:
        prepare(config)


def prepare(config):
    """Make what is missing of the sets that a StudyConfig names; all lie under one folder."""
    root = Path(config.real).parent.parent
    write_lab_photos(root / "FACE_DATASET", PEOPLE, PHOTOS)
    samples = make_samples(root, "study", config.generators)
    wild = write_wild_photos(root / "oracle_photos", PEOPLE, max(config.counts))
    crops = {root / "FACE_DATASET": config.real, wild: config.oracle}
    crops |= {samples / name: Path(config.synthetic) / name for name in config.generators}
    for source, output in crops.items():
        folders = ["--source", source, "--output", output, "--labels", config.labels]
        run_python("-m", "fr_training.align_faces", "--config", "configs/align_mini.py", *folders)
    benchmark = Path(config.benchmarks[0])
    if not benchmark.is_file():
        write_bin(benchmark, *wild_pairs())


def wild_photo(person, view):
    """A wild render of a miniature identity: uint8 (128, 128, 3)."""
    seed = derive_seed(person, "study view", view)
    return render(sample_identity(person), sample_view(seed, "wild")).image


def write_wild_photos(folder, people, each, first=HELD_OUT):
    """FOLDER/ID_k/*.png: wild renders of the people of the lab photos; existing ones are kept.

    Args:
        people, first: as for ``lab_photos.write_lab_photos``. each: renders of each of them.
    """
    for number in progress(range(people), "oracle photos"):
        for view in range(each):
            path = Path(folder) / f"ID_{number + 1}" / f"{view:03d}.png"
            if not path.is_file():
                save_png(path, wild_photo(first + number, view))
    return folder


def wild_pairs(people=BENCHMARK_PEOPLE, views=BENCHMARK_VIEWS):
    """(images, same) of the benchmark: ten folds of people of their own, each half genuine, half impostor.

    Raises:
        UserError: too few for a pair of each kind in every fold.
    """
    if people < 2 * FOLDS or views < 2:
        raise UserError(f"people, views: {people}, {views}; {FOLDS} folds take {2 * FOLDS} people of 2 views")
    analyser = FaceAnalyser(WEIGHTS / "pack", pad=0.25)
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


if __name__ == "__main__":
    run(main)
