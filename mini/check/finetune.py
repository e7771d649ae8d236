"""Check of fine-tuning: the public scripts on held-out people; identity and diversity of the samples."""

import numpy as np
import torch
from diffusers import AutoencoderKL

from evaluation.adherence import attribute_agreement, looks_kept, seen_in
from evaluation.attributes import AttributeClassifier
from evaluation.bootstrap import mean_interval, paired_difference
from evaluation.diversity import smallest_identity, vendi_per_identity
from evaluation.encoders import encode_set
from evaluation.face_sets import load_sets
from evaluation.identity import cross_scores, verification_stats
from evaluation.image_sets import REAL, method_samples, real_photos
from evaluation.measure_identity import own_similarity
from id_booth.diffusion.denoising import decode_latents
from mini.build.attribute_classifier import ensure_classifier
from mini.build.vae import to_pixels
from mini.check.figures import Figure, base_files, renderer_files
from mini.lab_photos import write_lab_photos
from mini.pipeline import make_samples
from mini.study_data import write_wild_photos
from utils.images import load_image, save_png
from utils.progress import progress
from utils.run_record import PROJECT_ROOT

METHODS = ("DreamBooth", "PortraitBooth", "ID-Booth")
PEOPLE, PHOTOS, IMAGES = 20, 10, 21
SET, RENDERS, CODED = "check", "renders", "coded renders"
CONFIGS = [PROJECT_ROOT / "configs" / f"{name}_mini.py" for name in ("extract", "train", "inference")]


def check_finetune(config):
    """The figures of fine-tuning."""
    people = config.count(PEOPLE, 2)
    files = [*base_files(config.weights_dir), *config.pack_files(), *renderer_files(), *CONFIGS]
    folder = config.kept(f"finetune_{people}", *files)
    write_lab_photos(folder / "FACE_DATASET", people, PHOTOS, first=config.first_person("finetune"))
    write_wild_photos(folder / RENDERS, people, IMAGES, config.first_person("finetune"))
    write_coded(folder, config.weights_dir / "base")
    make_samples(folder, SET, METHODS, config.weights_dir, config.seed)
    classifier = ensure_classifier(config.weights_dir, config.build_dir)
    return measure(config, folder, people, classifier)


@torch.no_grad()
def write_coded(folder, base):
    """The renders as the base model's autoencoder gives them back: the best that samples can be."""
    vae = AutoencoderKL.from_pretrained(base / "vae", torch_dtype=torch.float32).eval()
    for path in progress(sorted((folder / RENDERS).rglob("*.png")), "coded renders"):
        coded = folder / CODED / path.relative_to(folder / RENDERS)
        if not coded.is_file():
            latents = vae.encode(to_pixels(load_image(path)[None])).latent_dist.mode()
            save_png(coded, decode_latents(vae, latents * vae.config.scaling_factor)[0])


def measure(config, folder, people, classifier):
    """Figures of the three methods' samples against the lab photos, those of renders beside."""
    photos = real_photos(folder / "FACE_DATASET")
    samples = [method_samples(folder / "Generated_Samples" / SET / name) for name in METHODS]
    renders = [method_samples(folder / name) for name in (RENDERS, CODED)]
    judges = {"mini": config.mini_pack()}
    real = config.real_packs((320,))
    if real is not None:
        judges["SFace"] = real[0]
    sets = load_sets([photos, *samples, *renders], judges["mini"], judges, cache_folder=folder / "cache")
    encoder = AttributeClassifier(classifier)
    shown = vendi({name: encode_set(sets[name], encoder, folder / "cache") for name in METHODS})
    faces = vendi({name: (sets[name].embeddings["mini"], sets[name].labels) for name in METHODS})
    compared = {name: sets[name] for name in (*METHODS, RENDERS, CODED)}
    errors = {
        judge: {name: cross_eer(one, sets[REAL], judge) for name, one in compared.items()} for judge in judges
    }
    sample = f"{people} held-out people x {IMAGES} samples x {PHOTOS} lab photos"
    return [
        *error_figures(errors, sample),
        *(figure for judge in judges for figure in similarity_figures(compared, sets[REAL], judge, sample)),
        *diversity_figures(shown, "what is shown (attribute features)", sample),
        *diversity_figures(faces, "the faces (recogniser)", sample),
        *looks_figures([*samples, *renders], photos, encoder, sample),
        *[
            asked_of(name, f"samples with a face, {name}", 100 * sets[name].face_share, sample, at_least=99)
            for name in METHODS
        ],
    ]


def asked_of(method, name, value, sample, unit=" %", note="", **bounds):
    """A Figure of a method; the bounds are those of ID-Booth, of the others it is reported."""
    return Figure(name, value, sample, unit=unit, note=note, **(bounds if method == "ID-Booth" else {}))


def similarity_figures(compared, photos, judge, sample):
    """Similarity to the own photos and to others', and how far ID-Booth's own is above DreamBooth's."""
    own = {name: own_similarity(faces, photos, judge) for name, faces in compared.items()}
    figures = []
    for name, faces in compared.items():
        others = cross_scores(faces.embeddings[judge], faces.labels, photos.embeddings[judge], photos.labels)
        mean, low, high = mean_interval(own[name])
        note = f"95 % interval {low:.3f} to {high:.3f}; to other people's photos {others[1].mean():.3f}"
        asked = {"at_least": 0.64} if judge == "SFace" else {}
        title = f"cosine to own lab photos, {name}, by {judge}"
        figures.append(asked_of(name, title, mean, sample, unit="", note=note, **asked))
    paired = paired_difference(own["ID-Booth"], own["DreamBooth"])
    note = f"paired 95 % interval {paired['low']:.4f} to {paired['high']:.4f}"
    title = f"the same, ID-Booth less DreamBooth, by {judge}"
    return [*figures, Figure(title, paired["difference"], sample, note=note)]


def looks_figures(sets, photos, classifier, sample):
    """How often samples have the looks of their person's photos, and what their prompts say."""
    seen_in_photos, figures = seen_in(photos, classifier), []
    for images in sets:
        seen = seen_in(images, classifier)
        kept = {
            name: 100 * right.mean()
            for name, (right, _) in looks_kept(images, seen, photos, seen_in_photos).items()
        }
        note = ", ".join(f"{name} {share:.1f}" for name, share in kept.items() if name != "kept")
        title = f"looks kept (hair and skin), {images.name}"
        figures.append(asked_of(images.name, title, kept["kept"], sample, note=note, at_least=90))
        if images.name in METHODS:
            agreement = attribute_agreement(images, seen)
            for name in ("background", "pose"):
                title = f"the prompted {name} is seen, {images.name}"
                share = 100 * agreement[name][0].mean()
                figures.append(asked_of(images.name, title, share, sample, at_least=97))
    return figures


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
    """Equal error rates by judge and set; the demands are on ID-Booth."""
    dreambooth = errors["mini"]["DreamBooth"]
    half = max(5.0, dreambooth / 2) if dreambooth < 10 else dreambooth / 2
    limits = {"mini": min(8.0, round(half, 3)), "SFace": 16.0}
    figures = []
    for judge, of in errors.items():
        for name, error in of.items():
            why = "8 %, half of DreamBooth's, or 5 % where that is under 10 %" if judge == "mini" else ""
            note = why if name == "ID-Booth" else ""
            title = f"EER against lab photos, {name}, by {judge}"
            figures.append(asked_of(name, title, error, sample, note=note, at_most=limits[judge]))
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
