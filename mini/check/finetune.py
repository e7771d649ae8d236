"""Check of fine-tuning: the public scripts on held-out people; identity and diversity of the samples."""

import numpy as np

from evaluation.attributes import AttributeClassifier
from evaluation.diversity import smallest_identity, vendi_per_identity
from evaluation.encoders import encode_set
from evaluation.face_sets import load_sets
from evaluation.identity import cross_scores, verification_stats
from evaluation.image_sets import REAL, method_samples, real_photos
from mini.build.attribute_classifier import ensure_classifier
from mini.check.figures import Figure, base_files, renderer_files
from mini.lab_photos import write_lab_photos
from mini.pipeline import make_samples
from utils.run_record import PROJECT_ROOT

METHODS = ("DreamBooth", "PortraitBooth", "ID-Booth")
PEOPLE, PHOTOS, IMAGES = 20, 10, 21
SET = "check"
CONFIGS = [PROJECT_ROOT / "configs" / f"{name}_mini.py" for name in ("extract", "train", "inference")]


def check_finetune(config):
    """The figures of fine-tuning."""
    people = config.count(PEOPLE, 2)
    files = [*base_files(config.weights_dir), *config.pack_files(), *renderer_files(), *CONFIGS]
    folder = config.kept(f"finetune_{people}", *files)
    write_lab_photos(folder / "FACE_DATASET", people, PHOTOS, first=config.first_person("finetune"))
    make_samples(folder, SET, METHODS, config.weights_dir, config.seed)
    classifier = ensure_classifier(config.weights_dir, config.build_dir)
    return measure(config, folder, people, classifier)


def measure(config, folder, people, classifier):
    """Figures of the three methods' samples against the lab photos."""
    photos = real_photos(folder / "FACE_DATASET")
    samples = [method_samples(folder / "Generated_Samples" / SET / name) for name in METHODS]
    judges = {"mini": config.mini_pack()}
    real = config.real_packs((320,))
    if real is not None:
        judges["SFace"] = real[0]
    sets = load_sets([photos, *samples], judges["mini"], judges, cache_folder=folder / "cache")
    encoder = AttributeClassifier(classifier)
    shown = vendi({name: encode_set(sets[name], encoder, folder / "cache") for name in METHODS})
    faces = vendi({name: (sets[name].embeddings["mini"], sets[name].labels) for name in METHODS})
    errors = {judge: {name: cross_eer(sets[name], sets[REAL], judge) for name in METHODS} for judge in judges}
    sample = f"{people} held-out people x {IMAGES} samples x {PHOTOS} lab photos"
    return [
        *error_figures(errors, sample),
        *diversity_figures(shown, "what is shown (attribute features)", sample),
        *diversity_figures(faces, "the faces (recogniser)", sample),
        *[
            Figure(f"samples with a face, {name}", 100 * sets[name].face_share, sample, unit=" %")
            for name in METHODS
        ],
    ]


def cross_eer(faces, photos, judge):
    """Equal error rate in % of all pairs of samples and lab photos."""
    scores = cross_scores(faces.embeddings[judge], faces.labels, photos.embeddings[judge], photos.labels)
    return 100 * verification_stats(*scores)["eer"]


def vendi(sets):
    """{method: mean Vendi score per person} of {method: (features, labels)}, of equally many images each.

    A person with fewer than two faces has no score.
    """
    size = smallest_identity(labels for _, labels in sets.values())
    scores = {name: vendi_per_identity(*rows, size).values() for name, rows in sets.items()}
    return {name: float(np.mean(list(of))) if of else float("nan") for name, of in scores.items()}


def error_figures(errors, sample):
    """Equal error rates by judge and method; the demand is on ID-Booth by the mini recogniser."""
    dreambooth = errors["mini"]["DreamBooth"]
    limit = max(5.0, dreambooth / 2) if dreambooth < 10 else dreambooth / 2
    figures = []
    for judge, of in errors.items():
        for name in METHODS:
            asked = {"at_most": round(limit, 3)} if (judge, name) == ("mini", "ID-Booth") else {}
            note = "half of DreamBooth's, or 5 % where that is under 10 %" if asked else ""
            figures.append(
                Figure(
                    f"EER against lab photos, {name}, by {judge}",
                    of[name],
                    sample,
                    unit=" %",
                    note=note,
                    **asked,
                )
            )
    return figures


def diversity_figures(scores, features, sample):
    """Mean Vendi score per person by method, and the share of DreamBooth's that ID-Booth keeps."""
    kept = scores["ID-Booth"] / scores["DreamBooth"]
    note = ", ".join(f"{name} {scores[name]:.2f}" for name in METHODS)
    return [
        Figure(
            f"ID-Booth's Vendi score over DreamBooth's, of {features}", kept, sample, at_least=0.9, note=note
        ),
        Figure(
            f"PortraitBooth's over DreamBooth's, of {features}",
            scores["PortraitBooth"] / scores["DreamBooth"],
            sample,
        ),
    ]
